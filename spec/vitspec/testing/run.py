"""Run the suites on an implementation in this process.

`vitspec.testing.processes` does so in processes of their own. Both know the suites by their
interface only.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from vitspec.testing.implementations import AdapterError, Subject
from vitspec.testing.report.report import Report
from vitspec.testing.results import Place, Result
from vitspec.testing.settings import QUICK, Settings
from vitspec.testing.suites import SUITES
from vitspec.testing.trial import smoke

NOT_BY_NAME = ("run", "supports", "interpolation.supports")
"""Results that say why checks were not made; `--only` does not ask for them."""


def check(implementation: Any, settings: Settings = QUICK, **changes: Any) -> Report:
    """Check an implementation in this process.

    Args:
        implementation: see `vitspec.testing.implementations`.
        settings: what to check.
        changes: fields of the settings to change, such as `cases=100, dtype="float64"`.

    Raises:
        AdapterError: it is no implementation, or it does not even work on a one-block model.

    >>> from vitspec.testing import SpecImplementation
    >>> check(SpecImplementation("vit"), cases=1, laws=1).verdict
    'conforms, as tested'
    """
    start, settings = time.monotonic(), replace(settings, **changes)
    subject = Subject(implementation, settings.dtype)
    report = new_report(subject, settings)
    begin(subject, settings)
    for place in plan(settings):
        report.results += run_unit(subject, settings, place)
    report.seconds = time.monotonic() - start
    return report


def new_report(subject: Subject, settings: Settings, target: str = "") -> Report:
    """A report without results.

    Args:
        subject: what is checked.
        settings: what to check.
        target: how the command line names the implementation; "" for an object.

    Raises:
        AdapterError: the implementation cannot be checked so.
    """
    if not settings.identities or subject.spec != "other":
        family, config = subject.family, settings.config
        if config is not None and not isinstance(config, family.config_type):
            raise AdapterError(
                f"{subject.name} claims to be {family.name!r}, whose configurations are "
                f"{family.config_type.__name__}, got {type(config).__name__}"
            )
    dtype = subject.precision.name
    return Report(target, subject.name, subject.version, subject.spec, dtype, settings)


def begin(subject: Subject, settings: Settings) -> None:
    """Whether the implementation works at all, on a one-block model.

    Raises:
        AdapterError: it does not; nothing else is worth running.
    """
    if subject.spec != "other":
        smoke(subject, settings.config)


def plan(settings: Settings) -> list[Place]:
    """Where something is to be checked, the longest first."""
    return [place for suite in SUITES.values() for place in suite.plan(settings)]


def run_unit(subject: Subject, settings: Settings, place: Place) -> list[Result]:
    """One unit of a suite; what keeps the implementation from running is a result too."""
    results: list[Result] = []
    try:
        for result in SUITES[place.suite].run(subject, settings, place.index):
            results.append(result)
    except AdapterError as error:
        results.append(Result("run", place, "errored", reason=str(error)))
    settings = replace(settings, dtype=subject.precision.name)
    return [replace(result, again=again(settings, result)) for result in results]


def again(settings: Settings, result: Result, places: tuple[Place, ...] = ()) -> Settings:
    """What runs a result again, and nothing else.

    Args:
        settings: what it was found with.
        result: of a unit.
        places: all units that it is of, if there are several.
    """
    indices = tuple(place.index for place in places or (result.place,))
    alone = SUITES[result.place.suite].alone(settings, indices)
    return alone if result.check in NOT_BY_NAME else replace(alone, only=result.check)


def shown_order(result: Result) -> tuple[int, str, int, str]:
    """Where a report shows a result, whichever came first."""
    first, place = ("photograph", "case", "interpolation", "law"), result.place
    named = isinstance(place.index, str)
    rank = first.index(place.suite) if place.suite in first else len(first) + (not named)
    number = place.index if isinstance(place.index, int) else 0
    return rank, place.suite, number, str(place.index) if named else ""
