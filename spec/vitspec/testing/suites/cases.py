"""Small random cases against the truth."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vitspec.testing.families import AnyCase, Family
from vitspec.testing.implementations import Subject
from vitspec.testing.results import Result
from vitspec.testing.settings import Settings
from vitspec.testing.suites.suite import AGAINST_THE_TRUTH, Numbered, against_the_truth


class Cases(Numbered):
    """The logits and every gradient at small random configurations."""

    name = option = "case"
    checks = AGAINST_THE_TRUTH
    batch = 5

    def units(self, settings: Settings) -> range:
        """As many as are asked for."""
        return range(settings.cases)

    def run(self, subject: Subject, settings: Settings, index: int) -> Iterator[Result]:
        """Against the truth."""
        trial = self.trial(subject, settings, index)
        if reason := subject.why_unsupported(trial.point.config):
            yield trial.skip("supports", reason)
            return
        yield from against_the_truth(trial, settings)

    def draw(self, family: Family, rng: np.random.Generator) -> AnyCase:
        """Small, and of every option."""
        return family.random_case(rng)
