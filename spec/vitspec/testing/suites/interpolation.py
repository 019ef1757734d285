"""Small cases with images of another size than the configuration's: interpolated positions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vitspec.testing.families import ORIENTATIONS, AnyCase, Family
from vitspec.testing.implementations import Subject
from vitspec.testing.results import Result
from vitspec.testing.settings import Settings
from vitspec.testing.suites.suite import Numbered
from vitspec.testing.trial import Trial


class Interpolation(Numbered):
    """Logits and gradients; the positions' gradient passes the interpolation's transpose."""

    name = option = "interpolation"
    count = "interpolations"
    prefix = "interpolation."
    checks = tests = ("interpolation.forward", "interpolation.vjp")
    batch, rank = 5, 2
    stream = (2,)

    def draw(self, family: Family, rng: np.random.Generator, index: int) -> AnyCase:
        """More patches, fewer, or both; the first cases have one orientation of the grid each."""
        orientation = dict(enumerate(ORIENTATIONS)).get(index, "")
        return family.interpolated_case(rng, orientation)

    def run(self, subject: Subject, settings: Settings, index: int) -> Iterator[Result]:
        """Against the truth, if the family and the implementation interpolate."""
        if not subject.family.interpolates:
            return
        if index and not subject.takes_other_sizes:
            return  # one result is enough to say that nothing was checked
        yield from super().run(subject, settings, index)

    def why_unsupported(self, trial: Trial) -> str | None:
        """Why not this configuration, or not this size."""
        subject, config, size = trial.subject, trial.point.config, trial.point.images.shape[2:]
        return subject.why_unsupported(config) or subject.why_size_unsupported(config, size)
