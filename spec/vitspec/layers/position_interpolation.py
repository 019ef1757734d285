"""Learned positions for another grid: bicubic interpolation of a table.

A table has one row for each of g_h x g_w patches. For a grid of n_h x n_w, rows and columns are
interpolated one after the other, feature by feature:

    out[i, j] = sum_{k, l} A[i, k] B[j, l] table[k, l]
    A = weights(g_h, n_h),   B = weights(g_w, n_w)

Position i of n stands at s = (i + 1/2) g / n - 1/2 of the g old ones (pixels are squares: half-way
centres), and reads the four around it, k = floor(s) - 1 ... floor(s) + 2, those beyond the border
being the border's, with Keys' cubic weights at distance t = |s - k|:

    (a + 2) t^3 - (a + 3) t^2 + 1           t <= 1
    a t^3 - 5 a t^2 + 8 a t - 4 a           1 < t < 2,      a = -3/4

Hence each row of the weights adds up to 1. Fewer positions are not smoothed first (no
antialiasing). This is PyTorch's bicubic `interpolate` with align_corners=False and antialias=False,
which Hugging Face's models call. Others take a = -1/2 (PIL, JAX), align the corners (torchvision),
or smooth first (timm): other functions, with other results.

The map is linear in the table: it is its own JVP, and its backward is its transpose. The weights
are rational numbers, and computed as such.

Source: Keys, Cubic Convolution Interpolation for Digital Image Processing, 1981.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from vitspec import scalars
from vitspec.scalars import matmul
from vitspec.typing import Array, Scalar, typed

KEYS_A = Fraction(-3, 4)
"""The free parameter of the cubic weights; PyTorch's."""


def cubic_weight(t: Fraction) -> Fraction:
    """The weight of what is read from a distance t."""
    a = KEYS_A
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else Fraction(0)


def interpolation_weights(old: int, new: int, dtype: np.dtype) -> Scalar[Array, "{new} {old}"]:
    """The matrix A that reads `new` positions from `old` ones; the identity if they are as many.

    >>> interpolation_weights(2, 3, np.dtype(float)).sum(axis=1)
    array([1., 1., 1.])
    """
    weights = [[Fraction(0)] * old for _ in range(new)]
    for i, row in enumerate(weights):
        source = Fraction(2 * i + 1, 2) * Fraction(old, new) - Fraction(1, 2)
        below = source.numerator // source.denominator
        for k in range(below - 1, below + 3):
            row[min(max(k, 0), old - 1)] += cubic_weight(abs(source - k))
    return scalars.rationals(weights, dtype)


@typed
def interpolate_positions(
    table: Scalar[Array, "N D"], old: tuple[int, int], new: tuple[int, int]
) -> Scalar[Array, "M D"]:
    """The table of a grid `old` (rows, columns), row by row, read at those of a grid `new`."""
    return _apply(table, *_both(old, new, table.dtype))


@typed
def interpolate_positions_backward(
    d_out: Scalar[Array, "M D"], old: tuple[int, int], new: tuple[int, int]
) -> Scalar[Array, "N D"]:
    """The cotangent of the table: the transposed map."""
    rows, columns = _both(old, new, d_out.dtype)
    return _apply(d_out, rows.T, columns.T)


def _both(old: tuple[int, int], new: tuple[int, int], dtype: np.dtype) -> tuple[Array, Array]:
    return (
        interpolation_weights(old[0], new[0], dtype),
        interpolation_weights(old[1], new[1], dtype),
    )


def _apply(table: Array, rows: Array, columns: Array) -> Array:
    """sum_{k, l} rows[i, k] columns[j, l] table[k, l], with positions counted row by row."""
    (n_h, g_h), (n_w, g_w) = rows.shape, columns.shape
    D = table.shape[1]
    by_row = matmul(rows, table.reshape(g_h, g_w * D)).reshape(n_h, g_w, D)
    return matmul(columns, by_row).reshape(n_h * n_w, D)
