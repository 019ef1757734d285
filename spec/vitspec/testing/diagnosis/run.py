"""Diagnose an implementation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vitspec.testing.catalogue import deviation
from vitspec.testing.determinism import difference
from vitspec.testing.diagnosis import accuracy, points
from vitspec.testing.diagnosis.diagnosis import Diagnosis, Near
from vitspec.testing.diagnosis.findings import departures, hints, looks_like_precision
from vitspec.testing.diagnosis.points import Sample
from vitspec.testing.diagnosis.search import Match, Search, same_function
from vitspec.testing.families import FAMILIES, Config
from vitspec.testing.implementations import AdapterError, Subject
from vitspec.testing.precision import PRECISIONS
from vitspec.testing.smoke import smoke
from vitspec.testing.tolerance import worst
from vitspec.testing.trial import Trial

SHOWN = 3
"""Deviations that are shown."""
PAIR_SECONDS = 45.0
"""How long pairs are tried for, in processor time: a busy machine finds what an idle one does."""


def diagnose(
    implementation: Any,
    *,
    dtype: str | None = None,
    seed: int = 0,
    config: Config | None = None,
) -> Diagnosis:
    """Name what is wrong with an implementation.

    Args:
        implementation: see `vitspec.testing.implementations`; or a `Subject`.
        dtype: the precision to diagnose in; None for the implementation's default.
        seed: what parameters, images and cotangents are drawn from.
        config: the one configuration to look at; None for several that tell mistakes apart.

    Raises:
        AdapterError: it is no implementation of a specified model, or does not work at all.

    >>> from vitspec.testing.catalogue import deviation
    >>> from vitspec.testing import SpecImplementation
    >>> mistaken = SpecImplementation("vit", mistakes=[deviation("value-weight-gets-key-gradient")])
    >>> diagnose(mistaken).verdict
    "It is `value-weight-gets-key-gradient`: the value weight's gradient is the key's."
    """
    start = time.monotonic()
    own = isinstance(implementation, Subject)
    subject = implementation if own else Subject(implementation, dtype)
    if subject.spec not in FAMILIES:
        raise AdapterError(
            f"{subject.name} claims to be {subject.spec!r}; only "
            f"{' and '.join(FAMILIES)} have a specification to compare with"
        )
    smoke(subject, config)
    chosen, notes = points.cases(subject, seed, config)
    samples = [Sample(subject, case) for case in chosen]
    diagnosis = Diagnosis(
        subject.name, subject.version, subject.spec, subject.precision.name, seed,
        points=[repr(case) for case in chosen], notes=notes,
    )  # fmt: skip
    if not subject.has_vjp:
        diagnosis.notes.append("It has no vjp: mistakes in gradients cannot be seen.")
    if strange := sorted({name for s in samples for name in s.strange_taps}):
        diagnosis.notes.append(
            f"Taps that the specification does not have, or of another shape: {', '.join(strange)}."
        )
    diagnosis.departures = departures(samples)
    diagnosis.first_departure = next(iter(diagnosis.departures), None)
    graded = [s.grades[name] for s in samples for name in s.tensors]
    diagnosis.specification = worst(graded).ratio
    if all(g.conforms for g in graded):
        _conforming(diagnosis, subject, samples)
    else:
        _departing(diagnosis, samples)
    if diagnosis.name is None:
        diagnosis.notes += hints(diagnosis.departures, samples)
    diagnosis.seconds = time.monotonic() - start
    return diagnosis


def expected_by_name(
    implementation: Any,
    expected: str | None = None,
    *,
    dtype: str | None = None,
    seed: int = 0,
    config: Config | None = None,
) -> str | None:
    """The name of the deviation that the implementation has, for comparison with a declared one.

    None if it has none, or none of the catalogue. Two at once are joined by " + ". Where several
    cannot be told apart it is `expected` if that is one of them, else the nearest.
    """
    found = diagnose(implementation, dtype=dtype, seed=seed, config=config)
    return expected if found.name and expected in found.nearest[0].same else found.name


def _conforming(diagnosis: Diagnosis, subject: Subject, samples: Sequence[Sample]) -> None:
    diagnosis.conforms = True
    diagnosis.verdict = "It conforms: at none of the points does anything depart."
    search = Search(samples)
    unseen = sorted({c.names[0] for c in search.survivors(search.all)
                     if search.rough(c).distance <= 1})  # fmt: skip
    if unseen:
        diagnosis.notes.append(
            f"Not to be seen in {diagnosis.dtype} at these points: {', '.join(unseen)}. "
            + _finer(subject)
        )
    if found := accuracy.nearest(subject, samples[-1]):
        diagnosis.conforms = False
        diagnosis.nearest = [found]
        diagnosis.verdict = (
            "On ordinary inputs nothing departs, but it is less accurate than it could be, as "
            f"with `{found.name}`: {found.description}."
        )
    # The law of determinism, as `check` has it: the two must not contradict each other.
    again = difference(Trial(subject, samples[-1].point, np.random.default_rng(diagnosis.seed)))
    if not again.allowed:
        diagnosis.conforms = False
        diagnosis.verdict = f"At none of the points does anything depart, but it {again.words}."
    elif again.words:
        diagnosis.notes.append(f"It {again.words}.")


def _departing(diagnosis: Diagnosis, samples: Sequence[Sample]) -> None:
    search = Search(samples, PAIR_SECONDS)
    matches = search.matches(search.all)
    if not matches and (precision := looks_like_precision(samples)):
        diagnosis.notes.append(
            f"All errors are within those of {precision} arithmetic: is that what the matrix "
            "products, or some part, compute in?"
        )
    elif not matches:
        matches = search.pairs()
    if matches:
        diagnosis.nearest = _merged(matches, samples)
        first = diagnosis.nearest[0]
        kind = "It is" if len(first.names) == 1 else "It is two mistakes at once:"
        named = " and ".join(f"`{name}`" for name in first.names)
        diagnosis.verdict = f"{kind} {named}: {first.description}."
        if first.same:
            diagnosis.verdict += f" Or it is {' or '.join(f'`{name}`' for name in first.same)}."
            diagnosis.notes.append(_cannot_tell(first, diagnosis.dtype))
    else:
        logits = {c.names for c in search.forward_matches(search.all) if c.in_the_forward}
        if logits and not search.samples_have_right_logits():
            diagnosis.verdict = "Its logits are those of {}; its gradients are of nothing known."
            names = " or ".join(sorted(f"`{name}`" for (name,) in logits))
            diagnosis.verdict = diagnosis.verdict.format(names)
        else:
            diagnosis.verdict = "It is no known deviation, nor two of them at once."
        if any("arithmetic" in note for note in diagnosis.notes):
            diagnosis.verdict = "It is no known deviation; its errors are those of less precision."
    if search.out_of_time:
        diagnosis.notes.append(f"Not all pairs were tried, in {PAIR_SECONDS:g} s.")
    besides = {name for near in diagnosis.nearest for name in (*near.names, *near.same)}
    diagnosis.nearest += [_near(m) for m in search.nearest(SHOWN, tuple(besides))]


def _cannot_tell(first: Near, dtype: str) -> str:
    if first.same == first.equal:
        return "These are the same function at all of these points."
    if PRECISIONS[dtype].u > PRECISIONS["float32"].u:
        return f"These are not distinguishable in {dtype}: rerun in float32."
    return f"These are not distinguishable in {dtype} at these points: rerun with another --seed."


def _finer(subject: Subject) -> str:
    finer = subject.finer_dtypes
    return f"Rerun with --dtype {finer[-1]}." if finer else "Rerun in float32, if it can."


def _merged(matches: Sequence[Match], samples: Sequence[Sample]) -> list[Near]:
    """The first match, with the others as its equals."""
    first, *others = matches
    same: list[str] = []
    equal: list[str] = []
    for other in others:
        name = " + ".join(other.candidate.names)
        if set(other.candidate.names) != set(first.candidate.names) and name not in same:
            same.append(name)
            if same_function(first.candidate, other.candidate, samples):
                equal.append(name)
    return [replace(_near(first), same=tuple(same), equal=tuple(equal))]


def _near(match: Match) -> Near:
    deviations = match.candidate.deviations
    styles = {"by hand" if d.derivatives else "automatic" for d in deviations
              if deviation(d.name).of(*d.specs).derivatives}  # fmt: skip
    return Near(
        name=" + ".join(match.candidate.names),
        description="; ".join(d.description for d in deviations),
        distance=match.distance,
        agreeing=match.agreeing,
        compared=match.compared,
        matches=match.matches,
        derivatives=styles.pop() if len(styles) == 1 else "",
    )
