"""The laws, judged by the price of the precision; and the same small cases against the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
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
from vitspec.testing.reference import CASE_RUNS, evaluate_spec, noisy_runs
from vitspec.testing.results import Result
from vitspec.testing.settings import Settings
from vitspec.testing.suites.suite import AGAINST_THE_TRUTH, Numbered
from vitspec.testing.tolerance import Price, Sizes, distances, sizes
from vitspec.testing.trial import Trial
from vitspec.typing import Array


def determinism(trial: Trial) -> Result:
    """The same point gives the same bits again, or to rounding if the implementation says so."""
    found = difference(trial)
    status: Any = "passed" if found.allowed else "failed"
    return Result("determinism", trial.place, status, reason=found.words, point=trial.description)


def linearity(trial: Trial) -> Result:
    """The gradients of two cotangents add up."""
    own, rng = trial.point.cotangent, trial.stream("linearity")
    # Multiples of 1/8 up to 4: their sums are exact in every precision.
    g, h = (rng.integers(-32, 33, size=own.shape) / 8 for _ in range(2))
    if not np.any(g) or not np.any(h):
        g, h = g + 1, h - 1
    cotangents = [x.astype(own.dtype) for x in (g, h, g + h)]
    sides = linearity_sides(*(trial.gradients(x) for x in cotangents))
    prices = prices_of_a_sum(trial, cotangents)
    grades = [trial.compare(n, s.left, s.right, prices[n]) for n, s in sides.items()]
    return trial.result("linearity", grades)


def prices_of_a_sum(trial: Trial, cotangents: list[Array]) -> dict[str, Price]:
    """What the precision costs the gradients of two cotangents, added up, and that of their sum.

    They have prices of their own: the sum may cancel where the trial's own gradient does not.
    """
    points = [replace(trial.point, cotangent=x).rounded(trial.precision) for x in cotangents]
    truth = evaluate_spec(points[2])
    sides: dict[str, list[Sizes]] = {name: [] for name in truth}
    rng = trial.stream("prices of a sum")
    for runs in zip(
        *(noisy_runs(point, trial.precision, CASE_RUNS, rng) for point in points), strict=True
    ):
        first, second, both = runs
        for name, value in truth.items():
            sides[name] += [distances(x, value) for x in (first[name] + second[name], both[name])]
    return {n: Price.of(sizes(truth[n]), sides[n], trial.precision.u) for n in truth}


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
