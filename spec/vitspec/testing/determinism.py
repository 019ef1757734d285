"""Whether an implementation gives the same again; and where it does not, what kind of difference.

Equal inputs must give equal bits, unless the implementation says that it repeats to rounding only
(`repeats`), as one must whose sums run in an order that varies. What is rounding is decided by the
price of the precision, as everywhere else. What is not is told apart by calls at one point A and at
another, B:

    A A A      the results change by the same amount each time: they are added to the last ones
    A A B A    two calls in a row agree, but not with the first after B: something is kept from it
    otherwise  something is drawn at random, such as dropout
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vitspec.testing.description import TO_ROUNDING
from vitspec.testing.laws import changed_between_runs
from vitspec.testing.reference import Flat, Point
from vitspec.testing.tolerance import Grade, worst
from vitspec.testing.trial import Trial
from vitspec.typing import Array

AGREE = 1e-2
"""Two changes of a tensor are the same amount if they differ by no more than this part of it."""

ROUNDING = (
    "differs from run to run by rounding alone; if its sums run in an order that varies, as atomic "
    'additions on a GPU do, say so: repeats = "to rounding"'
)
ADDED = (
    "adds the gradients of each call to those of the calls before; set them to zero, or to None, "
    "before each"
)
KEPT = (
    "gives something else in the first call after one at another point; what does it keep from the "
    "call before: a buffer, a cache, running statistics?"
)
RANDOM = "gives something else on every run; is dropout on, or a seed not fixed?"


@dataclass(frozen=True)
class Difference:
    """What an implementation gives else when it is called again.

    Attributes:
        words: what, how much, and what to do; "" if every bit is the same.
        is_rounding: whether rounding explains it.
        allowed: whether the implementation may do so: by what it says of itself.
    """

    words: str = ""
    is_rounding: bool = True
    allowed: bool = True


def difference(trial: Trial, again: Flat | None = None) -> Difference:
    """What an implementation gives else when it is called again, there and after another point.

    Args:
        trial: where.
        again: what it gave when it was called for the second time there, if it was. Then it is not
            called at another point.
    """
    first, second = trial.found, again or trial.evaluate(trial.point)
    names = changed_between_runs(first, second)
    shapes = {name: np.shape(value) for name, value in second.items()}
    if strange := [name for name in names if np.shape(first[name]) != shapes.get(name)]:
        return Difference(f"{RANDOM} ({strange[0]} is not there again)", False, False)
    if names:
        third = trial.evaluate(trial.point)
        kind = _kind(trial, (first, second, third), names)
    elif again is None:
        trial.evaluate(elsewhere(trial.point))
        first, second = second, trial.evaluate(trial.point)
        names = changed_between_runs(first, second)
        kind = ROUNDING if _is_rounding(trial, first, second, names) else KEPT
    if not names:
        return Difference()
    allowed = kind is ROUNDING and trial.subject.repeats == TO_ROUNDING
    words = "repeats to rounding, as it says" if allowed else kind
    words = f"{words} ({_largest(trial, first, second, names)})"
    return Difference(words, kind is ROUNDING, allowed)


def elsewhere(point: Point) -> Point:
    """Another point of the same shapes: every number has another sign, and the parameters halve."""
    params = {name: -array / 2 for name, array in point.params.items()}
    return replace(point, params=params, images=-point.images, cotangent=-point.cotangent)


def _kind(trial: Trial, runs: tuple[Flat, Flat, Flat], names: list[str]) -> str:
    """What is said of results that changed between the first two of three calls in a row."""
    first, second, third = runs
    if _is_rounding(trial, first, second, names) and _is_rounding(trial, second, third, names):
        return ROUNDING
    steps = [(_step(first, second, name), _step(second, third, name)) for name in names]
    if all(np.linalg.norm(b - a) <= AGREE * np.linalg.norm(a) for a, b in steps):
        return ADDED
    return KEPT if _is_rounding(trial, second, third, names) else RANDOM


def _step(before: Flat, after: Flat, name: str) -> Array:
    step: Array = np.asarray(after[name], np.float64) - np.asarray(before[name], np.float64)
    return step


def _is_rounding(trial: Trial, before: Flat, after: Flat, names: list[str]) -> bool:
    """Whether rounding explains every change; nobody knows, where none has a price."""
    grades = _grades(trial, before, after, names)
    return bool(grades) and all(grade.conforms for grade in grades)


def _grades(trial: Trial, before: Flat, after: Flat, names: list[str]) -> list[Grade]:
    return [trial.compare(n, after[n], before[n]) for n in names if n in trial.prices]


def _largest(trial: Trial, before: Flat, after: Flat, names: list[str]) -> str:
    """The largest change, relative to its tensor and to what rounding explains."""
    more = f", and {len(names) - 1} more" if len(names) > 1 else ""
    grades = _grades(trial, before, after, names)
    if not grades:
        return f"{names[0]}{more}"
    one = worst(grades)
    size = "what cancels in it" if one.cancelled else "its size"
    explained = f"{one.ratio:.1e} of what rounding explains"
    return f"{one.tensor} by {one.error:.1e} of {size}, {explained}{more}"
