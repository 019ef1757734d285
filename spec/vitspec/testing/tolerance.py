"""How far a correct implementation may be from the truth, by norms: error, price and bound.

This is the rule where no run can be kept entry by entry: at full size, for the shipped vectors,
and for laws. At small points `vitspec.testing.noise` looks closer.

There is no absolute tolerance. For an implementation that computes in a precision of unit roundoff
u, at inputs that are exact in that precision:

- the *truth* is the specification in float64;
- the *error* of a tensor is its distance from the truth, relative to the truth's own size, in
  three metrics: `norm` (2-norm), `max` (largest entry), `slice` (the worst row by 2-norm);
- the *price* is the error of the specification itself in arithmetic that errs as that precision
  does (`vitspec.testing.precision`), the worst of several runs;
- the *bound* is 4 * price + 4 * u. A tensor conforms when its error is within it in all metrics.

A tensor or a row whose truth is no larger than the noise (4 times its price in absolute terms) has
no size of its own: its terms cancel, as in the gradient of a query weight for a single token. It is
measured against *what cancelled*: the noise over u. Where there is no noise either, it must be
exactly zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from vitspec.typing import Array

PRICE_FACTOR = 4
ROUNDING_FACTOR = 4
METRICS = ("norm", "max", "slice")
BLOCK = 2**16
"""Numbers that are compared at once."""


@dataclass(frozen=True)
class Sizes:
    """The size of an array, or of a difference: its 2-norm, its largest entry, its rows' norms."""

    norm: float
    max: float
    rows: Array


def sizes(array: Array) -> Sizes:
    """The sizes of any float array; a row is an entry of the first axis, if there are several."""
    rows = _rows(array)
    if rows.size == 0:
        return Sizes(0.0, 0.0, np.zeros(0))
    row_norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    return Sizes(float(np.linalg.norm(row_norms)), float(np.abs(rows).max()), row_norms)


