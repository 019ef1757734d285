"""Identities, which hold whatever function the implementation computes: `--identities`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from vitspec.testing.identities import example_point, identities
from vitspec.testing.implementations import Subject
from vitspec.testing.reference import Point
from vitspec.testing.results import Result
from vitspec.testing.settings import Settings
from vitspec.testing.suites.suite import Suite
from vitspec.testing.tolerance import Grade
from vitspec.testing.trial import Trial, kink_margin

DRAWS = 50
"""Configurations that are drawn until the implementation supports one."""
SHOWN = 3
"""Tensors of an identity that a report names."""


class Identities(Suite):
    """Identities of a specified function, or of one with `spec = "other"` and an `example`."""

    name = "identities"
    checks = ("identity.*",)

    def plan(self, settings: Settings) -> list[Any]:
        """These points, if identities are asked for."""
        asked_for = settings.identities and not settings.names_units
        return [self.place(index) for index in self.units(settings)] if asked_for else []

    def units(self, settings: Settings) -> range:
        """As many points as laws."""
        return range(settings.laws)

    def alone(self, settings: Settings, indices: tuple[Any, ...]) -> Settings:
        """The settings that run all points up to the last of these."""
        return settings.only_for(identities=True, laws=max(indices) + 1)

    def trial_at(self, subject: Subject, settings: Settings, index: Any) -> Trial | str:
        """The trial of a point where identities are compared."""
        point = _supported_point(subject, settings, index)
        rng = np.random.default_rng([settings.seed, index, 2])
        if point is None:
            return "no supported configuration drawn"
        return Trial(subject, point, rng, place=self.place(index))

    def run(self, subject: Subject, settings: Settings, index: int) -> Iterator[Result]:
        """Every identity at one point."""
        place = self.place(index)
        if not subject.has_vjp:
            if settings.wants("identity"):
                yield Result("identity", place, "skipped", reason="it has no vjp")
            return
        rng = np.random.default_rng([settings.seed, index, 2])
        if subject.spec == "other":
            point: Point | None = example_point(subject, rng)
        else:
            point = _supported_point(subject, settings, index)
        if point is None:
            if settings.wants("identity"):
                reason = "no supported configuration drawn"
                yield Result("identity", place, "skipped", reason=reason)
            return
        # The configuration and the naming are the user's too: whatever they raise is reported.
        with subject.guarded("vjp", repr(point.config)):
            found = identities(subject, point, rng)
        for result in found:
            grades = tuple(_short(grade) for grade in result.grades)
            result = replace(result, place=place, point=repr(point.config), grades=grades)
            if settings.wants(result.check):
                yield result


def _supported_point(subject: Subject, settings: Settings, index: int) -> Point | None:
    rng, family = np.random.default_rng([settings.seed, index, 1]), subject.family
    for _ in range(DRAWS):
        case = family.tiled_case(rng)
        case = case if settings.config is None else family.with_config(case, settings.config)
        if subject.why_unsupported(case.config) is None:
            margin = kink_margin(subject.precision)
            return Point.of(case).away_from_kinks(margin).rounded(subject.precision)
    return None


def _short(grade: Grade) -> Grade:
    """The grade with at most `SHOWN` tensor names."""
    names = grade.tensor.split(", ")
    more = ", ..." if len(names) > SHOWN else ""
    return replace(grade, tensor=", ".join(names[:SHOWN]) + more)
