"""The first thing that is tried of an implementation: is it an adapter at all?"""

from __future__ import annotations

from typing import Any

import numpy as np

from vitspec.testing.determinism import difference
from vitspec.testing.implementations import AdapterError, Subject
from vitspec.testing.reference import Point
from vitspec.testing.trial import CASE_RUNS, Trial

GROSS = 2**10
"""Two runs that differ by no more roundings than this are not looked at: a law does it later."""
LARGE, FEW_RUNS = 10**6, 2
"""How many parameters are so many that few noisy runs tell their price."""


def smoke(subject: Subject, config: Any = None) -> Any:
    """Try the adapter on two images: shapes, types, finite numbers, the same again.

    Returns:
        The configuration that it was tried on.

    Raises:
        AdapterError: it does not work there; nothing else is worth running.
    """
    family, name = subject.family, subject.name
    candidates = [config] if config else [subject.closest(c) for c in family.smoke_configs]
    reasons = [subject.why_unsupported(c) for c in candidates]
    if all(reasons):
        raise AdapterError(
            f"{name} supports none of the configurations that were tried "
            f"(the last, {candidates[-1]!r}: {reasons[-1]}); name one that it does: --config"
        )
    case = family.smoke_case(candidates[reasons.index(None)])
    point = Point.of(case).rounded(subject.precision)
    # Only what is grossly different from run to run has to be priced.
    runs = CASE_RUNS if sum(leaf.size for leaf in point.params.values()) < LARGE else FEW_RUNS
    trial = Trial(subject, point, np.random.default_rng(0), runs)
    before = {name: leaf.tobytes() for name, leaf in trial.point.params.items()}
    found = trial.found
    wrong = [n for n, value in found.items() if not np.isfinite(np.asarray(value, float)).all()]
    if wrong:
        raise AdapterError(f"{name} gave NaN or infinity on {case}: {', '.join(sorted(wrong)[:5])}")
    # The arrays are read-only for NumPy; other frameworks write through that.
    if any(leaf.tobytes() != before[n] for n, leaf in trial.point.params.items()):
        raise AdapterError(f"{name} changed its parameters")
    again = trial.evaluate(trial.point)
    if any(_grossly_apart(found[n], again[n], subject.precision.u) for n in found if n in again):
        second = difference(trial, again)
        if not second.is_rounding:  # of rounding, the law of determinism says more
            raise AdapterError(f"{name} {second.words}")
    return case.config


def _grossly_apart(value: Any, other: Any, u: float) -> bool:
    """Whether two runs differ by more than the order of most sums explains; NaN does."""
    value, other = np.asarray(value, float), np.asarray(other, float)
    apart, size = np.linalg.norm(other - value), np.linalg.norm(value)
    return not apart <= GROSS * u * size
