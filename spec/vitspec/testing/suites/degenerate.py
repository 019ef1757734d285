"""Degenerate points: constant rows, blank images, extreme scores; `vitspec.testing.degenerate`."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np

from vitspec.testing.degenerate import KINDS, Kind
from vitspec.testing.drawing import known_of
from vitspec.testing.families import AnyCase, Config
from vitspec.testing.implementations import Subject
from vitspec.testing.reference import Point
from vitspec.testing.results import Result
from vitspec.testing.settings import Settings
from vitspec.testing.suites.suite import Index, Suite, against_the_truth
from vitspec.testing.trial import Trial, kink_margin

DRAWS = 100
"""Configurations that are drawn until the implementation supports one that the kind can use."""
LARGEST = {"float16": 65504.0}
"""The largest number, where the truth might be larger."""


class Degenerate(Suite):
    """The logits and every gradient at one point of each kind."""

    name, option = "degenerate", "point"
    prefix = "degenerate."
    checks = tests = ("degenerate.forward", "degenerate.vjp")
    batch, rank = 3, 2

    def units(self, settings: Settings) -> list[Index]:
        """One of each kind."""
        return [*KINDS] if settings.degenerate else []

    def alone(self, settings: Settings, indices: tuple[Any, ...]) -> Settings:
        """The settings that run the points of these kinds."""
        return settings.only_for(point=indices)

    def run(self, subject: Subject, settings: Settings, index: Any) -> Iterator[Result]:
        """Against the truth, at a configuration that the implementation supports."""
        place = self.place(index)
        if index not in KINDS:
            reason = f"there is no such kind of point; there are {', '.join(KINDS)}"
            yield Result(f"{self.prefix}supports", place, "skipped", reason=reason)
            return
        if not settings.point and not KINDS[index].is_of(subject.family.config_type):
            return  # there is nothing to miss
        trial = self.trial(subject, settings, index)
        if isinstance(trial, str):
            yield Result(f"{self.prefix}supports", place, "skipped", reason=trial)
        elif too_large := _out_of_range(trial):
            yield trial.skip(f"{self.prefix}supports", too_large)
        else:
            yield from against_the_truth(trial, settings, self.prefix)

    def trial_at(self, subject: Subject, settings: Settings, index: Any) -> Trial | str:
        """The trial of a kind of point."""
        if index not in KINDS:
            return f"there is no such kind of point; there are {', '.join(KINDS)}"
        return self.trial(subject, settings, index)

    def trial(self, subject: Subject, settings: Settings, index: str) -> Trial | str:
        """The trial of a kind of point; or why the implementation has none."""
        kind = KINDS[index]
        # All kinds begin with the same draw, since some frameworks compile each model for seconds.
        case, reason = _drawn(subject, settings, kind, np.random.default_rng([settings.seed, 0, 3]))
        if case is None:
            return reason
        # Each has random numbers of its own besides: a new kind does not change the others'.
        rng = np.random.default_rng([settings.seed, zlib.crc32(index.encode()), 3])
        point = kind.change(Point.of(case), rng).away_from_kinks(kink_margin(subject.precision))
        point, text = point.rounded(subject.precision), f"{kind.words}; {case!r}"
        return Trial(
            subject, point, rng, place=self.place(index), description=text, structured=True
        )


def _drawn(
    subject: Subject, settings: Settings, kind: Kind, rng: np.random.Generator
) -> tuple[AnyCase | None, str]:
    """A case that the kind can be made of and the implementation supports; or why there is none."""
    family, why = subject.family, ""
    for draw in range(DRAWS):
        case = family.ordinary_case(rng, kind.wants if draw % 2 else {**kind.wants, **kind.prefers})
        config = settings.config or subject.closest(case.config)
        case = case if config == case.config else family.with_config(case, config)
        # What is only preferred is given up in the second half.
        reason = _why_not(subject, kind, case, prefers=draw < DRAWS / 2)
        if reason is None:
            return case, ""
        why = why or reason
    if settings.config is None:
        for config in _last_resorts(subject, kind):
            case = family.with_config(case, config)
            if _why_not(subject, kind, case, prefers=False) is None:
                return case, ""
    return None, why


def _last_resorts(subject: Subject, kind: Kind) -> Iterator[Config]:
    """The small model that is known to be supported, with what the kind prefers, or only wants.

    An implementation that has one size, or one value of each option, is hardly met by drawing.
    """
    known = known_of(subject)
    if known is None or known.config == subject.family.full_size:
        return
    names = {one.name for one in fields(known.config)}
    for wishes in ({**kind.wants, **kind.prefers}, kind.wants):
        yield replace(known.config, **{n: value for n, value in wishes.items() if n in names})


def _why_not(subject: Subject, kind: Kind, case: AnyCase, prefers: bool) -> str | None:
    """Why a case will not do for the kind; None if it will."""
    config = case.config
    reason = subject.why_unsupported(config) or kind.why_not(config, prefers)
    return reason or _too_small(subject, case)


def _too_small(subject: Subject, case: AnyCase) -> str | None:
    """Why nothing of the kind would be seen in a case of this size."""
    config = case.config
    rows, columns = subject.family.grid(config, *case.image_shape[1:])
    if rows * columns < 2 or not config.head_dim or config.embed_dim < 3 or not config.num_layers:
        return "it needs two patches, three features, a layer, and heads of some width"
    return None


def _out_of_range(trial: Trial) -> str | None:
    """Why a precision of few exponents cannot hold the truth; None if it can."""
    name = trial.precision.name
    largest = max(float(np.abs(value).max(initial=0)) for value in trial.truth.values())
    if largest <= LARGEST.get(name, np.inf):
        return None
    return f"the truth has numbers of {largest:.0e}, which {name} does not hold"
