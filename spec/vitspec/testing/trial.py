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
from vitspec.testing.implementations import AdapterError, Subject
from vitspec.testing.precision import Precision
from vitspec.testing.reference import Flat, Point, evaluate_spec, price_spec
from vitspec.testing.results import WHOLE, Place, Result, graded
from vitspec.testing.tolerance import Grade, Price, grade

CASE_RUNS = 12
"""Noise runs that set the price of a small case, where each is a small sample of rounding."""
LAW_FACTOR = 8.0
"""A law compares results that all err, perhaps of a function that rounds worse than the truth."""


def kink_margin(precision: Precision) -> float:
    """How far a small case keeps the inputs of its ReLUs from 0, out of the precision's reach."""
    return max(KINK_MARGIN, 32 * precision.u)


class Trial:
    """An implementation at one point.

    Args:
        subject: what is checked.
        point: where; exact in the subject's precision.
        rng: for the noise runs and whatever the checks draw.
        runs: the number of noise runs.
        place: what results call it.
        description: the same in words.
        taps: whether intermediate values are compared too.
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
        """The implementation elsewhere."""
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


# ---- first of all: is it an adapter? -----------------------------------------------------------

GROSS = 2**10
"""Two runs that differ by this many roundings are no matter of the order of sums."""


def smoke(subject: Subject, config: Any = None) -> Any:
    """Whether the adapter works at all: shapes, types, finite numbers, on two images.

    Returns:
        The configuration that it was tried on.

    Raises:
        AdapterError: it does not; nothing else is worth running.
    """
    family, name = subject.family, subject.name
    candidates = [config] if config else [subject.closest(c) for c in family.smoke_configs]
    reasons = [subject.why_unsupported(c) for c in candidates]
    if all(reasons):
        raise AdapterError(
            f"{name} supports none of the configurations that were tried "
            f"(the last, {candidates[-1]!r}: {reasons[-1]}); name one that it does: --config"
        )
    case = family.smoke_case(candidates[reasons.index(None)])
    trial = Trial(subject, Point.of(case).rounded(subject.precision), np.random.default_rng(0))
    before = {name: leaf.tobytes() for name, leaf in trial.point.params.items()}
    found = trial.found
    wrong = [n for n, value in found.items() if not np.isfinite(np.asarray(value, float)).all()]
    if wrong:
        raise AdapterError(f"{name} gave NaN or infinity on {case}: {', '.join(sorted(wrong)[:5])}")
    if any(leaf.tobytes() != before[n] for n, leaf in trial.point.params.items()):
        raise AdapterError(f"{name} changed its parameters")
    again = trial.evaluate(trial.point)
    for tensor, value in found.items():
        apart = np.linalg.norm(np.asarray(again[tensor], float) - np.asarray(value, float))
        size = np.linalg.norm(value)
        if apart > GROSS * subject.precision.u * size:
            raise AdapterError(
                f"{name} gives something else on every run: {tensor} moved by "
                f"{apart / size:.0e} of its size; is dropout on, or a seed not fixed?"
            )
    return case.config
