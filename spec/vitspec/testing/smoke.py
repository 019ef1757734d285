"""The first thing that is tried of an implementation: is it an adapter at all?"""

from __future__ import annotations

from typing import Any

import numpy as np

from vitspec.testing.drawing import known_of
from vitspec.testing.implementations import AdapterError, Subject
from vitspec.testing.reference import Point
from vitspec.testing.suites.suite import vjp_trouble
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
    chosen = config or _supported(subject)
    if reason := subject.why_unsupported(chosen):
        raise AdapterError(
            f"{name} supports none of the configurations that were tried "
            f"(the last, {chosen!r}: {reason}); name one that it does: --config"
        )
    case = family.smoke_case(chosen)
    trial = Trial(subject, Point.of(case).rounded(subject.precision), np.random.default_rng(0))
    before = {name: leaf.tobytes() for name, leaf in trial.point.params.items()}
    # A vjp that raises leaves a forward to be graded; one that returns what is no gradient is an
    # adapter that does not fit.
    if (trouble := vjp_trouble(trial)) is not None and trouble.__cause__ is None:
        raise trouble
    found = trial.found
    wrong = [n for n, value in found.items() if not np.isfinite(np.asarray(value, float)).all()]
    if wrong:
        raise AdapterError(f"{name} gave NaN or infinity on {case}: {', '.join(sorted(wrong)[:5])}")
    # The arrays are read-only for NumPy; other frameworks write through that.
    if any(leaf.tobytes() != before[n] for n, leaf in trial.point.params.items()):
        raise AdapterError(f"{name} changed its parameters")
    again = trial.evaluate(trial.point)
    for tensor in [tensor for tensor in found if tensor in again]:
        value, other = (np.asarray(flat[tensor], float) for flat in (found, again))
        apart, size = np.linalg.norm(other - value), np.linalg.norm(found[tensor])
        if apart > GROSS * subject.precision.u * size:
            raise AdapterError(
                f"{name} gives something else on every run: {tensor} moved by "
                f"{apart / size:.0e} of its size; is dropout on, or a seed not fixed?"
            )
    return case.config


def _supported(subject: Subject) -> Any:
    """A configuration that it supports; if it supports none, the last of the one-block models'."""
    known = known_of(subject)
    return subject.closest(subject.family.smoke_configs[-1]) if known is None else known.config
