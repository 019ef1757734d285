"""Run the suites on an implementation in this process.

`vitspec.testing.processes` does so in processes of their own. Both know the suites by their
interface only.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import Any

from vitspec.testing.implementations import AdapterError, Subject
from vitspec.testing.report.report import Report
from vitspec.testing.results import Place, Result
from vitspec.testing.settings import QUICK, Settings
from vitspec.testing.smoke import smoke
from vitspec.testing.suites import LAWS, SUITES
from vitspec.testing.suites.laws import OF_GRADIENTS


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
    report.results.sort(key=shown_order)
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
    dtype, asked = subject.precision.name, asked_for(subject, settings)
    return Report(target, subject.name, subject.version, subject.spec, dtype, settings, asked=asked)


def asked_for(subject: Subject, settings: Settings) -> dict[str, int]:
    """How many cases of each kind of evidence are to be compared: of what it claims to do."""
    planned = Counter(place.suite for place in plan(settings))
    laws = [law for law in LAWS if subject.has_vjp or law not in OF_GRADIENTS]
    claims = {
        "forward": ("case", ["forward"]),
        "gradients": ("case", ["vjp"] if subject.has_vjp else []),
        "interpolation": ("interpolation", SUITES["interpolation"].checks),
        "laws": ("law", laws),
    }
    asked = {
        kind: planned[suite]
        for kind, (suite, checks) in claims.items()
        if planned[suite] and any(settings.wants(check) for check in checks)
    }
    if not subject.takes_other_sizes:
        asked.pop("interpolation", None)
    return asked


def begin(subject: Subject, settings: Settings) -> None:
    """Try the implementation on a one-block model, if it has a specification.

    Raises:
        AdapterError: it does not work there; nothing else is worth running.
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
    """The settings that reproduce a result.

    Args:
        settings: what it was found with.
        result: of a unit.
        places: all units of the batch, if any of them may have caused it.
    """
    suite = SUITES[result.place.suite]
    alone = suite.alone(settings, tuple(place.index for place in places or (result.place,)))
    return replace(alone, only=result.check) if suite.runs(result.check) else alone


def shown_order(result: Result) -> tuple[int, str, int, str]:
    """The sort key for the order of results in a report."""
    place = result.place
    number = place.index if isinstance(place.index, int) else 0
    name = place.index if isinstance(place.index, str) else ""
    return SUITES[place.suite].order(place), place.suite, number, name
