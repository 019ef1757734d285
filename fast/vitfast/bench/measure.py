"""The rows of a table take turns.

Each row has a process of its own, which stays. At any time one of them runs and the others are
stopped, so that no thread of theirs spins. In every repetition each row is visited once, so that
what the machine does besides hits all alike, and the smallest time counts.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

from vitfast.bench.cases import Case
from vitfast.bench.rows import CEILINGS, Row
from vitfast.bench.worker import Job, Started, Visit, main

VISIT = 0.3
"""Seconds for which a pass is timed in a visit; a call that takes longer is timed once."""

SILENCE = 900
"""Seconds after which a worker that does not answer is given up."""

SIDES = {"cpu": 2048}
"""The side of the square product; on accelerators a larger one, which keeps them busy."""


def square_side(device: str) -> int:
    """The side of the square product on a device."""
    return SIDES.get(device, 8192)


class WorkerDied(RuntimeError):  # noqa: N818
    """A worker's process ended, or raised an exception, or did not answer."""


class Worker:
    """The parent's side of one process; `stop` it in any case."""

    def __init__(self, job: Job, *, pausing: bool) -> None:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=main, args=(theirs, job), daemon=True)
        with _environment(job):
            self._process.start()
        theirs.close()
        self._pausing = pausing and hasattr(signal, "SIGSTOP")

    def started(self) -> Started:
        """Wait until the model is built and every pass has run once."""
        return self._answer()

    def visit(self, name: str) -> Visit:
        """Have a pass timed."""
        self._connection.send((name, VISIT))
        return self._answer()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let the process run, and stop it again."""
        self._signal("SIGCONT")
        try:
            yield
        finally:
            self._signal("SIGSTOP")

    def stop(self) -> None:
        """End the process."""
        self._process.kill()  # which ends stopped ones too
        self._process.join()
        self._connection.close()

    def _signal(self, name: str) -> None:
        if self._pausing and self._process.is_alive() and self._process.pid is not None:
            os.kill(self._process.pid, getattr(signal, name))
            if name == "SIGSTOP" and hasattr(os, "waitid"):
                # Until it has stopped, or ended; who it was is left for `Process` to see.
                os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def _answer(self) -> Any:
        if not self._connection.poll(SILENCE):
            raise WorkerDied(f"did not answer for {SILENCE} s")
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(10)
            raise WorkerDied(f"its process ended with code {self._process.exitcode}") from None
        if isinstance(answer, Exception):
            raise WorkerDied(str(answer))
        return answer


@dataclass
class Outcome:
    """What came of a row: `status` is "measured", "not installed" or "failed"."""

    row: Row
    status: str
    detail: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    first_call: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    visits: int = 0
    disturbed: int = 0

    def count(self, name: str, visit: Visit) -> None:
        """Take a visit into account."""
        self.seconds[name] = min(visit.seconds, self.seconds.get(name, float("inf")))
        self.visits += 1
        self.disturbed += visit.disturbed


def measure(
    case: Case,
    rows: Sequence[Row],
    *,
    device: str,
    threads: int | None,
    repetitions: int,
    seconds: float,
    keep_memory: bool = False,
    step: Callable[[str], None] = lambda doing: None,
) -> tuple[list[Outcome], list[Outcome]]:
    """Measure one table.

    Args:
        case: the function and its inputs.
        rows: who takes part, installed or not.
        device: "cpu", "gpu" or "tpu".
        threads: of each process, on a CPU; None for all cores.
        repetitions: how often each row is visited, at most.
        seconds: after this time no further repetition begins.
        keep_memory: whether all processes keep what they free.
        step: told what is being done next; called once for each row, then for each visit of one.

    Returns:
        The outcomes of the rows, and of the ceilings.
    """
    side = square_side(device)
    ceilings = [row for row in CEILINGS if not row.missing()]
    outcomes = [_not_yet(row) for row in [*rows, *ceilings]]
    workers: list[tuple[Outcome, Worker]] = []
    try:
        for outcome in outcomes:
            step(f"starting {outcome.row.name}")
            if outcome.status == "measured":
                options = outcome.row.options | ({"side": side} if outcome.row in ceilings else {})
                job = Job(outcome.row.build, case, device, threads, keep_memory, options)
                worker = Worker(job, pausing=device == "cpu")
                workers.append((outcome, worker))
                with _failures(outcome), worker.running():
                    started = worker.started()
                    outcome.first_call, outcome.memory = started.first_call, started.memory
        begin = time.monotonic()
        for repetition in range(repetitions):
            late = repetition > 0 and time.monotonic() - begin > seconds
            for outcome, worker in workers:
                step(f"repetition {repetition + 1}: {outcome.row.name}")
                if outcome.status == "measured" and not late:
                    with _failures(outcome), worker.running():
                        for name in outcome.first_call:
                            outcome.count(name, worker.visit(name))
    finally:
        for _, worker in workers:
            worker.stop()
    return outcomes[: len(rows)], outcomes[len(rows) :]


def steps(rows: Sequence[Row], repetitions: int) -> int:
    """How often `measure` calls `step`, at most."""
    ceilings = sum(not row.missing() for row in CEILINGS)
    installed = sum(not row.missing() for row in rows)
    return len(rows) + ceilings + repetitions * (installed + ceilings)


def _not_yet(row: Row) -> Outcome:
    if missing := row.missing():
        return Outcome(row, "not installed", f"python -m pip install {' '.join(missing)}")
    return Outcome(row, "measured")


@contextmanager
def _failures(outcome: Outcome) -> Iterator[None]:
    """A row whose worker dies is marked as failed, and the others go on."""
    try:
        yield
    except WorkerDied as error:
        outcome.status, outcome.detail = "failed", str(error).strip().splitlines()[0]
        outcome.seconds.clear()


@contextmanager
def _environment(job: Job) -> Iterator[None]:
    """Settings that a library reads when it is imported, for a process that begins in here."""
    settings = {
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # the time to compile is measured
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the processes share a GPU
    }
    if job.case.dtype == "float32":  # accelerators would round the factors of products
        settings["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
    if job.keep_memory:  # in pages of 2 MB
        settings["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    if job.threads is not None:
        settings |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(job.threads))
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
