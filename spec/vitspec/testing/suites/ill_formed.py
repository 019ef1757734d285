"""Configurations that break a rule are refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from vitspec.testing.adapter_errors import AdapterError, ProcessEndedError
from vitspec.testing.families import FAMILIES
from vitspec.testing.implementations import Subject
from vitspec.testing.reference import Point
from vitspec.testing.results import Result
from vitspec.testing.settings import Settings
from vitspec.testing.suites.suite import Index, Suite


class IllFormed(Suite):
    """For each rule of the family's configuration, one that breaks it and no other."""

    name = "ill-formed"
    checks = tuple(
        dict.fromkeys(f"ill-formed.{rule}" for one in FAMILIES.values() for rule in one.ill_formed)
    )
    tests = ("ill-formed.*",)

    def units(self, settings: Settings) -> list[Index]:
        """One for all rules."""
        return [None] if settings.ill_formed else []

    def alone(self, settings: Settings, indices: tuple[Any, ...]) -> Settings:
        """The rules and nothing else."""
        return settings.nothing_but(ill_formed=True)

    def run(self, subject: Subject, settings: Settings, index: Any) -> Iterator[Result]:
        """The implementation raises an error for a configuration that breaks a rule."""
        family = subject.family
        good = subject.closest(family.smoke_configs[0])
        image_shape = family.smoke_case(good).image_shape
        for label, change in family.ill_formed.items():
            check, config = f"ill-formed.{label}", replace(good, **change)
            if not settings.wants(check):
                continue
            if not config.violations():
                harmless = f"the closest configuration that it can do breaks no rule with {change}"
                yield Result(check, self.place(), "skipped", reason=harmless, point=repr(config))
                continue
            try:
                reason = subject.why_unsupported(config)
                if reason is None:
                    subject.forward(_point(subject, config, image_shape))
            except ProcessEndedError:  # a crash of the process is no refusal
                raise
            except AdapterError as error:  # any error is
                reason = error.raised or type(error).__name__
            text = f"refused: {reason}"
            if reason is None:
                text = f"accepted a configuration with {change}; it must raise an error"
            status: Any = "passed" if reason is not None else "failed"
            yield Result(check, self.place(), status, reason=text, point=repr(config))


def _point(subject: Subject, config: Any, image_shape: tuple[int, ...]) -> Point:
    """Arrays of the shapes that an ill-formed configuration asks for."""
    rng = np.random.default_rng(0)
    shapes = subject.family.any_shapes(config)
    params = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    images = rng.standard_normal((2, *image_shape))
    cotangent = rng.standard_normal((2, config.num_classes))
    return Point(subject.spec, config, params, images, cotangent).rounded(subject.precision)
