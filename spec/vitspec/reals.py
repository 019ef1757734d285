"""From floats to real numbers and back, and the derivative by the complex step.

`to_reals` turns floats into balls of radius 0, exactly. What the specification computes with them
*encloses* the true value, at any precision one likes; so `distance_bound` proves how far a float
result is from the truth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vitspec.errors import InvalidArray
from vitspec.scalars import arb_type
from vitspec.typing import Array


def complex_step_derivative(f: Callable[[Any], Array], x: Any, v: Any) -> Array:
    """The derivative of f at x along v by the complex step, to full precision.

    Ordering looks at the real part, so at a kink the derivative is that of the side which the
    specification takes: relu'(0) = 0. The derivative along parameters and image together is the sum
    of two calls.

    Args:
        f: a function of one array or record, made of the specification's functions.
        x: where; an array or a record of float32, float64 or longdouble.
        v: along what; the same structure, shapes and scalar type as x.

    Returns:
        Im f(x + i h v) / h with h = 1e-100: the shape of f(x); float64, or longdouble for
        longdouble.

    Raises:
        InvalidArray: x and v differ in shape or scalar type, or are not of floats.

    >>> complex_step_derivative(np.exp, np.array([0.0]), np.array([2.0]))
    array([2.])
    """
    if x.dtype != v.dtype or not np.issubdtype(x.dtype, np.floating):
        raise InvalidArray(
            f"complex_step_derivative: x and v must be of one float type, got {x.dtype}, {v.dtype}"
        )
    dtype = np.clongdouble if x.dtype == np.longdouble else np.complex128
    step = dtype(1e-100)

    def shift(a: Array, b: Array) -> Array:
        _require_same_shape("complex_step_derivative", a, b)
        return a + 1j * step * b

    at, along = x.astype(dtype), v.astype(dtype)
    shifted = at.map(shift, along) if hasattr(at, "map") else shift(at, along)
    return np.imag(f(shifted)) / step.real


def to_reals(x: Any, bits: int = 128) -> Any:
    """The same numbers, exactly, as real balls of radius 0.

    python-flint computes at one working precision; it is raised to `bits` if it is lower.

    Args:
        x: an array or a record of floats.
        bits: the precision to compute with, at least 64.

    Returns:
        x with each array replaced by an `object` array of `flint.arb`.

    Raises:
        ImportError: python-flint is missing (extra `reals`).
        ValueError: `bits` is below 64, or x is not of real floats.
    """
    if bits < 64:
        raise ValueError(f"bits must be at least 64, to hold every float exactly; got {bits}")
    arb = arb_type()
    import flint

    flint.ctx.prec = max(flint.ctx.prec, bits)

    def convert(array: Any) -> Array:
        if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.floating):
            given = getattr(array, "dtype", type(array).__name__)
            raise ValueError(f"to_reals converts float arrays, got {given}")
        # A longdouble does not fit into one Python float, but into the sum of two, times a power
        # of two.
        mantissa, exponent = np.frexp(array)
        high = mantissa.astype(np.float64)
        low = np.where(np.isfinite(array), mantissa - np.where(np.isfinite(high), high, 0), 0)
        parts = zip(high.flat, low.astype(np.float64).flat, exponent.flat, strict=True)
        balls = [(arb(h) + arb(rest)) * arb(2) ** int(e) for h, rest, e in parts]
        return np.array(balls, dtype=object).reshape(array.shape)

    return x.map(convert) if hasattr(x, "map") else convert(x)


def from_reals(x: Any, dtype: Any = np.float64) -> Any:
    """The midpoints of real balls, rounded to a float type; the way back from `to_reals`.

    Args:
        x: an `object` array of balls, or a record of them.
        dtype: float32, float64 or longdouble.

    Raises:
        ValueError: x is not of balls.
    """
    arb = arb_type()
    target = np.dtype(dtype)

    def nearest(ball: Any) -> Any:
        if not isinstance(ball, arb):
            raise ValueError(f"from_reals converts arrays of flint.arb, got {type(ball).__name__}")
        middle = ball.mid()
        if target != np.longdouble or not middle.is_finite() or middle.is_zero():
            return target.type(float(middle))
        # The mantissa in two parts, as in `to_reals`.
        mantissa, exponent = middle.man_exp()
        places = int(mantissa.bit_length())
        scaled = arb(mantissa) * arb(2) ** -places
        high = float(scaled)
        low = float(scaled - arb(high))
        return np.ldexp(target.type(high) + target.type(low), int(exponent) + places)

    def convert(array: Array) -> Array:
        return np.array([nearest(b) for b in array.flat], target).reshape(array.shape)

    return x.map(convert) if hasattr(x, "map") else convert(x)


def radius(x: Array) -> Array:
    """Upper bounds of the balls' radii, float64, the shape of x."""
    return np.array([_above(ball.rad()) for ball in x.flat]).reshape(x.shape)


def encloses(balls: Array, values: Array) -> Array:
    """Where each ball contains the float beside it; Boolean, the shape of both.

    A float that was rounded is usually *outside* its 128-bit ball, which is far narrower than one
    rounding; `distance_bound` tells how far. A wrong value is outside by much.
    """
    _require_same_shape("encloses", balls, values)
    pairs = zip(balls.flat, to_reals(values).flat, strict=True)
    return np.array([bool(ball.contains(value)) for ball, value in pairs]).reshape(balls.shape)


def distance_bound(balls: Array, values: Array) -> Array:
    """Rigorous upper bounds of |value - true value|, float64, the shape of both.

    The true value is anywhere in its ball, so the bound is the distance to its far end.
    """
    _require_same_shape("distance_bound", balls, values)
    pairs = zip(balls.flat, to_reals(values).flat, strict=True)
    return np.array([_above(value - ball) for ball, value in pairs]).reshape(balls.shape)


def _above(ball: Any) -> float:
    """A float that is at least as large as every number of the ball, in magnitude."""
    upper = ball.abs_upper()
    # The conversion may round down by less than one unit in the last place.
    return 0.0 if upper.is_zero() else float(np.nextafter(float(upper), np.inf))


def _require_same_shape(where: str, a: Array, b: Array) -> None:
    if a.shape != b.shape:
        raise InvalidArray(f"{where}: expected two arrays of one shape, got {a.shape}, {b.shape}")
