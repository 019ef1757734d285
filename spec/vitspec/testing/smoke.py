"""The first thing that is tried of an implementation: is it an adapter at all?"""

from __future__ import annotations

from typing import Any

import numpy as np

from vitspec.testing.determinism import difference
from vitspec.testing.drawing import known_of
from vitspec.testing.implementations import AdapterError, Subject
from vitspec.testing.reference import Point
from vitspec.testing.suites.suite import vjp_trouble
from vitspec.testing.trial import Trial

ORDINARY = 2**10
"""Two runs that differ by no more roundings than this are not looked at: a law does it later."""


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
    point = Point.of(case).rounded(subject.precision)
    trial = Trial(subject, point, np.random.default_rng(0))
    # A vjp that raises leaves a forward to be graded; one that returns what is no gradient is an
    # adapter that does not fit.
    if (trouble := vjp_trouble(trial)) is not None and not trouble.raised:
        raise trouble
    found = trial.found
    tensors = {name: found[name] for name in ("logits", "image", *point.params) if name in found}
    wrong = [n for n, value in tensors.items() if not np.isfinite(np.asarray(value, float)).all()]
    if wrong:
        raise AdapterError(f"{name} gave NaN or infinity on {case}: {', '.join(sorted(wrong)[:5])}")
    again = trial.evaluate(trial.point)
    both = [tensor for tensor in found if tensor in again]
    if strange := [tensor for tensor in both if again[tensor].shape != found[tensor].shape]:
        raise AdapterError(f"{name} gives {strange[0]} of another shape on every run")
    if any(_grossly_apart(found[n], again[n], subject.precision.u) for n in both):
        second = difference(trial, again)
        if not second.is_rounding:  # of rounding, the law of determinism says more
            raise AdapterError(f"{name} {second.words}")
    return case.config


def _supported(subject: Subject) -> Any:
    """A configuration that it supports; if it supports none, the last of the one-block models'."""
    known = known_of(subject)
    return subject.closest(subject.family.smoke_configs[-1]) if known is None else known.config


def _grossly_apart(value: Any, other: Any, u: float) -> bool:
    """Whether two runs differ by more than the order of most sums explains; NaN does."""
    value, other = np.asarray(value, float), np.asarray(other, float)
    apart, size = np.linalg.norm(other - value), np.linalg.norm(value)
    return not apart <= ORDINARY * u * size
