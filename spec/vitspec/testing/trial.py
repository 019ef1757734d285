"""An implementation at one point: what it computes, the truth, and the verdict on each tensor.

A `Trial` evaluates once what several checks share: the implementation, the truth, and the price of
its precision.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from vitspec.testing.families import KINK_MARGIN, AnyCase
from vitspec.testing.implementations import Subject
from vitspec.testing.precision import Precision
from vitspec.testing.reference import Flat, Point, evaluate_spec, price_spec
from vitspec.testing.results import WHOLE, Place, Result, graded
from vitspec.testing.tolerance import Grade, Price, grade

CASE_RUNS = 12
"""Noise runs that set the price of a small case, where each is a small sample of rounding."""
LAW_FACTOR = 8.0
"""How many times wider a law's bound is: both of its sides have rounding errors, and perhaps larger
ones than the specification's."""


def kink_margin(precision: Precision) -> float:
    """How far from 0 the inputs of a small case's ReLUs stay: rounding cannot take one across."""
    return max(KINK_MARGIN, 32 * precision.u)


class Trial:
    """What is found, true and allowed at one point.

    Args:
        subject: what is checked.
        point: where; exact in the subject's precision.
        rng: for the noise runs and whatever the checks draw.
        runs: the number of noise runs.
        place: what results call it.
        description: the same in words.
        taps: whether truth and prices include intermediate values.
    """

    def __init__(
        self,
        subject: Subject,
        point: Point,
        rng: np.random.Generator,
        runs: int = CASE_RUNS,
        place: Place = WHOLE,
        description: str = "",
        taps: bool = False,
    ) -> None:
        self.subject, self.point, self.precision = subject, point, subject.precision
        self.rng, self.runs, self.place, self.taps = rng, runs, place, taps
        self.description = description or str(point)

    @cached_property
    def found(self) -> Flat:
        """What the implementation computes: logits, taps, and gradients if it has any."""
        return self.evaluate(self.point)

    @cached_property
    def truth(self) -> Flat:
        """What the specification computes in float64."""
        return evaluate_spec(self.point, taps=self.taps)

    @cached_property
    def prices(self) -> dict[str, Price]:
        """What the precision costs each tensor."""
        # At full size float32 halves the time, and the noise is larger than its own rounding.
        carrier = self.precision.carrier if self.runs < CASE_RUNS else "float64"
        return price_spec(
            self.point, self.truth, self.precision, self.runs, self.rng, carrier, self.taps
        )

    def evaluate(self, point: Point) -> Flat:
        """The implementation's results at another point."""
        return self.subject.evaluate(point)

    def gradients(self, cotangent: Any) -> Flat:
        """The implementation's gradients for another cotangent, rounded to the precision."""
        point = replace(self.point, cotangent=np.asarray(cotangent, np.float64))
        return self.subject.vjp(point.rounded(self.precision))

    def grade(self, name: str) -> Grade:
        """The verdict on one tensor."""
        return grade(name, self.found[name], self.truth[name], self.prices[name])

    def compare(self, name: str, value: Any, expected: Any, scale: float = 1.0) -> Grade:
        """The verdict on a tensor that must equal another of the implementation's own.

        Args:
            name: the tensor.
            value: one of them.
            expected: the other.
            scale: how much larger they are than at the trial's point.
        """
        price = self.prices[name].scaled(scale)
        return grade(name, value, np.asarray(expected, np.float64), price, LAW_FACTOR)

    def result(self, check: str, grades: Any) -> Result:
        """The result of a check of this trial."""
        return graded(check, self.place, grades, self.description)

    def skip(self, check: str, reason: str) -> Result:
        """A check that does not apply."""
        return Result(check, self.place, "skipped", reason=reason, point=self.description)


def case_trial(subject: Subject, case: AnyCase, place: Place = WHOLE, taps: bool = False) -> Trial:
    """The trial of one small case."""
    margin, rng = kink_margin(subject.precision), np.random.default_rng([case.seed, 3])
    point = Point.of(case).away_from_kinks(margin).rounded(subject.precision)
    return Trial(subject, point, rng, place=place, description=repr(case), taps=taps)
