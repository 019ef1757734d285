"""An implementation at one point: what it computes, the truth, and the verdict on each tensor.

A `Trial` evaluates once what several checks share: the implementation, the truth, and the price of
its precision.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from vitspec.testing.confirmation import GROSS, Witness, judged, step
from vitspec.testing.explanation import NEAR, explained
from vitspec.testing.families import KINK_MARGIN, AnyCase
from vitspec.testing.implementations import Subject
from vitspec.testing.noise import SUSPICION, Suspicion, first_look
from vitspec.testing.precision import Precision
from vitspec.testing.reference import CASE_RUNS, Flat, Point, Reference
from vitspec.testing.results import WHOLE, Place, Result, graded
from vitspec.testing.tolerance import Confirmation, Grade, Price, grade, worst

CLOSE = 2.5
"""A z of the first look by which more noisy runs are worth their time."""
LARGE, FEW_RUNS = 10**6, 2
"""Of so many parameters, noisy runs are few and not kept entry by entry."""
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
        rng: what the checks draw from; the noise and new points have streams of their own.
        runs: the number of noisy runs; by default as many as the point's size allows.
        place: what results call it.
        description: the same in words.
        taps: whether truth and prices include intermediate values.
        margin: how far from 0 the inputs of ReLUs stay at new points.
        case: the small case that the point is of, if it is of one.
        structured: whether the point's arrays have a structure that new points must keep.
    """

    def __init__(
        self,
        subject: Subject,
        point: Point,
        rng: np.random.Generator,
        runs: int | None = None,
        place: Place = WHOLE,
        description: str = "",
        taps: bool = False,
        structured: bool = False,
        margin: float | None = None,
        case: AnyCase | None = None,
    ) -> None:
        self.subject, self.point, self.precision = subject, point, subject.precision
        self.rng, self.place, self.case = rng, place, case
        of_noise, self._of_points = rng.spawn(2)
        runs = runs or (FEW_RUNS if sum(map(np.size, point.params.values())) > LARGE else CASE_RUNS)
        self.reference = Reference(point, subject.precision, of_noise, runs, taps)
        self.margin = kink_margin(subject.precision) if margin is None else margin
        self.structured = structured
        self.description = description or str(point)

    @cached_property
    def found(self) -> Flat:
        """What the implementation computes: logits, taps, and gradients if it has any."""
        return self.evaluate(self.point)

    @property
    def truth(self) -> Flat:
        """What the specification computes in float64."""
        return self.reference.truth

    @property
    def prices(self) -> dict[str, Price]:
        """What the precision costs each tensor."""
        return self.reference.prices

    @cached_property
    def grades(self) -> dict[str, Grade]:
        """The verdict on each tensor that the implementation computed."""
        return self._judged() if self.reference.small else self._judged_whole()

    def looks(self, found: Flat) -> dict[str, tuple[Grade, tuple[Suspicion, ...]]]:
        """The first look at what was found at this small point, with more runs if it is close."""
        there = self.reference
        looks = {n: first_look(n, found[n], one) for n, one in there.noises.items() if n in found}
        if all(look.ratio <= CLOSE / SUSPICION for look, _ in looks.values()):
            return looks
        return {name: first_look(name, found[name], there.more_noises[name]) for name in looks}

    def _judged(self) -> dict[str, Grade]:
        """The first look, and what new points say of its suspicions."""
        looks = self.looks(self.found)
        grades = {name: look for name, (look, _) in looks.items()}
        suspicions = [one for _, several in looks.values() for one in several]
        return grades | self._explained(self.asked(suspicions)) if suspicions else grades

    def asked(self, suspicions: Sequence[Suspicion]) -> dict[str, Grade]:
        """The verdicts on suspected tensors, by new points."""
        witness = Witness(
            self.reference, self.found, self.evaluate, self.neighbour, self._of_points
        )
        return judged(suspicions, witness)

    def _explained(self, grades: dict[str, Grade]) -> dict[str, Grade]:
        """The same, and for the worst what would explain it, if none is far beyond rounding."""
        bad = [one for one in grades.values() if one.confirmation and not one.conforms]
        if not bad or self.precision.u > 2.0**-20:
            return grades
        if not all(abs(one.confirmation.mean) <= NEAR for one in bad if one.confirmation):
            return grades
        first = worst(bad)
        words = explained(self.subject, self.reference, self.found, self._of_points)
        confirmation = first.confirmation and replace(first.confirmation, explanation=words)
        return grades | {first.tensor: replace(first, confirmation=confirmation)}

    def _judged_whole(self) -> dict[str, Grade]:
        """The same at full size, by norms alone; what is beyond its bound must be so once more."""
        names = [name for name in self.truth if name in self.found]
        found = {n: grade(n, self.found[n], self.truth[n], self.prices[n]) for n in names}
        doubtful = [name for name, one in found.items() if not one.ratio <= 1]
        doubtful = [name for name in doubtful if found[name].ratio <= GROSS / SUSPICION]
        if not doubtful:
            return found
        point = self.neighbour(step(self.precision))
        runs, taps = self.reference.runs, self.reference.taps
        there = type(self)(self.subject, point, self._of_points, runs, self.place, taps=taps)
        for name in doubtful:
            one = grade(name, there.found[name], there.truth[name], there.prices[name])
            outcome: Literal["confirmed", "cleared"] = "cleared" if one.conforms else "confirmed"
            confirmation = Confirmation(outcome, SUSPICION * one.ratio, 1)
            found[name] = replace(found[name], confirmation=confirmation)
        return found

    def neighbour(self, by: float) -> Point:
        """A new point, moved by so much, away from kinks and exact in the precision."""
        point = self.point.moved(self._of_points, by, self.structured)
        return point.away_from_kinks(self.margin).rounded(self.precision)

    def stream(self, check: str) -> np.random.Generator:
        """What a check draws from, whatever other checks have drawn."""
        seed: Any = self.rng.bit_generator.seed_seq
        entropy = np.atleast_1d(seed.entropy).tolist()
        return np.random.default_rng([*entropy, *seed.spawn_key, zlib.crc32(check.encode())])

    def evaluate(self, point: Point) -> Flat:
        """The implementation's results at another point."""
        return self.subject.evaluate(point)

    def gradients(self, cotangent: Any) -> Flat:
        """The implementation's gradients for another cotangent, rounded to the precision."""
        point = replace(self.point, cotangent=np.asarray(cotangent, np.float64))
        return self.subject.vjp(point.rounded(self.precision))

    def grade(self, name: str) -> Grade:
        """The verdict on one tensor."""
        return self.grades[name]

    def compare(self, name: str, value: Any, expected: Any, price: Price | None = None) -> Grade:
        """The verdict on a tensor that must equal another of the implementation's own.

        Args:
            name: the tensor.
            value: one of them.
            expected: the other.
            price: what the precision costs it; by default what it costs at the trial's point.
        """
        price = self.prices[name] if price is None else price
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
    return Trial(subject, point, rng, place=place, description=repr(case), taps=taps, case=case)