def distances(value: Array, truth: Array) -> Sizes:
    """The sizes of value - truth, computed in the wider of their types; NaN counts as infinite."""
    true_rows = _rows(truth)
    if true_rows.size == 0:
        return Sizes(0.0, 0.0, np.zeros(0))
    values = value.reshape(true_rows.shape)
    at_once = max(1, BLOCK // true_rows.shape[1])  # rows whose difference stays in the cache
    norms, largest = [], 0.0
    for start in range(0, len(true_rows), at_once):
        part = values[start : start + at_once] - true_rows[start : start + at_once]
        part = np.where(np.isfinite(part), part, np.inf)
        norms.append(np.sqrt(np.einsum("ij,ij->i", part, part)))
        largest = max(largest, float(np.abs(part).max()))
    row_norms = np.concatenate(norms)
    return Sizes(float(np.linalg.norm(row_norms)), largest, row_norms)


def _rows(array: Array) -> Array:
    several = array.ndim > 1 and array.size > 0
    return array.reshape(array.shape[0] if several else 1, -1)


@dataclass(frozen=True)
class Price:
    """What a precision costs one tensor.

    Attributes:
        norm, max, row: the noise, in absolute terms: the largest distances of all runs.
        slice: the noise of the worst row, relative to that row.
        u: the precision's unit roundoff.
    """

    norm: float
    max: float
    row: float
    slice: float
    u: float

    @classmethod
    def of(cls, truth: Sizes, noise: Sequence[Sizes], u: float) -> Price:
        """The price by the distances of several runs from the truth."""
        rows = np.max([run.rows for run in noise], axis=0)
        row = float(rows.max(initial=0.0))
        relative = _ratio(rows, _own_or_cancelled(truth.rows, row, u))
        norm, largest = max(run.norm for run in noise), max(run.max for run in noise)
        return cls(norm, largest, row, float(relative.max(initial=0.0)), u)

    def scaled(self, factor: float) -> Price:
        """The price of a tensor that is `factor` times as large."""
        return replace(self, norm=factor * self.norm, max=factor * self.max, row=factor * self.row)


@dataclass(frozen=True)
class Confirmation:
    """What new points said of a suspicion (`vitspec.testing.confirmation`).

    Attributes:
        outcome: `confirmed`, `cleared`, or `untold`: the precision is too coarse to tell.
        mean: the mean of z, with its sign, over the new points; at the first one if there are none.
        points: how many.
        explanation: what would explain it, in words (`vitspec.testing.explanation`); "" if nothing
            that is known does, or if another tensor at the same point was asked instead.
    """

    outcome: Literal["confirmed", "cleared", "untold"]
    mean: float
    points: int
    explanation: str = ""


@dataclass(frozen=True)
class Grade:
    """The verdict on one tensor, in the metric that decides it.

    Attributes:
        tensor: `logits`, `image` (the images' gradient), or the flat name of the parameter whose
            gradient it is.
        metric: the metric with the largest ratio.
        error: the implementation's error.
        price: the specification's own error in the same precision.
        bound: what the error may be.
        cancelled: whether the truth is zero but for noise, so that these are relative to what
            cancelled.
        confirmation: what new points said, if the error is beyond the bound and was only a
            suspicion.
    """

    tensor: str
    metric: str
    error: float
    price: float
    bound: float
    cancelled: bool = False
    confirmation: Confirmation | None = None

    @property
    def ratio(self) -> float:
        """Error / bound: the tensor conforms up to 1."""
        error, bound = float(self.error), float(self.bound)
        if not math.isfinite(error) or (bound == 0 and error != 0):  # as in `_ratio`
            return math.inf
        return error / bound if bound else 0.0

    @property
    def conforms(self) -> bool:
        """Whether the error is within the bound (NaN is not), or new points have cleared it."""
        if self.confirmation is not None:
            return self.confirmation.outcome == "cleared"
        return bool(np.isfinite(self.error) and self.error <= self.bound)

    @property
    def untold(self) -> bool:
        """Whether the precision is too coarse to tell."""
        return self.confirmation is not None and self.confirmation.outcome == "untold"


def grade(tensor: str, value: Array, truth: Array, price: Price, factor: float = 1.0) -> Grade:
    """The verdict on one tensor.

    Args:
        tensor: its name.
        value: what the implementation computed.
        truth: float64, the same shape.
        price: what the precision costs this tensor.
        factor: of the bound, where `truth` has errors of its own.
    """
    size, error = sizes(truth), distances(value, truth)
    scales = {"norm": (size.norm, price.norm), "max": (size.max, price.max)}
    errors: dict[str, float] = {}
    prices: dict[str, float] = {"slice": price.slice}
    for metric, (own, noise) in scales.items():
        scale = _own_or_cancelled(own, noise, price.u)
        errors[metric] = float(_ratio(getattr(error, metric), scale))
        prices[metric] = float(_ratio(noise, scale))
    row_scales = _own_or_cancelled(size.rows, price.row, price.u)
    errors["slice"] = float(_ratio(error.rows, row_scales).max(initial=0.0))
    cancelled = bool(size.norm <= PRICE_FACTOR * price.norm)
    grades = []
    for metric in METRICS:
        bound = factor * (PRICE_FACTOR * prices[metric] + ROUNDING_FACTOR * price.u)
        grades.append(Grade(tensor, metric, errors[metric], prices[metric], bound, cancelled))
    return worst(grades)


def worst(grades: Sequence[Grade]) -> Grade:
    """The verdict furthest over its bound."""
    return max(grades, key=lambda g: (not g.conforms, not g.untold, g.ratio))


def _own_or_cancelled(size: Any, noise: float, u: float) -> Any:
    """The size that counts: its own, or that of what cancelled if only noise is left."""
    return np.where(np.asarray(size) > PRICE_FACTOR * noise, size, noise / u)


def _ratio(error: Any, size: Any) -> Any:
    """error / size; 0 where both are 0, infinite where only the size is, or for NaN."""
    error, size = np.asarray(error, np.float64), np.asarray(size, np.float64)
    with np.errstate(over="ignore"):  # a mistake may be any number of bounds away
        ratio = np.divide(error, size, out=np.zeros(error.shape), where=size != 0)
    return np.where(~np.isfinite(error) | ((size == 0) & (error != 0)), np.inf, ratio)
