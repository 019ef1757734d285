"""Departures that a coarser precision explains: everywhere, or in one part of the model.

Noisy runs of the specification show how large each tensor's error is where a part computes in a
coarser precision and all else in the own. The part and the precision whose errors are most like the
implementation's are named, if their likelihood says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import wraps
from typing import Any

import numpy as np

from vitspec.testing.catalogue import functions as at
from vitspec.testing.catalogue.planting import replaced
from vitspec.testing.diagnosis.points import Sample
from vitspec.testing.explanation import log_likelihood
from vitspec.testing.precision import PRECISIONS, NoisyArithmetic, Precision
from vitspec.testing.reference import CASE_RUNS, evaluate_in, price_spec
from vitspec.testing.tolerance import grade
from vitspec.typing import Array

FAR_BELOW, FAR_ABOVE = 1 / 32, 8.0
"""Of a precision's price: errors outside are not of its making."""
RUNS = 4
PARTS = {
    "softmax": (at.SOFTMAX, at.SOFTMAX_BACKWARD),
    "attention": (at.ATTENTION, at.ATTENTION_BACKWARD, at.MHA, at.MHA_BACKWARD),
    "layer normalisation": (at.LAYER_NORM, at.LAYER_NORM_BACKWARD),
    "the feed-forward": (at.MLP, at.MLP_BACKWARD, at.FFN, at.FFN_BACKWARD),
    "the patch embedding": (at.EMBEDDING, at.EMBEDDING_BACKWARD, at.CONV2D, at.CONV2D_BACKWARD),
}
"""Parts of a model, the smallest first, and their functions in the families."""


class InOnePart(NoisyArithmetic):
    """Arithmetic that errs while one part of the model is computed."""

    def __init__(self, precision: Precision, rng: np.random.Generator) -> None:
        super().__init__(precision, rng)
        self.depth = 0

    def within(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, as a piece of the part."""

        @wraps(function)
        def erring(*args: Any, **kwargs: Any) -> Any:
            self.depth += 1
            try:
                return function(*args, **kwargs)
            finally:
                self.depth -= 1

        return erring

    def constant(self, x: Any) -> Any:
        """Rounded in the part alone."""
        return super().constant(x) if self.depth else x

    def move(self, ufunc: Any, method: str, inputs: Any, kwargs: Any, result: Any) -> Any:
        """Moved in the part alone."""
        return super().move(ufunc, method, inputs, kwargs, result) if self.depth else result

    def move_values(self, x: Any, magnitude: Any) -> Any:
        """Moved in the part alone."""
        return super().move_values(x, magnitude) if self.depth else x


def everywhere(samples: Sequence[Sample]) -> str | None:
    """A coarser precision whose rounding all departures fit, if there is one.

    They fit if they are within its bounds and, in most tensors at every point, not far below its
    price.
    """
    fitting = (p.name for p in _coarser(samples[0]) if all(_fits(s, p) for s in samples))
    return next(fitting, None)


def in_one_part(samples: Sequence[Sample]) -> tuple[str, str] | None:
    """The part of the model, and the precision, that explain the departures, if any do."""
    likely: dict[tuple[str, str], float] = {}
    for precision in _coarser(samples[0]):
        for part in PARTS:
            fit = [_likelihood(s, part, precision) for s in samples if s.departs]
            if fit and all(np.isfinite(fit)):
                likely[part, precision.name] = sum(fit)
    return max(likely, key=lambda key: likely[key]) if likely else None


def _coarser(sample: Sample) -> list[Precision]:
    some = (p for p in PRECISIONS.values() if p.u > sample.precision.u)
    return sorted(some, key=lambda p: p.u)


def _fits(sample: Sample, precision: Precision) -> bool:
    truth = {name: sample.truth[name] for name in sample.tensors}
    rng = sample.trial.stream("less precision")
    prices = price_spec(sample.point, truth, precision, CASE_RUNS // 2, rng)
    grades = [grade(n, sample.found[n], truth[n], prices[n]) for n in sample.tensors]
    shares = [g.error / g.price for g in grades if g.price > 0]
    return all(g.conforms for g in grades) and float(np.median(shares)) > FAR_BELOW


def _likelihood(sample: Sample, part: str, precision: Precision) -> float:
    """Of the tensors' errors, if this part computes so; minus infinity if they are not alike."""
    arithmetic = InOnePart(precision, sample.trial.stream(part))
    with ExitStack() as stack:
        for function in PARTS[part]:
            stack.enter_context(replaced(function, arithmetic.within))
        runs = [evaluate_in(arithmetic, sample.point) for _ in range(RUNS)]
    errors: Array = np.array([_distance(sample.found, sample, n) for n in sample.tensors])
    squares = np.mean([[_distance(run, sample, n) ** 2 for n in sample.tensors] for run in runs], 0)
    own = np.array([sample.prices[n].norm for n in sample.tensors])
    expected = np.sqrt(squares + own**2)
    coarse = squares > own**2
    ratios = errors[coarse] / expected[coarse]
    if not ratios.size or np.any(errors > FAR_ABOVE * expected) or np.median(ratios) < FAR_BELOW:
        return -np.inf
    return log_likelihood(errors, expected)


def _distance(values: Any, sample: Sample, name: str) -> float:
    return float(np.linalg.norm(values[name] - sample.truth[name]))
