"""The complementary error function on floats, to about one unit in the last place.

    erfc(x) = 2 / sqrt(pi) times the integral of exp(-t^2) from x to infinity

is read from a table at the nearest node c = k / n, and carried over the rest h = x - c of at most
1 / 2n by the Taylor series of the integral between the two:

    erfc(c + h) = erfc(c) - h s(c) E(2 c h, h^2),    s(c) = 2 exp(-c^2) / sqrt(pi)
    E(y, z)     = int_0^1 exp(-y t - z t^2) dt = sum_{j, m} (-z)^j (-y)^m / (j! m! (2 j + m + 1))

Nothing cancels: the second term is a small part of the first, and h is exact. With erfc(c) in two
parts, the nearest float and what is missing, the last rounding is most of the error, in the middle,
where 1 - erf(x) would do, and in the tail, where it would not: at most 0.8 units in the last place,
and 1.1 next to the smallest normal number, where the second part has lost its digits. There is no
exponential to compute and hardly a case to tell from another: a few dozen operations on whole
arrays.

The tables are made when they are first needed, of decimal numbers with more than twice the digits
of the type: at the last node erfc is its continued fraction

    erfc(x) = exp(-x^2) / sqrt(pi) / (x + (1/2) / (x + (2/2) / (x + (3/2) / (x + ...))))

and from node to node down to 0 the series above, whose terms are then all positive.

Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.2, 7.1.14; a table with a
series around its nodes: P. T. P. Tang, Table-driven implementation of the exponential function in
IEEE floating-point arithmetic, 1989.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from functools import cache
from typing import Any

import numpy as np

from vitspec.typing import Array

CHUNK = 8192
"""Entries at a time, so that they and what is computed of them stay in the processor's cache."""

_SQRT_PI = Decimal("1.7724538509055160272981674833411451827975494561223871282138077898529")
_LEVELS = 200  # of the continued fraction; from 6 on this is good for more than 60 digits


@dataclass(frozen=True)
class Region:
    """The nodes k / per_unit from `first` to `last`; an entry beyond them is taken to the end."""

    first: int
    last: int
    per_unit: int


NEAR = {
    np.float32: Region(-11, 11, 128),
    np.float64: Region(-6, 6, 256),
    np.longdouble: Region(-9, 9, 64),
}
"""Below the first node, erfc(x) is 2 to the last place."""
FAR = Region(6, 28, 256)
"""For float64; beyond the last node, erfc(x) is 0. A longdouble's tail is done one by one."""


@dataclass(frozen=True)
class Table:
    """What is read at the nodes, and the coefficients of E: for each power of z, those in y."""

    high: Array
    low: Array
    slope: Array
    powers: tuple[tuple[Any, ...], ...]


def erfc(x: Array) -> Array:
    """1 - erf(x) in x's own type: float32, float64 or longdouble, of any shape."""
    x = np.asarray(x)
    flat, result = x.reshape(-1), np.empty(x.size, x.dtype)
    for start in range(0, x.size, CHUNK):
        part = flat[start : start + CHUNK]
        result[start : start + CHUNK] = _erfc_chunk(part)
    return result.reshape(x.shape)


def _erfc_chunk(x: Array) -> Array:
    kind: Any = x.dtype.type
    near = NEAR[kind]
    result = _from_table(x, near, _table(kind, near))
    if kind is not np.float32 and (far := np.flatnonzero(x > near.last)).size:
        if kind is np.float64:
            result[far] = _from_table(x[far], FAR, _table(kind, FAR))
        else:
            result[far] = [_longdouble_tail(one) for one in x[far]]
    return result


def _from_table(x: Array, region: Region, table: Table) -> Array:
    """erfc(c) - h s(c) E(2 c h, h^2), c being each entry's nearest node; NaN stays NaN."""
    kind = x.dtype.type
    first, last, n = kind(region.first), kind(region.last), kind(region.per_unit)
    x = np.minimum(np.maximum(x, first), last)
    c = np.rint(x * n)
    # For NaN any node will do, as h is NaN too.
    index = (np.fmax(c, first * n) - first * n).astype(np.intp)
    c *= 1 / n
    h = x - c
    c *= 2 * h
    carried = _integral(c, h * h, table.powers)
    carried *= h
    carried *= table.slope.take(index, mode="clip")
    carried -= table.low.take(index, mode="clip")
    return table.high.take(index, mode="clip") - carried


