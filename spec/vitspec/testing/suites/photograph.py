"""The photograph, with a fresh random model of full size: real pixels, real shapes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from vitspec.testing.families import KINK_MARGIN, Config
from vitspec.testing.implementations import Subject
from vitspec.testing.photograph import load_photograph
from vitspec.testing.reference import Point
from vitspec.testing.results import Place, Result
from vitspec.testing.settings import Settings
from vitspec.testing.suites.suite import AGAINST_THE_TRUTH, Index, Suite, against_the_truth
from vitspec.testing.trial import FEW_RUNS, Trial


class Photograph(Suite):
    """The logits and every gradient at full size."""

    name = "photograph"
    checks = AGAINST_THE_TRUTH
    rank = 0

    def units(self, settings: Settings) -> list[Index]:
        """One, where no other configuration is asked for."""
        return [None] if settings.photograph and settings.config is None else []

    def alone(self, settings: Settings, indices: tuple[Any, ...]) -> Settings:
        """The photograph and nothing else."""
        return settings.nothing_but(photograph=True)

    def trial_at(self, subject: Subject, settings: Settings, index: Any) -> Trial | str:
        """The trial of the photograph."""
        trial = photograph_trial(subject, settings.seed, settings.config)
        return subject.why_unsupported(trial.point.config) or trial

    def run(self, subject: Subject, settings: Settings, index: Any) -> Iterator[Result]:
        """Against the truth."""
        trial = photograph_trial(subject, settings.seed)
        if reason := subject.why_unsupported(trial.point.config):
            yield trial.skip("supports", reason)
            return
        yield from against_the_truth(trial, settings)


def photograph_trial(subject: Subject, seed: int, config: Config | None = None) -> Trial:
    """The trial of the photograph, with fresh parameters; without `config`, of full size."""
    family = subject.family
    config = config or subject.closest(family.full_size)
    rng = np.random.default_rng([seed, 1])
    params = family.full_size_parameters(config, rng)
    cotangent = rng.standard_normal((1, config.num_classes))
    point = Point(subject.spec, config, params, load_photograph()[None], cotangent)
    del params  # frees their memory before the point is made anew
    point = point.away_from_kinks().rounded(subject.precision)
    description = f"the photograph, {config!r}"
    place = Place("photograph")
    return Trial(subject, point, rng, FEW_RUNS, place, description, margin=KINK_MARGIN)
