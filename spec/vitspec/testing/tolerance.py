"""How far a correct implementation may be from the truth: error, price and bound.

There is no absolute tolerance. For an implementation that computes in precision u:

- the *truth* is the specification in float64, at inputs that are exact in the precision under test;
- the *error* of a tensor is its distance from the truth, relative to the truth's own size, in
  three metrics: `norm` (2-norm), `max` (largest entry), `slice` (the worst row by 2-norm);
- the *price* of the precision is the error of the specification itself in that precision, the
  worst of several runs with the sums in another order;
- the *bound* is 4 * price + 4 * u. A tensor conforms when its error is within it in all metrics.

A tensor that is exactly zero in truth must be exactly zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitspec.config import ViTConfig
from vitspec.typing import Array

PRICE_FACTOR = 4
ROUNDING_FACTOR = 4
METRICS = ("norm", "max", "slice")
BLOCK = 2**16
"""Numbers that are compared at once."""

Errors = dict[str, float]


@dataclass(frozen=True)
class Grade:
    """The verdict on one tensor, in the metric that decides it.

    Attributes:
        tensor: its flat name, or `logits`, or `image`.
        metric: the metric with the largest ratio.
        error: the implementation's error.
        price: the specification's own error in the same precision.
        bound: what the error may be.
    """

    tensor: str
    metric: str
    error: float
    price: float
    bound: float

    @property
    def ratio(self) -> float:
        """Error / bound: the tensor conforms up to 1."""
        return self.error / self.bound

    @property
    def conforms(self) -> bool:
        """Whether the error is within the bound; NaN is not."""
        return bool(self.error <= self.bound)


def errors(value: Array, truth: Array) -> Errors:
    """The relative error in each metric; infinite if only the truth is zero, or for NaN.

    Args:
        value: any float array, the shape of the truth.
        truth: float64.
    """
    if truth.size == 0:
        return dict.fromkeys(METRICS, 0.0)
    rows = truth.reshape(truth.shape[0], -1) if truth.ndim > 1 else truth.reshape(1, -1)
    values = value.reshape(rows.shape)
    at_once = max(1, BLOCK // rows.shape[1])  # rows whose difference stays in the cache
    blocks = []
    for start in range(0, len(rows), at_once):
        true_rows = rows[start : start + at_once]
        difference = values[start : start + at_once] - true_rows
        for part in (difference, true_rows):
            squares = np.einsum("ij,ij->i", part, part)
            blocks.append((np.sqrt(squares), np.maximum(part.max(), -part.min())))
    row_errors, row_sizes = (np.concatenate([b[0] for b in blocks[i::2]]) for i in (0, 1))
    largest_error, largest = (np.max([b[1] for b in blocks[i::2]]) for i in (0, 1))
    return {
        "norm": float(_ratio(np.linalg.norm(row_errors), np.linalg.norm(row_sizes))),
        "max": float(_ratio(largest_error, largest)),
        "slice": float(np.max(_ratio(row_errors, row_sizes))),
    }


def _ratio(error: Any, size: Any) -> Any:
    """error / size; 0 where both are 0, infinite where only the size is, or for NaN."""
    ratio = np.divide(error, size, out=np.zeros(np.shape(error)), where=np.not_equal(size, 0))
    wrong = ~np.isfinite(error) | ((size == 0) & (error != 0))
    return np.where(wrong, np.inf, ratio)


def grade(tensor: str, value: Array, truth: Array, prices: list[Errors]) -> Grade:
    """The verdict on one tensor.

    Args:
        tensor: its name.
        value: what the implementation computed; its dtype is the precision u.
        truth: float64, the same shape.
        prices: the errors of the specification's own runs in that precision.
    """
    u = float(np.finfo(value.dtype).eps) / 2
    found = errors(value, truth)
    grades = []
    for metric in METRICS:
        price = max(run[metric] for run in prices)
        bound = PRICE_FACTOR * price + ROUNDING_FACTOR * u
        grades.append(Grade(tensor, metric, found[metric], price, bound))
    return max(grades, key=lambda g: (not g.conforms, g.ratio))


# ---- the same function with its sums in another order ------------------------------------------

_AXES = {
    "patch_embed.kernel": "D...", "patch_embed.bias": "D", "cls_token": "D", "pos_enc.pos": ".D",
    "mha.wq": "DI", "mha.wk": "DI", "mha.wv": "DI", "mha.wo": "ID",
    "ffn.w1": "DF", "ffn.w2": "FD", "ffn.b1": "F", "ffn.b2": "D",
    "norm1_gamma": "D", "norm1_beta": "D", "norm2_gamma": "D", "norm2_beta": "D",
    "head.weights": ".D", "head.bias": ".",
}  # fmt: skip
"""Which axes of a parameter count features (D), hidden features (F) or heads' columns (I)."""


def reordering(
    config: ViTConfig, rng: np.random.Generator
) -> tuple[Callable[[Mapping[str, Array]], dict[str, Array]], ...]:
    """Two maps of flat dictionaries: into another order of the features, and back.

    The logits and the image's gradient of the reordered model are the same numbers, and its
    parameters' gradients are reordered alike; only the order of summation differs.
    """
    heads = rng.permutation(config.head_count)
    columns = heads[:, None] * config.head_dim + rng.permutation(config.head_dim)[None, :]
    orders = {
        "D": rng.permutation(config.embed_dim),
        "F": rng.permutation(config.hidden_dim),
        "I": columns.reshape(-1),
    }
    inverses = {axis: np.argsort(order) for axis, order in orders.items()}
    return (lambda flat: _take(flat, orders)), (lambda flat: _take(flat, inverses))


def _take(flat: Mapping[str, Array], orders: Mapping[str, Array]) -> dict[str, Array]:
    def reorder(name: str, array: Array) -> Array:
        kind = name.split(".", 3)[-1] if name.startswith("encoder.") else name
        for axis, label in enumerate(_AXES[kind]):
            if label in orders:
                array = array.take(orders[label], axis=axis)
        return array

    return {name: reorder(name, array) for name, array in flat.items()}