def _integral(y: Array, z: Array, powers: tuple[tuple[Any, ...], ...]) -> Array:
    """E(y, z), by Horner's rule in z with Horner's rule in y inside."""
    total = _polynomial(y, powers[-1])
    for coefficients in reversed(powers[:-1]):
        total *= z
        total += _polynomial(y, coefficients)
    return total


def _polynomial(y: Array, coefficients: tuple[Any, ...]) -> Array:
    total = np.full_like(y, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total *= y
        total += coefficient
    return total


# ---- the tables ----------------------------------------------------------------------------------


@cache
def _table(kind: Any, region: Region) -> Table:
    """The table of a region, computed to more than twice the type's own digits."""
    n = region.per_unit
    with localcontext(Context(prec=2 * np.finfo(kind).precision + 10)):
        values, slopes = _nodes(max(region.first, 0) * n, region.last * n, n)
        if region.first < 0:  # erfc(-c) = 2 - erfc(c)
            values = [2 - value for value in reversed(values[1:])] + values
            slopes = [*reversed(slopes[1:]), *slopes]
        high = [kind(str(value)) for value in values]
        low = [kind(str(v - _decimal(h))) for v, h in zip(values, high, strict=True)]
        slope = [kind(str(value)) for value in slopes]
    return Table(
        np.array(high, kind), np.array(low, kind), np.array(slope, kind), _powers(kind, region)
    )


def _nodes(first: int, last: int, n: int) -> tuple[list[Decimal], list[Decimal]]:
    """erfc and s at k / n for k from `first` to `last`, in the current decimal context."""
    d, c = 1 / Decimal(n), Decimal(last) / n
    value, slope = _tail(c), 2 * (-c * c).exp() / _SQRT_PI
    growth, shrink = (2 * c * d - d * d).exp(), (-2 * d * d).exp()  # s(c - d) = s(c) growth
    values, slopes = [value], [slope]
    for k in range(last, first, -1):
        value += d * slope * _series(-2 * d * k / n, d * d)
        slope, growth = slope * growth, growth * shrink
        values.append(value)
        slopes.append(slope)
    return values[::-1], slopes[::-1]


def _series(y: Decimal, z: Decimal) -> Decimal:
    """E(y, z) = sum_m b_m / (m + 1), the integral of exp(-y t - z t^2) = sum_m b_m t^m.

    By the differential equation of the integrand, (m + 1) b_{m+1} = -y b_m - 2 z b_{m-1}.
    """
    total, m, before, term = Decimal(0), 0, Decimal(0), Decimal(1)
    while (new := total + term / (m + 1)) != total:
        total, before, term, m = new, term, (-y * term - 2 * z * before) / (m + 1), m + 1
    return total


def _tail(x: Decimal) -> Decimal:
    """erfc(x) for x >= 6, by the continued fraction, in the current decimal context."""
    below = x
    for level in range(_LEVELS, 0, -1):
        below = x + Decimal(level) / 2 / below
    return (-x * x).exp() / _SQRT_PI / below


def _longdouble_tail(x: Any) -> Any:
    if np.isinf(x):
        return np.longdouble(0)
    with localcontext(Context(prec=2 * np.finfo(np.longdouble).precision + 10)):
        return np.longdouble(str(_tail(_decimal(x))))


def _decimal(x: Any) -> Decimal:
    numerator, denominator = x.as_integer_ratio()
    return Decimal(numerator) / Decimal(denominator)


def _powers(kind: Any, region: Region) -> tuple[tuple[Any, ...], ...]:
    """The coefficients of E, for each power of z those in y, as far as they matter."""
    h = 0.5 / region.per_unit
    y, z = 2 * region.last * h, h * h
    # What E is multiplied by is at most about 2 h (c + 1) of the result: so is E's error.
    enough = np.finfo(kind).eps / 64 / (2 * h * (region.last + 1))
    powers = []
    for j in range(20):
        row = []
        for m in range(40):
            denominator = math.factorial(j) * math.factorial(m) * (2 * j + m + 1)
            if z**j * y**m / denominator < enough:
                break
            row.append(kind((-1) ** (j + m)) / kind(denominator))
        if not row:
            break
        powers.append(tuple(row))
    return tuple(powers)
