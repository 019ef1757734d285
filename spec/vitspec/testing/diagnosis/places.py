"""The samples of a diagnosis: the place where a check saw it depart, and small models beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vitspec.testing.diagnosis import points
from vitspec.testing.diagnosis.points import Sample
from vitspec.testing.implementations import AdapterError, Subject
from vitspec.testing.run import plan
from vitspec.testing.settings import Settings
from vitspec.testing.suites import SUITES
from vitspec.testing.trial import LARGE, Trial

PLACES = ("case", "interpolation", "point", "law", "vector")
"""The settings that name single units."""


@dataclass
class Looked:
    """Where an implementation was looked at.

    Attributes:
        named: the samples of the place that was asked for, if it was small.
        telling: the samples that tell mistakes apart.
        large: the samples of full size, at which few things can be tried.
        notes: what had to be replaced, in words.
    """

    named: list[Sample] = field(default_factory=list)
    telling: list[Sample] = field(default_factory=list)
    large: list[Sample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def small(self) -> list[Sample]:
        """Those at which everything can be tried; the first decides most."""
        return [*self.named, *self.telling]

    @property
    def all(self) -> list[Sample]:
        """Every sample, the place that was asked for first."""
        return [*self.named, *self.large, *self.telling]


def names_a_place(settings: Settings) -> bool:
    """Whether the settings ask for the place of a check, and not only for a configuration."""
    return settings.names_units or settings.photograph_is_all or settings.identities


def looked(subject: Subject, settings: Settings) -> Looked:
    """Evaluate the implementation wherever it is to be looked at.

    Args:
        subject: what is diagnosed.
        settings: the place; the photograph, if they ask for nothing else.

    Raises:
        AdapterError: it does not do what is asked for, or nothing at all.
    """
    there = Looked()
    if names_a_place(settings):
        for trial in _trials(subject, settings):
            sample = Sample(trial, trial.case)
            (there.named if trial.reference.small else there.large).append(sample)
    config = settings.config
    if config is not None and _is_large(subject, config):
        if not there.large:
            case = subject.family.smoke_case(config)
            there.large.append(Sample.of(subject, case))
        config = None
    try:
        cases, there.notes = points.cases(subject, settings.seed, config)
    except AdapterError:
        if not there.all:
            raise
        cases = []
    there.telling = [Sample.of(subject, case) for case in cases]
    return there


def _trials(subject: Subject, settings: Settings) -> list[Trial]:
    found: list[Any] = [
        SUITES[place.suite].trial_at(subject, settings, place.index) for place in plan(settings)
    ]
    if refused := [one for one in found if isinstance(one, str)]:
        raise AdapterError(f"{subject.name} cannot be diagnosed there: {refused[0]}")
    if not found:
        raise AdapterError("these options leave no place to look at")
    return found


def _is_large(subject: Subject, config: Any) -> bool:
    """Whether evaluating a configuration takes seconds."""
    if subject.why_unsupported(config) is not None or config.violations():
        return False
    shapes = subject.family.any_shapes(config)
    return sum(int(np.prod(shape)) for shape in shapes.values()) > LARGE
