"""Diagnose an implementation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitspec.testing.determinism import KEPT, Difference, difference
from vitspec.testing.diagnosis import accuracy, coarse, naming, state
from vitspec.testing.diagnosis.causes import Causes
from vitspec.testing.diagnosis.diagnosis import Diagnosis
from vitspec.testing.diagnosis.findings import departures, hints
from vitspec.testing.diagnosis.places import Looked, looked
from vitspec.testing.diagnosis.points import Sample
from vitspec.testing.diagnosis.saving import save
from vitspec.testing.diagnosis.search import Search
from vitspec.testing.families import FAMILIES, Config
from vitspec.testing.implementations import AdapterError, Subject
from vitspec.testing.settings import Settings
from vitspec.testing.smoke import smoke
from vitspec.testing.tolerance import worst

PAIR_SECONDS = 20.0
"""How long pairs are tried for, in processor time: a busy machine finds what an idle one does."""
CAUSE_SECONDS = 8.0
"""The same of causes."""


def diagnose(
    implementation: Any,
    place: Settings | None = None,
    *,
    dtype: str | None = None,
    seed: int = 0,
    config: Config | None = None,
    save_to: Path | None = None,
    target: str = "",
) -> Diagnosis:
    """Name what is wrong with an implementation.

    Args:
        implementation: see `vitspec.testing.implementations`; or a `Subject`.
        place: where a check saw it depart, such as `Settings(case=93)`; a result's `again`. Its
            `dtype`, `seed` and `config` go before those that are named beside it.
        dtype: the precision to diagnose in; None for the implementation's default.
        seed: what parameters, images and cotangents are drawn from.
        config: the one configuration to look at; None for several that tell mistakes apart.
        save_to: a folder for the departing inputs and the truth, and a script that runs the
            implementation on them.
        target: what the command line calls the implementation, for the script.

    Raises:
        AdapterError: it is no implementation of a specified model, or does not work at all.

    >>> from vitspec.testing.catalogue import deviation
    >>> from vitspec.testing import SpecImplementation
    >>> mistaken = SpecImplementation("vit", mistakes=[deviation("value-weight-gets-key-gradient")])
    >>> diagnose(mistaken).verdict
    "It is `value-weight-gets-key-gradient`: the value weight's gradient is the key's."
    """
    start = time.monotonic()
    if place is None:
        place = Settings(dtype=dtype, seed=seed, config=config).nothing_but()
    own = isinstance(implementation, Subject)
    subject = implementation if own else Subject(implementation, place.dtype or dtype)
    if subject.spec not in FAMILIES:
        raise AdapterError(
            f"{subject.name} claims to be {subject.spec!r}; only "
            f"{' and '.join(FAMILIES)} have a specification to compare with"
        )
    smoke(subject, place.config)
    there = looked(subject, place)
    diagnosis = _begun(subject, place, there)
    _judge(diagnosis, subject, there)
    if save_to is not None:
        first = next((s for s in there.all if s.departs), there.all[0])
        save(save_to, first, diagnosis, target)
    diagnosis.seconds = time.monotonic() - start
    return diagnosis


def _begun(subject: Subject, place: Settings, there: Looked) -> Diagnosis:
    """A diagnosis that says where it looked, and nothing yet of what it saw."""
    diagnosis = Diagnosis(
        subject.name, subject.version, subject.spec, subject.precision.name, place.seed,
        place=str(there.all[0].trial.place), notes=there.notes,
        points=[sample.trial.description for sample in there.all],
    )  # fmt: skip
    if not subject.has_vjp:
        diagnosis.notes.append("It has no vjp: mistakes in gradients cannot be seen.")
    if strange := sorted({name for s in there.all for name in s.strange_taps}):
        diagnosis.notes.append(
            f"Taps that the specification does not have, or of another shape: {', '.join(strange)}."
        )
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


def _judge(diagnosis: Diagnosis, subject: Subject, there: Looked) -> None:
    samples = there.all
    diagnosis.departures = departures(samples)
    diagnosis.first_departure = next(iter(diagnosis.departures), None)
    graded = [s.grades[name] for s in samples for name in s.tensors]
    diagnosis.specification = worst(graded).ratio
    departing = [s for s in samples if s.departs]
    again = difference((departing or samples[-1:])[0].trial)
    if not again.allowed:
        _no_function(diagnosis, again, (departing or samples[-1:])[0])
    elif not departing:
        _conforming(diagnosis, subject, samples)
        if again.words:
            diagnosis.notes.append(f"It {again.words}.")
    else:
        _departing(diagnosis, subject, there)
    if diagnosis.name is None:
        diagnosis.notes += hints(diagnosis.departures, samples)


def _no_function(diagnosis: Diagnosis, again: Difference, sample: Sample) -> None:
    """What is said of an implementation that does not give the same again."""
    if sample.departs:
        diagnosis.verdict = f"It {again.words}."
    else:
        diagnosis.verdict = f"At none of the points does anything depart, but it {again.words}."
    if KEPT in again.words and (words := state.kept(sample)):
        diagnosis.notes.append(f"From the call before it has kept {words}.")


def _conforming(diagnosis: Diagnosis, subject: Subject, samples: Sequence[Sample]) -> None:
    diagnosis.conforms = True
    diagnosis.verdict = "It conforms: at none of the points does anything depart."
    small = [s for s in samples if s.trial.reference.small]
    if not small:
        return
    search = Search(small)
    unseen = sorted({c.names[0] for c in search.survivors(search.all)
                     if search.rough(c).distance <= 1})  # fmt: skip
    if unseen:
        finer = subject.finer_dtypes
        advice = f"Rerun with --dtype {finer[-1]}." if finer else "Rerun in float32, if it can."
        if subject.precision.u <= 2.0**-53:
            advice = "A check draws more points."
        diagnosis.notes.append(
            f"Not to be seen in {diagnosis.dtype} at these points: {', '.join(unseen)}. {advice}"
        )
    if found := accuracy.nearest(subject, small[-1]):
        diagnosis.conforms = False
        diagnosis.nearest = [found]
        diagnosis.verdict = (
            "On ordinary inputs nothing departs, but it is less accurate than it could be, as "
            f"with `{found.name}`: {found.description}."
        )


def _departing(diagnosis: Diagnosis, subject: Subject, there: Looked) -> None:
    search = Search(there.small, PAIR_SECONDS)
    only_large = not any(s.departs for s in there.small)
    if not only_large and naming.name(diagnosis, search, there):
        _say_how_sure(diagnosis, subject)
        return
    diagnosis.causes = _causes(subject, there)
    diagnosis.verdict = naming.unnamed(search, there)
    if only_large:
        diagnosis.verdict = "It departs at full size, and at none of the small points."
        return
    if search.out_of_time:
        diagnosis.notes.append(f"Not all pairs were tried, in {PAIR_SECONDS:g} s.")
    # What is nearest says something only if it is nearer than the specification itself.
    own = search.of_specification
    nearer = [m for m in search.nearest(naming.SHOWN) if m.typical < own.typical]
    diagnosis.nearest += [naming.near(m) for m in nearer]
    # Less precision explains almost anything, and so comes last.
    if diagnosis.causes:
        return
    if precision := coarse.everywhere(there.small):
        diagnosis.notes.append(
            f"All errors are within those of {precision} arithmetic: is that what the matrix "
            "products, or some part, compute in?"
        )
        diagnosis.verdict = "It is no known deviation; its errors are those of less precision."
    if part := coarse.in_one_part(there.small):
        diagnosis.notes.append(f"Its errors are like those of {part[0]} in {part[1]}.")


def _causes(subject: Subject, there: Looked) -> list[str]:
    """By a controlled change, at the first departing case."""
    causes = Causes(subject, CAUSE_SECONDS)
    for sample in there.all:
        if sample.departs and sample.case is not None:
            of = causes.of if sample.trial.reference.small else causes.of_size
            return of(sample.case)
        if sample.departs and not sample.trial.reference.small:
            case = replace(subject.family.smoke_case(sample.point.config), batch=1)
            return causes.of_size(case)
    return []


def _say_how_sure(diagnosis: Diagnosis, subject: Subject) -> None:
    first = diagnosis.nearest[0]
    if first.decided == 1 < len(diagnosis.points):
        diagnosis.notes.append(
            f"One point of {len(diagnosis.points)} decides this: at the others nothing departs."
        )
    unsure = first.same or first.decided == 1
    if unsure and diagnosis.dtype != "float64" and "float64" in subject.finer_dtypes:
        diagnosis.notes.append("In float64 more can be told: --dtype float64.")
