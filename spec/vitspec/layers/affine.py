"""Rows times a matrix, plus a bias that may be missing; and factors that may be missing.

Shapes: x (n, D), w (D, F) stored (in, out), b (F,), y (n, F).
"""

from __future__ import annotations

from vitspec import scalars
from vitspec.scalars import matmul
from vitspec.typing import Array


def affine(x: Array, w: Array, b: Array | None) -> Array:
    """x w + b; without a bias, x w."""
    y = matmul(x, w)
    return y if b is None else y + b


def affine_jvp(x: Array, w: Array, dx: Array, dw: Array, db: Array | None) -> Array:
    """The tangent dx w + x dw + db."""
    dy = matmul(dx, w) + matmul(x, dw)
    return dy if db is None else dy + db


def bias_backward(b: Array | None, d_y: Array) -> Array | None:
    """The cotangent of a bias, if there is one: the sum over the rows."""
    return None if b is None else scalars.total(d_y, axis=0)


def times(x: Array, factors: Array | None) -> Array:
    """x * factors; without factors, x."""
    return x if factors is None else x * factors
