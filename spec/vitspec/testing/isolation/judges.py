"""Judges: processes that compute truths and verdicts, and start those of implementations."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.util import Finalize
from pathlib import Path
from types import FrameType
from typing import Any

import vitspec
from vitspec.testing.isolation.remote import adopt_orphans, end_all
from vitspec.testing.isolation.stopped import is_stopped, watch

_HOME = str(Path(vitspec.__file__).parents[1])
"""Where vitspec is: this may be the current folder."""
KEEP_FREED = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
"""What has glibc keep memory that is freed, so that the pages of large arrays are not cleared anew;
of judges alone, since XLA becomes slower by it."""
ENDED = "a process of the check itself ended; is there not enough memory?"
STOPPED = "a process of the check itself was stopped (SIGSTOP), by an implementation or by somebody"


class Judges(ProcessPoolExecutor):
    """A pool of judges in which none stands still."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers, mp_context=get_context("spawn"), initializer=_begin_judge)
        self._known: dict[int, Any] = {}
        self._stopped = False
        self._end_of_watch = watch(self._there, self._release)

    @property
    def trouble(self) -> str:
        """Why a judge ended before its work was done."""
        return STOPPED if self._stopped else ENDED

    def close(self) -> None:
        """Wait until the judges have ended, and with them what they started."""
        self.shutdown(cancel_futures=True)
        self._end_of_watch.set()

    def terminate(self) -> None:
        """End the judges, and they their implementations, whatever they do."""
        processes = list((self._processes or {}).values())
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(5)
            process.kill()
        self.shutdown(wait=False, cancel_futures=True)

    def _there(self) -> list[int]:
        self._known |= dict(self._processes or {})
        return [pid for pid, process in self._known.items() if process.is_alive()]

    def _release(self, judge: int) -> None:
        """Have a judge end its implementations, and let it go on.

        To end it might leave half a result in the pipe, for whose other half we would wait.
        """
        self._stopped = True
        for number in (signal.SIGUSR1, signal.SIGCONT):
            with suppress(OSError):
                os.kill(judge, number)


@contextmanager
def worker_pool(workers: int) -> Iterator[Judges]:
    """Judges with one thread each, which keep their standard output to themselves."""
    # One thread each: the processes share the cores, and threads beyond that only wait for each
    # other. No shape checks on what the kit itself draws. And the processes share a GPU.
    settings = {
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "JAXTYPING_DISABLE": "1",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        # A file `pickle.py` in the current folder is no part of the judges, nor is its folder.
        "PYTHONSAFEPATH": "1",
        **{name: str(2**31 - 1) for name in KEEP_FREED},
    }
    before, path = {name: os.environ.get(name) for name in settings}, sys.path[:]
    os.environ.update(settings)
    sys.path[:] = [one for one in path if one and (one != os.getcwd() or one == _HOME)]
    pool = Judges(workers)
    try:
        yield pool
        pool.close()
    except BaseException:
        pool.terminate()  # Ctrl-C, or a fault: do not wait for the units that run
        raise
    finally:
        sys.path[:] = path
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _begin_judge() -> None:
    """Keep the output, end with the implementations, and adopt what they leave behind."""
    _capture()
    adopt_orphans()
    for name in KEEP_FREED:
        os.environ.pop(name, None)
    signal.signal(signal.SIGTERM, _leave)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, lambda *_: end_all(STOPPED))
    command = os.getppid()
    # Once the implementations have ended here, which is done with a higher priority.
    Finalize(None, _go_on, (command,), exitpriority=50)
    watch(lambda: [command], _found_stopped)


def _leave(number: int, frame: FrameType | None) -> None:
    end_all()
    _go_on(os.getppid())
    os._exit(128 + number)


def _found_stopped(command: int) -> None:
    """End here what may have stopped the command, and let that go on."""
    end_all(STOPPED)
    _go_on(command)


def _go_on(command: int) -> None:
    """Let the command go on, should it be stopped."""
    if is_stopped(command):
        with suppress(OSError):
            os.kill(command, signal.SIGCONT)


def _capture() -> None:
    """Send what this process writes to its standard output nowhere: the report goes there."""
    file = tempfile.TemporaryFile("w+b")  # noqa: SIM115 - it lives as long as the process
    os.dup2(file.fileno(), 1)
    sys.stdout = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")
