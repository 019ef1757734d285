"""The scalar worlds: what the specification computes with.

Lean's specification is polymorphic in its scalars, and so is this one. The same functions run on

- `float32`, `float64`, `longdouble`: floating point; the result has the input's type;
- `complex128` (`clongdouble`): the complex step. With x + i h v and h = 1e-100, Im f(x + i h v) / h
  is the derivative of f at x along v, to full precision, with no step size to choose;
- `object` arrays of `flint.arb`: the real numbers, as balls (a midpoint and a radius) of any
  precision. The result encloses the true value, so rounding error is bounded, not estimated.

The worlds differ only in how they order numbers and write constants, and this is the only file that
knows. Complex numbers are ordered by their real part and never conjugated. A comparison that balls
leave undecided widens the result; it never guesses. Exponentials, roots and products are NumPy's
own ufuncs, which call the elements' methods on object arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from vitspec import special
from vitspec.errors import InvalidArray
from vitspec.typing import Array

EPSILON = "1e-6"
"""Lean's `Numbers.epsilon`, in decimal, so that each world takes its own nearest value."""

PI = "3.14159265358979323846264338327950288419716939937510"

_OBJECT = np.dtype(object)


def scalar(value: int | str, dtype: np.dtype) -> Any:
    """An integer or a decimal as an element of the world of `dtype`.

    A float takes the nearest value, a ball encloses the decimal, so "1e-6" is Lean's epsilon
    in every world.
    """
    if dtype == _OBJECT:
        return arb_type()(value)
    real = np.zeros((), dtype).real.dtype.type(value)
    return dtype.type(real)


def rationals(values: Sequence[Sequence[Fraction]], dtype: np.dtype) -> Array:
    """A matrix of rational numbers, each as its nearest value, or enclosed."""
    if dtype == _OBJECT:
        balls = [[scalar(v.numerator, dtype) / v.denominator for v in row] for row in values]
        return np.array(balls, dtype)
    real = np.zeros((), dtype).real.dtype.type
    quotients = [[real(v.numerator) / real(v.denominator) for v in row] for row in values]
    return np.array(quotients, dtype)


def zeros(shape: tuple[int, ...], dtype: np.dtype) -> Array:
    """An array of zeros of the world of `dtype` (a new ball each, in the real world)."""
    return np.full(shape, scalar(0, dtype), dtype)


def ones(shape: tuple[int, ...], dtype: np.dtype) -> Array:
    """An array of ones of the world of `dtype`."""
    return np.full(shape, scalar(1, dtype), dtype)


def matmul(a: Array, b: Array) -> Array:
    """The matrix product a @ b, summed in the world of its arguments."""
    if a.dtype == _OBJECT and a.shape[-1] == 0:  # NumPy's empty sum of objects is the integer 0
        return zeros((a @ b).shape, a.dtype)
    # A BLAS kernel may raise the flag from what is left in a register's unused lanes (OpenBLAS's
    # float32 for AVX-512 does, where five numbers are summed). The sums are right; a NaN stays one.
    with np.errstate(invalid="ignore"):
        return np.matmul(a, b)


def total(x: Array, axis: int, keepdims: bool = False) -> Array:
    """The sum of x along an axis."""
    result = np.sum(x, axis=axis, keepdims=keepdims)
    if x.dtype == _OBJECT and x.shape[axis] == 0:  # as in `matmul`
        return zeros(result.shape, x.dtype)
    return result


def mean(x: Array, axis: int, keepdims: bool = False) -> Array:
    """The sum of x along an axis, then one division by the number of entries."""
    return total(x, axis, keepdims) / x.shape[axis]


def row_max(x: Array, where: Array | None = None) -> Array:
    """The largest entry of each row (last axis kept with size 1), ordered by the real part.

    Args:
        x: shape (..., n), n > 0.
        where: which entries count, shape broadcastable to x's; a row where none does gives 0.
    """
    if where is not None:
        return _row_max_where(x, np.broadcast_to(where, x.shape))
    if x.dtype == _OBJECT:
        return np.frompyfunc(_ball_max, 2, 1).reduce(x, axis=-1, keepdims=True)
    if np.iscomplexobj(x):
        return np.take_along_axis(x, x.real.argmax(axis=-1, keepdims=True), axis=-1)
    return x.max(axis=-1, keepdims=True)


