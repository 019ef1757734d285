"""The derivative of a function of one number, and how uncertain it is.

Central differences at steps that halve, extrapolated to step 0 (Romberg's scheme; its second column
is the four-point rule). Every entry of the scheme comes with an estimate of its error:

- *truncation*: by how much the extrapolation still moves;
- *rounding*: the function's noise divided by the step;
- *kinks*: where a ReLU opens or closes, the slopes on the two sides differ. One between the sampled
  points makes the extrapolation move, as truncation does. One at the centre moves nothing, so it is
  looked for: (f(h) + f(-h) - 2 f(0)) / h extrapolates to the difference of the two slopes.

Steps shrink until the smallest estimate is found, so kinks are avoided where that is possible, and
reported as uncertainty where it is not. Large steps over several kinks may agree by chance, so some
smaller ones, which meet fewer, must confirm them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

FIRST_STEP = 2.0**-4
LEVELS = 30
COLUMNS = 6
CONFIRMATIONS = 3
"""How many smaller steps must not find a better value."""


class Slope(NamedTuple):
    """A derivative and the estimate of its error."""

    value: float
    error: float


def slope(f: Callable[[float], float], noise: float) -> Slope:
    """The derivative at 0 of a function that is 0 there.

    Args:
        f: the function.
        noise: by how much rounding moves its values.

    >>> import math
    >>> value, error = slope(math.sin, noise=2.0**-53)
    >>> abs(value - 1) <= error <= 1e-13
    True
    >>> value, error = slope(lambda t: max(t, 0.0), noise=2.0**-53)
    >>> f"{value:.3f}, give or take {error:.3f}"
    '0.500, give or take 1.000'
    """
    best = Slope(0.0, float("inf"))
    slopes: list[float] = []
    kinks: list[float] = []
    candidates: list[Slope] = []
    since = 0
    for level in range(LEVELS):
        h = FIRST_STEP * 2.0**-level
        rounding = 2 * noise / h
        up, down = f(h), f(-h)
        previous = slopes
        slopes = _extrapolated((up - down) / (2 * h), slopes, first_power=2)
        kinks = _extrapolated((up + down) / h, kinks, first_power=1)
        if level:
            confirmed = slopes[1], 4 * rounding
            candidates = [_confirmed(candidate, *confirmed) for candidate in candidates]
        for column in range(1, len(slopes)):
            moved = max(
                abs(slopes[column] - slopes[column - 1]),
                abs(slopes[column] - previous[column - 1]),
            )
            candidates.append(Slope(slopes[column], moved + rounding + abs(kinks[column])))
        last, best = best, min(candidates, key=lambda c: c.error, default=best)
        since = since + 1 if best == last else 0
        if since == CONFIRMATIONS:
            break
    return best


def _confirmed(candidate: Slope, value: float, uncertainty: float) -> Slope:
    """The candidate, less certain if the four-point rule at a smaller step is elsewhere."""
    excess = abs(candidate.value - value) - uncertainty
    return Slope(candidate.value, max(candidate.error, excess))


def _extrapolated(value: float, previous: list[float], first_power: int) -> list[float]:
    """The next row of the scheme, for errors h^p, h^(p + 2), ... with p = first_power."""
    row = [value]
    for column, above in enumerate(previous[: COLUMNS - 1]):
        factor = 2.0 ** (first_power + 2 * column)
        row.append((factor * row[-1] - above) / (factor - 1))
    return row
