"""The first thing that is tried of an implementation: is it an adapter at all?"""

from __future__ import annotations

from typing import Any

import numpy as np

from vitspec.testing.implementations import AdapterError, Subject
from vitspec.testing.reference import Point
from vitspec.testing.trial import Trial

GROSS = 2**10
"""Two runs that differ by more roundings than this do not differ by the order of sums alone."""


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
    trial = Trial(subject, Point.of(case).rounded(subject.precision), np.random.default_rng(0))
    found = trial.found
    wrong = [n for n, value in found.items() if not np.isfinite(np.asarray(value, float)).all()]
    if wrong:
        raise AdapterError(f"{name} gave NaN or infinity on {case}: {', '.join(sorted(wrong)[:5])}")
    again = trial.evaluate(trial.point)
    for tensor in [tensor for tensor in found if tensor in again]:
        value, other = (np.asarray(flat[tensor], float) for flat in (found, again))
        if value.shape != other.shape:
            raise AdapterError(f"{name} gives {tensor} of another shape on every run")
        apart, size = np.linalg.norm(other - value), np.linalg.norm(value)
        if not apart <= GROSS * subject.precision.u * size:  # NaN is not
            raise AdapterError(
                f"{name} gives something else on every run: {tensor} moved by "
                f"{apart / size:.0e} of its size; is dropout on, or a seed not fixed?"
            )
    return case.config
