"""What would explain a departure that is not far beyond rounding.

Two things may: an operation of the implementation that errs by more than those of any library that
was measured (`vitspec.testing.primitives`), or a mistake in the formula. Two questions tell them
apart. By how much would each operation have to err, if it alone did, to be as far off? And is the
implementation right in float64, if it computes in it? An inaccurate operation is; a mistake is not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vitspec.testing.implementations import Subject
from vitspec.testing.noise import SUSPICION, Noise
from vitspec.testing.precision import PRECISIONS, NoisyArithmetic, Precision, primitives_of
from vitspec.testing.reference import (
    CASE_RUNS,
    Flat,
    Point,
    Reference,
    evaluate_in,
    evaluate_spec,
    noise_of_spec,
)
from vitspec.typing import Array

NEAR = 1e3
"""The mean of z up to which a departure may be one of accuracy."""
TIMES = 2.0 ** np.arange(1, 7, 0.5)
"""By how many times what is usual an operation may have erred."""
SURE = 2.0
"""By how much the likeliest operation's log-likelihood must be above that of the next."""
RUNS = 8
"""Noisy runs for each operation."""
WORDS = {
    "exp": "exp",
    "log": "log",
    "tanh": "tanh",
    "sqrt": "sqrt",
    "divide": "division",
    "erfc": "GELU",
    "matmul": "products of matrices",
    "add.reduce": "sums",
    "cubic_weights": "the weights of interpolated positions",
}
"""Operations by the names of NumPy's functions, and what they are called."""


class OneErring(NoisyArithmetic):
    """Arithmetic in which one operation errs, by up to one unit, and no other does."""

    def __init__(self, precision: Precision, rng: np.random.Generator, operation: str) -> None:
        super().__init__(precision, rng, primitives={operation: 1.0})
        self.operation = operation

    def constant(self, x: Any) -> Any:
        """x itself."""
        return x

    def move(self, ufunc: Any, method: str, inputs: Any, kwargs: Any, result: Any) -> Any:
        """The result, moved if it is this operation's."""
        name = ufunc.__name__ if method == "__call__" else f"{ufunc.__name__}.{method}"
        if name != self.operation:
            return result
        return super().move(ufunc, method, inputs, kwargs, result)

    def move_values(self, x: Any, magnitude: Any) -> Any:
        """The values of erfc, moved if it is this operation."""
        return super().move_values(x, magnitude) if self.operation == "erfc" else x


def explained(subject: Subject, reference: Reference, found: Flat, rng: np.random.Generator) -> str:
    """What would explain the errors at a small point, in words; "" if nothing that is known does.

    Args:
        subject: the implementation.
        reference: what is true at the point.
        found: of the implementation there.
        rng: of the noise.
    """
    right = _right_in_float64(subject, reference.point, rng)
    if right is False:
        return "a mistake, not rounding: in float64 it is wrong there too"
    words = _as_if(reference, found, rng)
    return "; ".join(filter(None, [words, "in float64 it is right there" if right else ""]))


def _as_if(reference: Reference, found: Flat, rng: np.random.Generator) -> str:
    """The operation that would most probably be as far off as all tensors together are.

    If operation f errs by c units and all else as usual, tensor t has the variance b^2 + (c f)^2,
    with b and f the norms of the noise of all operations and of this one by one unit.
    """
    noises, precision = reference.noises, reference.precision
    names = [name for name in noises if name in found]
    errors = np.array([np.linalg.norm(noises[name].error(found[name])) for name in names])
    base = np.array([np.sqrt((noises[name].runs ** 2).sum(axis=-1).mean()) for name in names])
    usual = {"divide": 1.0, "add.reduce": 1.0} | primitives_of(precision)
    likely = {"": (log_likelihood(errors, base), 1.0)}
    for operation, own in usual.items():
        arithmetic = OneErring(precision, rng, operation)
        runs = [evaluate_in(arithmetic, reference.point, reference.taps) for _ in range(RUNS)]
        squares = [[np.square(noises[n].error(run[n])).sum() for n in names] for run in runs]
        noise = own**2 * np.mean(squares, axis=0)
        likely[operation] = max(
            (log_likelihood(errors, np.sqrt(base**2 + times**2 * noise)), times) for times in TIMES
        )
    first, second = sorted(likely, key=lambda name: -likely[name][0])[:2]
    if not first or likely[first][0] - likely[second][0] < SURE:
        return ""
    times = likely[first][1]
    units = times * usual[first] / (2 if first == "erfc" else 1)  # GELU is x / 2 times erfc
    return f"as if {WORDS[first]} erred by some {units:.2g} u, {times:.2g} x the usual"


def log_likelihood(errors: Array, deviations: Array) -> float:
    """Of errors with these deviations, each a single Gaussian number."""
    some = deviations > 0
    return float(-np.sum(np.log(deviations[some]) + np.square(errors[some] / deviations[some]) / 2))


def _right_in_float64(subject: Subject, point: Point, rng: np.random.Generator) -> bool | None:
    """Whether the implementation is right at this point in float64; None if it cannot do that."""
    if "float64" not in subject.finer_dtypes:
        return None
    finer, precision = subject.in_precision("float64"), PRECISIONS["float64"]
    point = point.rounded(precision)
    found, truth = finer.evaluate(point), evaluate_spec(point)
    return _right(found, noise_of_spec(point, truth, precision, CASE_RUNS, rng))


def _right(found: Flat, noise: dict[str, Noise]) -> bool:
    """Whether no tensor is far off, by its norm."""
    for name, one in noise.items():
        if name in found:
            allowed = SUSPICION * float(np.sqrt((one.runs**2).sum(axis=-1).max()))
            own = one.precision.u * float(np.linalg.norm(one.truth))
            if not float(np.linalg.norm(one.error(found[name]))) <= allowed + own:
                return False
    return True
