"""Small cases with images of another size than the configuration's: interpolated positions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vitspec.testing.families import AnyCase, Family
from vitspec.testing.implementations import Subject
from vitspec.testing.results import Result
from vitspec.testing.settings import Settings
from vitspec.testing.suites.suite import Numbered, against_the_truth


class Interpolation(Numbered):
    """The gradient of the positions passes through the transpose of the interpolation."""

    name = option = "interpolation"
    checks = ("interpolation.forward", "interpolation.vjp")
    batch = 5
    stream = (2,)

    def units(self, settings: Settings) -> range:
        """As many as are asked for."""
        return range(settings.interpolations)

    def draw(self, family: Family, rng: np.random.Generator) -> AnyCase:
        """More patches, fewer, or both."""
        return family.interpolated_case(rng)

    def run(self, subject: Subject, settings: Settings, index: int) -> Iterator[Result]:
        """Against the truth, if the family and the implementation interpolate."""
        if not subject.family.interpolates:
            return
        if index and not subject.takes_other_sizes:
            return  # one result is enough to say that nothing was checked
        trial = self.trial(subject, settings, index)
        config, size = trial.point.config, trial.point.images.shape[2:]
        reason = subject.why_unsupported(config) or subject.why_size_unsupported(config, size)
        if reason:
            yield trial.skip("interpolation.supports", reason)
            return
        yield from against_the_truth(trial, settings, "interpolation.")
