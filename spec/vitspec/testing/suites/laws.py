"""The laws, judged by the price of the precision; and the same small cases against the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from vitspec.testing.determinism import difference
from vitspec.testing.families import AnyCase, Family
from vitspec.testing.laws import (
    PERMUTATIONS,
    linearity_sides,
    permutations,
    scale_sides,
    split_sides,
)
from vitspec.testing.results import Result
from vitspec.testing.settings import Settings
from vitspec.testing.suites.suite import AGAINST_THE_TRUTH, Numbered
from vitspec.testing.tolerance import Grade
from vitspec.testing.trial import Trial


def determinism(trial: Trial) -> Result:
    """The same point gives the same bits again, or to rounding if the implementation says so."""
    found = difference(trial)
    status: Any = "passed" if found.allowed else "failed"
    return Result("determinism", trial.place, status, reason=found.words, point=trial.description)


def linearity(trial: Trial) -> Result:
    """The gradients of two cotangents add up.

    What two cotangents make of an entry may cancel by far more than in the trial's own gradient,
    whose price decides. So what fails must fail for two other cotangents too.
    """
    grades = _linear(trial, "linearity")
    if not all(grade.conforms for grade in grades):
        pairs = zip(grades, _linear(trial, "linearity, again"), strict=True)
        grades = [min(pair, key=lambda grade: (not grade.conforms, grade.ratio)) for pair in pairs]
    return trial.result("linearity", grades)


def _linear(trial: Trial, stream: str) -> list[Grade]:
    """How far the sum of two gradients is from the gradient of a sum."""
    own, rng = trial.point.cotangent, trial.stream(stream)
    # Multiples of 1/8 up to 4: their sums are exact in every precision.
    g, h = (rng.integers(-32, 33, size=own.shape) / 8 for _ in range(2))
    if not np.any(g) or not np.any(h):
        g, h = g + 1, h - 1
    cotangents = [x.astype(own.dtype) for x in (g, h, g + h)]
    scale = sum(float(np.linalg.norm(x) / np.linalg.norm(own)) for x in cotangents)
    sides = linearity_sides(*(trial.gradients(x) for x in cotangents))
    return [trial.compare(name, s.left, s.right, scale) for name, s in sides.items()]


def scale(trial: Trial) -> Result:
    """Four times the cotangent gives four times the gradients."""
    grades = [trial.compare(name, s.left, s.right) for name, s in scale_sides(trial, 4.0).items()]
    return trial.result("scale", grades)


def batch_split(trial: Trial) -> Result:
    """A batch gives what its images give one by one."""
    sides = sorted(split_sides(trial).items())
    return trial.result("batch-split", [trial.compare(n, s.left, s.right) for n, s in sides])


LAWS: dict[str, Callable[[Trial], Result]] = {
    "determinism": determinism,
    "linearity": linearity,
    "scale": scale,
    "batch-split": batch_split,
}
"""The laws of any differentiable function."""
OF_GRADIENTS = ("linearity", "scale")


class Laws(Numbered):
    """Small cases whose patches tile the image, so that they can be moved."""

    name = option = "law"
    count = "laws"
    checks = (*AGAINST_THE_TRUTH, *LAWS, *PERMUTATIONS)
    tests = (*LAWS, *PERMUTATIONS)
    rank = 3
    stream = (1,)

    def draw(self, family: Family, rng: np.random.Generator, index: int) -> AnyCase:
        """Patches tile the image."""
        return family.tiled_case(rng)

    def more(self, trial: Trial, settings: Settings) -> Iterator[Result]:
        """Against the implementation itself."""
        for name, law in LAWS.items():
            if settings.wants(name) and name in OF_GRADIENTS and not trial.subject.has_vjp:
                yield trial.skip(name, "it has no vjp")
            elif settings.wants(name):
                yield law(trial)
        if any(settings.wants(name) for name in PERMUTATIONS):
            yield from (r for r in permuted(trial) if settings.wants(r.check))


def permuted(trial: Trial) -> Iterator[Result]:
    """Every permutation that leaves the function alone."""
    for law in permutations(trial.point, trial.stream("permutations")):
        found = law.restore(trial.evaluate(law.point))
        names = [name for name in trial.prices if name in found]
        grades = [trial.compare(name, found[name], trial.found[name]) for name in names]
        yield trial.result(law.name, grades)
