"""From the search to a name: what is said of what matches, and of what does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vitspec.testing.catalogue import deviation
from vitspec.testing.diagnosis.candidates import Candidate, mistaken
from vitspec.testing.diagnosis.diagnosis import Diagnosis, Near
from vitspec.testing.diagnosis.findings import ONE_FACTOR, rules
from vitspec.testing.diagnosis.places import Looked
from vitspec.testing.diagnosis.points import Sample
from vitspec.testing.diagnosis.search import CLOSE, Match, Search, same_function
from vitspec.testing.precision import PRECISIONS
from vitspec.testing.reference import evaluate_spec

SHOWN = 3
"""Deviations that are shown."""


def name(diagnosis: Diagnosis, search: Search, there: Looked) -> bool:
    """Name the deviation, or the two, that the implementation has; whether there is a name.

    Pairs are not tried where one factor for all gradients says all.
    """
    matches = search.matches(search.all)
    if not matches and not any(ONE_FACTOR in said for said in _rules(diagnosis, there)):
        matches = search.pairs()
    matches = [m for m in matches if all(fits(m.candidate, s) for s in there.large)]
    if not matches:
        return False
    diagnosis.nearest = _merged(matches, there)
    first = diagnosis.nearest[0]
    kind = "It is" if len(first.names) == 1 else "It is two mistakes at once:"
    named = " and ".join(f"`{one}`" for one in first.names)
    diagnosis.verdict = f"{kind} {named}: {first.description}."
    if first.same:
        diagnosis.verdict += f" Or it is {' or '.join(f'`{one}`' for one in first.same)}."
        diagnosis.notes.append(_cannot_tell(first, diagnosis.dtype))
    return True


def _rules(diagnosis: Diagnosis, there: Looked) -> list[str]:
    return rules(diagnosis.departures, there.small)


def fits(candidate: Candidate, sample: Sample) -> bool:
    """Whether a candidate is near at full size, where it is evaluated once, without a price."""
    names = ["logits"] if candidate.automatic else sample.tensors
    with mistaken(candidate):
        truth = evaluate_spec(sample.point, sample.precision.carrier)
    return all(sample.rough_ratio(n, sample.found[n], truth[n]) <= CLOSE for n in names)


def unnamed(search: Search, there: Looked) -> str:
    """The verdict on what has no name."""
    logits = {c.names for c in search.forward_matches(search.all) if c.in_the_forward}
    if logits and not search.samples_have_right_logits():
        names = " or ".join(sorted(f"`{one}`" for (one,) in logits))
        return f"Its logits are those of {names}; its gradients are of nothing known."
    return "It is no known deviation, nor two of them at once."


def near(match: Match) -> Near:
    """What is shown of a match."""
    deviations = match.candidate.deviations
    styles = {"by hand" if d.derivatives else "automatic" for d in deviations
              if deviation(d.name).of(*d.specs).derivatives}  # fmt: skip
    if match.candidate.automatic:
        styles = {"automatic"}
    return Near(
        name=" + ".join(match.candidate.names),
        description="; ".join(d.description for d in deviations),
        distance=match.distance,
        agreeing=match.agreeing,
        compared=match.compared,
        matches=match.matches,
        derivatives=styles.pop() if len(styles) == 1 else "",
    )


def _merged(matches: Sequence[Match], there: Looked) -> list[Near]:
    """The first match, with the others as its equals."""
    first, *others = matches
    same: list[str] = []
    equal: list[str] = []
    for other in others:
        words = " + ".join(other.candidate.names)
        if set(other.candidate.names) != set(first.candidate.names) and words not in same:
            same.append(words)
            if same_function(first.candidate, other.candidate, there.small):
                equal.append(words)
    decided = sum(sample.departs for sample in there.all)
    return [replace(near(first), same=tuple(same), equal=tuple(equal), decided=decided)]


def _cannot_tell(first: Near, dtype: str) -> str:
    if first.same == first.equal:
        return "These are the same function at all of these points."
    if PRECISIONS[dtype].u > PRECISIONS["float32"].u:
        return f"These are not distinguishable in {dtype}: rerun in float32."
    return f"These are not distinguishable in {dtype} at these points: rerun with another --seed."
