"""Check implementations in processes of their own, by what the command line calls them.

So the command survives an implementation that crashes, hangs, or writes to its standard output,
and uses all cores. `vitspec.testing.isolation` says which process does what.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitspec.testing.adapter_errors import AdapterError
from vitspec.testing.diagnosis.diagnosis import Diagnosis
from vitspec.testing.isolation import RemoteSubject
from vitspec.testing.isolation.judges import Judges
from vitspec.testing.isolation.judges import worker_pool as worker_pool
from vitspec.testing.report.report import Report
from vitspec.testing.results import Place, Result
from vitspec.testing.run import again, begin, new_report, plan, run_unit
from vitspec.testing.settings import Settings
from vitspec.testing.suites import SUITES


@dataclass(frozen=True)
class Progress:
    """What one process found at some places, for one target.

    Attributes:
        target: the implementation.
        places: the units that are done, or given up.
        results: theirs.
        output: what the implementation wrote to its standard output meanwhile.
        trouble: why its process is gone, if it is: the units that were left were given up.
    """

    target: str
    places: tuple[Place, ...]
    results: list[Result]
    output: str = ""
    trouble: str = ""


def begin_targets(
    pool: Judges, targets: Sequence[str], settings: Settings, timeout: float
) -> dict[str, Report]:
    """Try each target on a one-block model.

    Args:
        pool: of judges.
        targets: what the command line calls the implementations.
        settings: what to check.
        timeout: seconds for one answer of an implementation, after which it is taken to hang.

    Returns:
        A report for each, without results.

    Raises:
        AdapterError: one does not even work there.
    """
    start = time.monotonic()
    futures = [pool.submit(_begin, target, settings, timeout) for target in dict.fromkeys(targets)]
    try:
        reports = {report.target: report for report in (future.result() for future in futures)}
    except BrokenProcessPool as error:
        raise AdapterError(pool.trouble) from error
    for report in reports.values():
        report.seconds = time.monotonic() - start
    return reports


def check_targets(
    pool: Judges, reports: Mapping[str, Report], settings: Settings, timeout: float
) -> Iterator[Progress]:
    """Check implementations, by their targets, in processes; the reports receive the results.

    Args:
        pool: of judges.
        reports: what `begin_targets` returned.
        settings: what to check.
        timeout: seconds for one answer of an implementation, after which it is taken to hang.

    Yields:
        Whatever is done, as it comes.
    """
    start = time.monotonic() - max(report.seconds for report in reports.values())
    own = {t: replace(settings, dtype=report.dtype) for t, report in reports.items()}
    futures: Futures = {
        pool.submit(_run_units, target, settings, places, timeout): (target, settings, places)
        for places in _batches(plan(settings))
        for target, settings in own.items()
    }
    for done in _as_they_come(pool, futures):
        report = reports[done.target]
        report.results += done.results
        report.output += done.output
        report.seconds = time.monotonic() - start
        yield done


def diagnose_target(
    target: str, place: Settings, timeout: float, save_to: Path | None = None
) -> Diagnosis:
    """Diagnose an implementation in a process of its own.

    Args:
        target: what the command line calls it.
        place: where, and how.
        timeout: seconds for one answer of it, after which it is taken to hang.
        save_to: a folder for the departing point.

    Raises:
        AdapterError: there is none, or it does not work at all.
    """
    with worker_pool(1) as pool:
        try:
            return pool.submit(_diagnose, target, place, timeout, save_to).result()
        except BrokenProcessPool as error:
            raise AdapterError(pool.trouble) from error


def _batches(places: Sequence[Place]) -> Iterator[tuple[Place, ...]]:
    """The places in batches, each for one task of the pool."""
    for suite in SUITES.values():
        own = [place for place in places if place.suite == suite.name]
        for i in range(0, len(own), suite.batch):
            yield tuple(own[i : i + suite.batch])


Futures = dict[Future[Any], tuple[str, Settings, tuple[Place, ...]]]


def _as_they_come(pool: Judges, futures: Futures) -> Iterator[Progress]:
    """What each judge found; what waits for an implementation that is gone is given up."""
    pending = set(futures)
    while pending:
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            target, settings, places = futures[future]
            found = _outcome(pool, future, target, settings, places)
            yield found
            if not found.trouble:
                continue
            for other in [one for one in pending if futures[one][0] == target and one.cancel()]:
                pending.remove(other)
                yield _not_run(*futures[other], found.trouble)


def _outcome(
    pool: Judges, future: Future[Any], target: str, settings: Settings, places: tuple[Place, ...]
) -> Progress:
    """A future's results, or one that says why there are none."""
    try:
        results, output, trouble = future.result()
        return Progress(target, places, results, output, trouble)
    except BrokenProcessPool:
        return _not_run(target, settings, places, pool.trouble)


def _not_run(target: str, settings: Settings, places: tuple[Place, ...], trouble: str) -> Progress:
    """Units that were given up before they ran."""
    return Progress(target, places, [_given_up(settings, places, trouble)], trouble=trouble)


def _given_up(settings: Settings, places: tuple[Place, ...], trouble: str) -> Result:
    place = replace(places[0], more=len(places) - 1)
    result = Result("run", place, "errored", reason=f"not run: {trouble}")
    return replace(result, again=again(settings, result, places))


# ---- in a judge --------------------------------------------------------------------------------


_subjects: dict[tuple[str, str | None], RemoteSubject] = {}
"""The implementations that this judge has started."""


def _subject(target: str, dtype: str | None, timeout: float) -> RemoteSubject:
    if (target, dtype) not in _subjects:
        subject = RemoteSubject(target, dtype, timeout)
        # Without a name it is its default precision, and units are asked for by the name.
        _subjects[target, dtype] = _subjects[target, subject.precision.name] = subject
    return _subjects[target, dtype]


def _begin(target: str, settings: Settings, timeout: float) -> Report:
    subject = _subject(target, settings.dtype, timeout)
    report = new_report(subject, settings, target)
    begin(subject, settings)
    return report


def _run_units(
    target: str, settings: Settings, places: Sequence[Place], timeout: float
) -> tuple[list[Result], str, str]:
    """The results of some units, what it wrote, and why its process is gone, if it is."""
    results: list[Result] = []
    try:
        subject = _subject(target, settings.dtype, timeout)
    except AdapterError as error:  # it was imported before, by another judge
        return [_given_up(settings, tuple(places), str(error))], "", str(error)
    for i, place in enumerate(places):
        if trouble := subject.why_ended:
            results.append(_given_up(settings, tuple(places[i:]), trouble))
            return results, "", trouble
        found = run_unit(subject, settings, place)
        if subject.why_ended:  # what it did in earlier units may have led to it
            ran = tuple(places[: i + 1])
            found = [replace(r, again=again(settings, r, ran)) if r.check == "run" else r
                     for r in found]  # fmt: skip
        results += found
    if trouble := subject.why_ended:
        return results, "", trouble
    try:
        return results, subject.taken_output(), ""
    except AdapterError:  # it ended after its last answer
        return results, "", subject.why_ended


def _diagnose(target: str, place: Settings, timeout: float, save_to: Path | None) -> Diagnosis:
    from vitspec.testing.diagnosis import diagnose

    subject = _subject(target, place.dtype, timeout)
    return diagnose(subject, place, save_to=save_to, target=target)
