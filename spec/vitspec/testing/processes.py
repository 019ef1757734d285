"""Check implementations in processes of their own, by what the command line calls them.

So the command survives an implementation that crashes, hangs, or writes to its standard output,
and uses all cores.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from typing import Any

from vitspec.testing.finding import find
from vitspec.testing.implementations import AdapterError, Subject
from vitspec.testing.report.report import Report
from vitspec.testing.results import Place, Result
from vitspec.testing.run import again, begin, plan, run_unit
from vitspec.testing.settings import Settings
from vitspec.testing.suites import SUITES

CRASHED = "ended its process{} (a crash in native code, or out of memory?)"


@dataclass(frozen=True)
class Progress:
    """What one process found at some places, for one target.

    Attributes:
        target: the implementation.
        places: the units that are done, or given up.
        results: theirs.
        output: what the implementation wrote to its standard output meanwhile.
        trouble: what happened, if an implementation crashed or hangs: the units were given up.
    """

    target: str
    places: tuple[Place, ...]
    results: list[Result]
    output: str = ""
    trouble: str = ""


def check_targets(
    reports: dict[str, Report], settings: Settings, workers: int, timeout: float
) -> Iterator[Progress]:
    """Check implementations, by their targets, in processes; the reports receive the results.

    Args:
        reports: a new report for each target.
        settings: what to check.
        workers: how many processes.
        timeout: seconds without any result, after which what runs is taken to hang.

    Yields:
        Whatever is done, as it comes.

    Raises:
        AdapterError: an implementation does not even work on a one-block model.
    """
    start = time.monotonic()
    with worker_pool(workers) as pool:
        own = {t: replace(settings, dtype=report.dtype) for t, report in reports.items()}
        _begin_all(pool, own, timeout)
        futures = {
            pool.submit(_run_units, target, settings, places): (target, settings, places)
            for places in _batches(plan(settings))
            for target, settings in own.items()
        }
        troubled = False
        for done in _as_they_come(futures, timeout):
            report = reports[done.target]
            report.results += done.results
            report.output += done.output
            report.seconds = time.monotonic() - start
            troubled = troubled or bool(done.trouble)
            yield done
        if troubled:  # some process may never end
            terminate(pool)


def _begin_all(pool: ProcessPoolExecutor, own: Mapping[str, Settings], timeout: float) -> None:
    """Try each target with its own settings."""
    futures = {pool.submit(_begin, target, settings): target for target, settings in own.items()}
    done, pending = wait(futures, timeout)
    for future in done:
        try:
            future.result()
        except BrokenProcessPool as error:
            crashed = CRASHED.format(" on a one-block model")
            raise AdapterError(f"{futures[future]!r} {crashed}") from error
    if pending:
        terminate(pool)
        hanging = ", ".join(sorted(futures[f] for f in pending))
        raise AdapterError(
            f"{hanging} gave no result for {timeout:g} s on a one-block model; "
            "--timeout gives it longer"
        )


def _batches(places: Sequence[Place]) -> Iterator[tuple[Place, ...]]:
    """The places in batches, each for one task of the pool."""
    for suite in SUITES.values():
        own = [place for place in places if place.suite == suite.name]
        for i in range(0, len(own), suite.batch):
            yield tuple(own[i : i + suite.batch])


Futures = dict[Future[Any], tuple[str, Settings, tuple[Place, ...]]]


def _as_they_come(futures: Futures, timeout: float) -> Iterator[Progress]:
    """What each process found; after a crash or a timeout all that is left is given up."""
    pending, trouble = set(futures), ""
    while pending:
        done, pending = wait(pending, timeout, FIRST_COMPLETED)
        if not done:
            trouble = f"gave no result for {timeout:g} s (--timeout)"
        for future in done or pending:
            found = _outcome(future, *futures[future], trouble)
            trouble = trouble or found.trouble
            yield found
        if trouble:
            for future in pending if done else ():
                yield _outcome(future, *futures[future], trouble)
            return


def _outcome(
    future: Future[Any], target: str, settings: Settings, places: tuple[Place, ...], trouble: str
) -> Progress:
    """A future's results, or one that says why there are none."""
    if future.done() and not future.cancelled():
        try:
            results, output = future.result()
            return Progress(target, places, results, output)
        except BrokenProcessPool:
            trouble = CRASHED.format("")
    place = replace(places[0], more=len(places) - 1)
    result = Result("run", place, "errored", reason=f"it {trouble}")
    result = replace(result, again=again(settings, result, places))
    return Progress(target, places, [result], trouble=trouble)


# ---- the processes -----------------------------------------------------------------------------


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes with one thread each, which keep their standard output to themselves."""
    # One thread each: the processes share the cores, and threads beyond that only wait for each
    # other. No shape checks on what the kit itself draws. And the processes share a GPU.
    settings = {
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "JAXTYPING_DISABLE": "1",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_capture)
    try:
        yield pool
    except BaseException:
        terminate(pool)  # Ctrl-C, or a fault: do not wait for the units that run
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def terminate(pool: ProcessPoolExecutor) -> None:
    """End the processes, whatever they do."""
    for process in list((pool._processes or {}).values()):
        process.kill()


_captured: Any = None


def _capture() -> None:
    """Send what this process writes to its standard output into a file."""
    global _captured
    _captured = tempfile.TemporaryFile("w+b")  # noqa: SIM115 - it lives as long as the process
    os.dup2(_captured.fileno(), 1)
    sys.stdout = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")


def _taken_output() -> str:
    sys.stdout.flush()
    _captured.seek(0)
    text = _captured.read(10_000).decode("utf-8", "replace")
    _captured.seek(0)
    _captured.truncate()
    return text


@cache
def _subject(target: str, dtype: str | None) -> Subject:
    return Subject(find(target), dtype)


def _begin(target: str, settings: Settings) -> None:
    begin(_subject(target, settings.dtype), settings)


def _run_units(
    target: str, settings: Settings, places: Sequence[Place]
) -> tuple[list[Result], str]:
    subject = _subject(target, settings.dtype)
    results = [result for place in places for result in run_unit(subject, settings, place)]
    return results, _taken_output()
