"""The process in which one row runs: it builds the model, and then runs a pass when asked to."""

from __future__ import annotations

import ctypes
import importlib
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from vitfast.allocator import keep_freed_memory
from vitfast.bench.cases import Case, Flat

SETTLING = 6
"""Calls at most until the process, which keeps what it frees, takes no more from the system."""

LONG = 1.0
"""Seconds from which on a call is not run once in vain before it is timed."""

DISTURBED = 0.1
"""The cores that other processes may use on average while a pass is timed."""


@runtime_checkable
class Model(Protocol):
    """What the function that builds a row returns."""

    passes: dict[str, Callable[[], Any]]
    """By name of the pass, a function that returns when the result is there."""

    def memory(self) -> dict[str, int]:
        """Bytes, by name, that the framework knows of."""

    def results(self) -> Flat:
        """What the passes compute, by our names, in NumPy."""


@dataclass(frozen=True)
class Job:
    """What a worker is to run: "module:function" called with (case, device, **options).

    `keep_memory` lets the process keep what it frees: `vitfast.allocator`.
    """

    build: str
    case: Case
    device: str = "cpu"
    threads: int | None = None
    keep_memory: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Started:
    """A model is built and each pass has run once: seconds of those first calls, and bytes."""

    first_call: dict[str, float]
    memory: dict[str, int]


@dataclass(frozen=True)
class Visit:
    """One visit: the fastest call, the number of calls, and whether others used the cores."""

    seconds: float
    calls: int
    disturbed: bool


def main(connection: Connection, job: Job) -> None:
    """Answer requests until the parent closes the connection; an exception is an answer too."""
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's business
    if job.threads is not None and hasattr(os, "sched_setaffinity"):
        # XLA has as many threads as there are cores for the process.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job.threads])
    if job.keep_memory:
        keep_freed_memory()
    try:
        model, started = start(job)
        connection.send(started)
        while (request := connection.recv()) is not None:
            connection.send(visit(model.passes[request[0]], request[1]))
    except EOFError:
        pass
    except Exception as error:
        connection.send(RuntimeError(f"{type(error).__name__}: {error}"))


def start(job: Job) -> tuple[Model, Started]:
    """Build the model and run every pass once, which compiles it."""
    module, function = job.build.split(":")
    build = getattr(importlib.import_module(module), function)
    if job.threads is not None and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(job.threads)
    memory = {"rss_imported": peak_rss()}
    model: Model = build(job.case, job.device, **job.options)
    memory["rss_built"] = peak_rss()
    first_call = {}
    for name, run in model.passes.items():
        begin = time.perf_counter()
        run()
        first_call[name] = time.perf_counter() - begin
        memory[f"rss_{name}"] = peak_rss()
    if job.keep_memory:
        for run in model.passes.values():
            _settle(run)
    return model, Started(first_call, memory | model.memory())


def visit(run: Callable[[], Any], seconds: float) -> Visit:
    """Time calls for about so many seconds, one at least, after one that is not timed."""
    busy, own, begin = _busy(), time.process_time(), time.perf_counter()
    result = run()
    untimed = time.perf_counter() - begin
    times = [untimed] if untimed > LONG else []
    while not times or (untimed <= LONG and time.perf_counter() - begin < untimed + seconds):
        del result  # before the next: its memory is then free, as in a loop that uses it
        before = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - before)
    wall = time.perf_counter() - begin
    others = (_busy() - busy) - (time.process_time() - own)
    return Visit(min(times), len(times), others > DISTURBED * wall + 0.02)


def _settle(run: Callable[[], Any]) -> None:
    """Call a pass until its memory is there.

    Freed blocks are cut up before they fit: the first calls still take fresh pages from the
    system, which clears them, and can double a call's time.
    """
    for _ in range(SETTLING):
        before = resource.getrusage(resource.RUSAGE_SELF)
        run()
        after = resource.getrusage(resource.RUSAGE_SELF)
        if after.ru_stime - before.ru_stime < 0.05 * (after.ru_utime - before.ru_utime):
            return


def peak_rss() -> int:
    """The most memory that this process has had, in bytes.

    Linux counts what the parent had into `ru_maxrss`, so it is read elsewhere there.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def _busy() -> float:
    """Seconds that all cores of the machine have worked, where the system says so."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            user, nice, system, _, _, irq, softirq, *_ = map(int, file.readline().split()[1:])
    except OSError:
        return 0.0
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _die_with_parent() -> None:
    """Have Linux end this process with its parent: a stopped one would not notice."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
