"""Small cases with images of another size than the configuration's: interpolated positions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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

    def trial_at(self, subject: Subject, settings: Settings, index: Any) -> Trial | str:
        """The trial of the case with this number, if positions are interpolated at all."""
        if subject.family.interpolates and subject.takes_other_sizes:
            return super().trial_at(subject, settings, index)
        return f"{subject.name} takes no images of another size"

    def run(self, subject: Subject, settings: Settings, index: int) -> Iterator[Result]:
        """Against the truth, if the family and the implementation interpolate."""
        if subject.family.interpolates and subject.takes_other_sizes:
            yield from super().run(subject, settings, index)
            return
        # Where nobody asked for this very case, one result is enough to say that none is checked,
        # and none where no implementation of the family could be.
        if not settings.interpolation and (index or not subject.family.interpolates):
            return
        reason = f"the positions of {subject.family.name} are of one size"
        if subject.family.interpolates:
            reason = "it does not say that it interpolates positions (supports_size)"
        yield Result("interpolation.supports", self.place(index), "skipped", reason=reason)

    def why_unsupported(self, subject: Subject, config: Any, size: tuple[int, ...]) -> str | None:
        """Why not this configuration, or not this size."""
        height, width = size
        return subject.why_unsupported(config) or subject.why_size_unsupported(
            config, (height, width)
        )
