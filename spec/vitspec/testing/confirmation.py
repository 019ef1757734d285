"""Confirmation: whether an error that stands out at one point still does at new ones.

Rounding is drawn anew at every point; a mistake stays. So a suspicion of the first look
(`vitspec.testing.noise`), a direction w in which the error stands out, is asked again at points
moved by some hundred roundings, with truths of their own and noise drawn at the first four. With

    z_k = <w, e_k> / (s(w) F_k)

at the k-th new point, where e_k is the implementation's error, the mean M of K such z decides:

    confirmed   as soon as  |M| > PERSISTENT + FLUCTUATION / sqrt(K)
    cleared     as soon as  |M| <= PERSISTENT, or at the last look

at K = 4, 16 and 64; one beyond `SURE` at the first new point is confirmed there. The direction is
chosen at the first point, which is not among the K. So if every operation errs within the table,
independently and without a bias, each z_k is sub-Gaussian of
variance 3 at most (Hoeffding), and one look rejects correct code with a probability of at most
2 exp(-FLUCTUATION^2 / 6) = 8e-11. PERSISTENT allows for what correct code has in common at
neighbouring points, such as the error of an approximated erf; in a coarse precision (u > 2^-20),
whose neighbours are so few roundings away that these persist in part, it is PERSISTENT_IF_COARSE.
F_k is 1, but where a point is ill-posed: the noise is not what the precision costs there, since the
specification itself, rounded operation by operation, stands out in this tensor by F_k > 1
suspicions.

A first look beyond `GROSS` needs no new point, only F at the first one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from vitspec.testing.noise import Noise, Suspicion, first_look
from vitspec.testing.precision import Precision, RoundingArithmetic
from vitspec.testing.reference import (
    Flat,
    Point,
    Reference,
    evaluate_in,
    evaluate_spec,
    noise_of_spec,
)
from vitspec.testing.tolerance import Confirmation, Grade, worst
from vitspec.typing import Array

LOOKS = (1, 4, 16, 64)
"""Numbers of new points after which a suspicion may be decided."""
PERSISTENT, PERSISTENT_IF_COARSE = 2.0, 4.0
FLUCTUATION = 12.0
SURE, GROSS = 100.0, 1e4
RUNS = 24
"""Noisy runs at each of the first four new points."""
Outcome = Literal["confirmed", "cleared", "untold"]


def step(precision: Precision) -> float:
    """How far new points are: many roundings, or a few where those are coarse."""
    return precision.u * (2.0**9 if precision.u < 2.0**-20 else 4)


@dataclass(eq=False)
class _Question:
    """A suspicion that new points are asked about."""

    tensor: str
    direction: Array
    grade: Grade
    errors: list[float] = field(default_factory=list)

    def ask(self, found: Flat, widened: Mapping[str, float], noise: Mapping[str, Noise]) -> float:
        """The error in this direction; where the point is ill-posed, in units of F."""
        with np.errstate(invalid="ignore", over="ignore"):
            along = float(noise[self.tensor].error(found[self.tensor]) @ self.direction)
        return along / widened[self.tensor]

    def mean(self, noise: Mapping[str, Noise]) -> float:
        """M: the mean of z so far."""
        return float(np.mean(self.errors)) / noise[self.tensor].along(self.direction)

    def outcome(self, mean: float, coarse: bool) -> Outcome | None:
        """What its points say so far; None if more are needed."""
        count, mean = len(self.errors), abs(mean)
        if count < LOOKS[1] and mean <= SURE:
            return None
        persistent = PERSISTENT_IF_COARSE if coarse else PERSISTENT
        if not mean <= persistent + FLUCTUATION / count**0.5:  # so NaN is confirmed
            return "confirmed"
        if mean <= persistent:
            return "cleared"
        if count == LOOKS[-1]:
            return "untold" if coarse else "cleared"
        return None


def _widened(tensors: set[str], rounded: Flat, noise: Mapping[str, Noise]) -> dict[str, float]:
    """F of each tensor, for all of its questions."""
    ratios = {name: first_look(name, rounded[name], noise[name])[0].ratio for name in tensors}
    return {name: max(1.0, one if np.isfinite(one) else 1.0) for name, one in ratios.items()}


@dataclass(frozen=True)
class Witness:
    """What can say something about a suspicion.

    Attributes:
        reference: what is true where it arose, and what rounding explains there.
        found: of the implementation there.
        evaluate: the implementation.
        neighbour: a new point, moved by so much.
        rng: of the noise at new points.
    """

    reference: Reference
    found: Flat
    evaluate: Callable[[Point], Flat]
    neighbour: Callable[[float], Point]
    rng: np.random.Generator


def judged(suspicions: Iterable[Suspicion], witness: Witness) -> dict[str, Grade]:
    """The verdict on every suspected tensor: the grade of the worst of its suspicions."""
    verdicts: dict[str, list[Grade]] = {}
    for grade in _decided(list(suspicions), witness):
        verdicts.setdefault(grade.tensor, []).append(grade)
    return {tensor: worst(grades) for tensor, grades in verdicts.items()}


def _decided(suspicions: list[Suspicion], w: Witness) -> Iterator[Grade]:
    noise = w.reference.more_noises
    widened = _widened({one.grade.tensor for one in suspicions}, w.reference.rounded, noise)
    certain, questions = set(), []
    for one in suspicions:
        name = one.grade.tensor
        if one.direction is None:  # not finite
            certain.add(name)
            yield replace(one.grade, confirmation=Confirmation("confirmed", np.inf, 0))
            continue
        question = _Question(name, one.direction, one.grade)
        question.errors.append(question.ask(w.found, widened, noise))
        z = question.mean(noise)
        question.errors.clear()
        if abs(z) > GROSS:
            certain.add(name)
            yield replace(one.grade, confirmation=Confirmation("confirmed", z, 0))
        questions.append(question)
    # One confirmed direction is enough for a tensor.
    yield from _asked([one for one in questions if one.tensor not in certain], w)


def _asked(questions: list[_Question], w: Witness) -> Iterator[Grade]:
    """Ask new points until each question is decided."""
    precision, taps = w.reference.precision, w.reference.taps
    noise: dict[str, Noise] = {}
    points = 0
    while questions:
        point = w.neighbour(step(precision))
        truth = evaluate_spec(point, taps=taps)
        if points < LOOKS[1]:
            new = noise_of_spec(point, truth, precision, RUNS, w.rng, taps)
            noise = {n: one.and_more(noise[n]) if n in noise else one for n, one in new.items()}
        else:
            noise = {name: one.at(truth[name]) for name, one in noise.items()}
        rounded = evaluate_in(RoundingArithmetic(precision), point, taps)
        widened = _widened({one.tensor for one in questions}, rounded, noise)
        found = w.evaluate(point)
        points += 1
        for one in questions:
            one.errors.append(one.ask(found, widened, noise))
        for one in list(questions) if points in LOOKS else ():
            mean = one.mean(noise)
            if one in questions and (outcome := one.outcome(mean, precision.u > 2.0**-20)):
                questions.remove(one)
                if outcome == "confirmed":  # that is enough for a tensor
                    questions = [other for other in questions if other.tensor != one.tensor]
                yield replace(one.grade, confirmation=Confirmation(outcome, mean, points))
