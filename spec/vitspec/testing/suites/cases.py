"""Small random cases against the truth."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vitspec.testing.implementations import Subject
from vitspec.testing.results import Result
from vitspec.testing.settings import Settings
from vitspec.testing.suites.suite import AGAINST_THE_TRUTH, Numbered, against_the_truth, with_config
from vitspec.testing.trial import Trial, case_trial


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

    def trial(self, subject: Subject, settings: Settings, index: int) -> Trial:
        """The trial of the case of this number."""
        case = subject.family.random_case(np.random.default_rng([settings.seed, index]))
        return case_trial(subject, with_config(subject, settings, case), self.place(index))