def _row_max_where(x: Array, where: Array) -> Array:
    allowed = where.any(axis=-1, keepdims=True)
    # Replace what does not count by an entry of the row that does, then take the plain maximum.
    first = np.take_along_axis(x, where.argmax(axis=-1, keepdims=True), axis=-1)
    return np.where(allowed, row_max(np.where(where, x, first)), zeros((), x.dtype))


def maximum_with_zero(x: Array) -> Array:
    """max(x, 0), by the real part; NaN stays NaN. A ball that contains 0 gives an enclosure."""
    if x.dtype == _OBJECT:
        return np.frompyfunc(lambda ball: _ball_max(ball, arb_type()(0)), 1, 1)(x)
    if np.iscomplexobj(x):
        return np.where(x.real <= 0, x.dtype.type(0), x)
    return np.maximum(x, x.dtype.type(0))


def is_positive(x: Array) -> Array:
    """1 where x > 0, else 0, by the real part; a ball that contains 0 and more gives [0, 1]."""
    if x.dtype == _OBJECT:
        return np.frompyfunc(_ball_is_positive, 1, 1)(x)
    return (x.real > 0).astype(x.dtype)


def sign(x: Array) -> Array:
    """1, 0 or -1, by the real part; a ball that contains 0 gives an enclosure."""
    return is_positive(x) - is_positive(-x)


def pi(dtype: np.dtype) -> Any:
    """The number pi in the world of `dtype`."""
    return arb_type().pi() if dtype == _OBJECT else scalar(PI, dtype)


def erfc(x: Array) -> Array:
    """1 - erf(x), with erf(x) = 2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x.

    Complex numbers must be of a complex step: to the first order in the imaginary part y, this is
    erfc(x) - i y 2 exp(-x^2) / sqrt(pi), and the second order must be below all rounding.
    """
    if x.dtype == _OBJECT:
        return np.frompyfunc(lambda ball: ball.erfc(), 1, 1)(x)
    if not np.iscomplexobj(x):
        # An array whose every operation errs (the kit's) must not err at each step of an algorithm.
        own = getattr(x, "in_one_operation", None)
        return special.erfc(x) if own is None else own(special.erfc)
    real, imaginary = x.real, x.imag
    if imaginary.size and np.abs(imaginary).max() > 1e-20:
        raise InvalidArray(
            "erfc: complex numbers are for the complex step here, with imaginary parts below 1e-20,"
            f" got {np.abs(imaginary).max():.1e}"
        )
    slope = -2 * np.exp(-real * real) / np.sqrt(pi(real.dtype))
    return special.erfc(real) + 1j * (slope * imaginary)


def is_world(x: Array) -> bool:
    """Whether the entries are scalars; object arrays must hold balls."""
    if x.dtype != _OBJECT or x.size == 0:
        return True
    arb = arb_type()
    return all(isinstance(entry, arb) for entry in x.flat)


def all_finite(x: Array) -> bool:
    """Whether no entry is infinite, undefined, or a ball without bounds."""
    if x.dtype == _OBJECT:
        return all(ball.is_finite() for ball in x.flat)
    return bool(np.isfinite(x).all())


def _ball_max(a: Any, b: Any) -> Any:
    return a.max(b)


def _ball_is_positive(ball: Any) -> Any:
    arb = arb_type()
    if ball > 0:
        return arb(1)
    return arb(0) if ball <= 0 else arb(0.5, 0.5)


def arb_type() -> Any:
    """The class `flint.arb`; an ImportError that names the extra, if it is not installed."""
    try:
        from flint import arb
    except ImportError as error:
        raise ImportError(
            "real balls need the extra 'reals': python -m pip install 'vitspec[reals]'"
        ) from error
    return arb
