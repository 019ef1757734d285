"""The rule by which version 0.5 judged; it lives on here, to compare today's with it.

A tensor conformed if its error was within 4 prices and 4 u in three metrics, the price being the
largest error of twelve noisy runs in which every function errs by one rounding.
"""

from __future__ import annotations

import numpy as np

from vitspec.testing.precision import NoisyArithmetic
from vitspec.testing.reference import evaluate_in
from vitspec.testing.tolerance import Price, Sizes, distances, grade, sizes
from vitspec.testing.trial import Trial

RUNS = 12


def prices_of_0_5(trial: Trial, seed: int) -> dict[str, Price]:
    """What a precision cost each tensor."""
    rng = np.random.default_rng([seed, 3])
    noise: dict[str, list[Sizes]] = {name: [] for name in trial.truth}
    for run in range(RUNS):
        erring = NoisyArithmetic(trial.precision, rng, run % 2 == 1, primitives={})
        found = evaluate_in(erring, trial.point)
        for name, truth in trial.truth.items():
            noise[name].append(distances(found[name], truth))
    u = trial.precision.u
    return {name: Price.of(sizes(truth), noise[name], u) for name, truth in trial.truth.items()}


def conformed(trial: Trial, prices: dict[str, Price]) -> bool:
    """Whether the implementation conformed at this point."""
    return all(
        grade(name, trial.found[name], truth, prices[name]).conforms
        for name, truth in trial.truth.items()
    )
