"""An implementation in another process, as a `Subject` that a judge can call."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import is_dataclass
from multiprocessing import get_context
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import numpy as np

from vitspec.testing.adapter_errors import WHOLE, AdapterError, ProcessEndedError, guarded, shown
from vitspec.testing.description import Description
from vitspec.testing.families import Config
from vitspec.testing.identities.naming import Naming, Stored
from vitspec.testing.implementations import Subject
from vitspec.testing.isolation.served import SET_CHILD_SUBREAPER, Held, serve
from vitspec.testing.isolation.stopped import LOOK, Stillness, is_stopped
from vitspec.testing.isolation.wire import receive_answer, send_call
from vitspec.testing.reference import Flat, Point
from vitspec.typing import Array


class TargetProcess:
    """The process of one implementation.

    Args:
        target: what the command line calls it.
        dtype: the precision; None for its default.
        timeout: seconds for one answer, after which it is taken to hang and ended.
    """

    def __init__(self, target: str, dtype: str | None, timeout: float) -> None:
        self.target, self.timeout = target, timeout
        self.why_ended, self._stopped = "", False
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, target, dtype))
        # It may have children of its own, so it is no daemon; `multiprocessing` would wait for it.
        self._finalize = Finalize(self, _end, (self._process,), exitpriority=100)
        _started.append(self)
        self._process.start()
        theirs.close()

    def call(self, method: str, *arguments: Any, where: str) -> tuple[Any, dict[str, Array]]:
        """What a call in the process returned.

        Args:
            method: of `Server`.
            arguments: what pickle can take.
            where: what it is doing meanwhile, for the message if it does not survive.

        Raises:
            ProcessEndedError: the process is gone, now or since an earlier call.
            AdapterError: the implementation raised, or answers nonsense.
        """
        if self.why_ended:
            raise ProcessEndedError(self.why_ended)
        answered, hung = threading.Event(), threading.Event()
        watch = threading.Thread(target=self._watch, args=(answered, hung), daemon=True)
        watch.start()
        try:
            send_call(self._connection, method, arguments)
            data, arrays = receive_answer(self._connection)
            error, answer = data.get("error"), data.get("answer")
        except (EOFError, OSError):
            answered.set()
            watch.join()
            raise self._ended(where, hung.is_set()) from None
        except Exception as nonsense:
            answered.set()
            self._ended(where, hung=False)
            self.why_ended = f"{self.target!r} answers nonsense {where}: {shown(nonsense, str)}"
            raise ProcessEndedError(self.why_ended) from None
        finally:
            answered.set()
            watch.join()
        if hung.is_set():  # its time was over just as it answered
            raise self._ended(where, hung=True)
        if error is not None:
            raise AdapterError(shown(error, str, WHOLE), str(data.get("raised", "")))
        return answer, arrays

    def end(self) -> None:
        """End the process and all that it started."""
        self._finalize()

    def _watch(self, answered: threading.Event, hung: threading.Event) -> None:
        """End what is left when the process is gone, or the time is over: so the pipe closes.

        A child that the implementation forked has the pipe open too, in a session of its own even.
        """
        deadline, stillness = time.monotonic() + self.timeout, Stillness()
        while not answered.wait(LOOK):
            if time.monotonic() > deadline:
                hung.set()
            self._stopped |= stillness.of(self._process.pid or 0)
            if self._stopped or hung.is_set() or not self._process.is_alive():
                _kill(self._process)
                if _adopting:
                    _end_orphans()

    def _ended(self, where: str, hung: bool) -> ProcessEndedError:
        there = not _gone(self._process, 1)  # its end of the pipe closes before it is gone
        how = "it closed its connection" if there else _how(self._process.exitcode)
        how = "it was stopped: SIGSTOP" if self._stopped else how
        why = f"{self.target!r} ended its process {where} ({how})"
        if hung:
            why = (
                f"{self.target!r} gave no result for {self.timeout:g} s {where}; "
                "--timeout gives it longer"
            )
        self.why_ended = self.why_ended or why
        self.end()
        return ProcessEndedError(self.why_ended)


_started: list[TargetProcess] = []


def end_all(why: str = "") -> None:
    """End every process of an implementation that this one has started; calls say why."""
    for process in _started:
        process.why_ended = process.why_ended or why
        process.end()


class RemoteSubject(Subject):
    """An implementation that a process of its own imports and runs.

    Args:
        target: what the command line calls it.
        dtype: the precision; None for its default.
        timeout: seconds for one answer.

    Raises:
        AdapterError: there is none, it does not load, it lacks something, or does not survive that.
    """

    def __init__(self, target: str, dtype: str | None, timeout: float) -> None:
        self._process = TargetProcess(target, dtype, timeout)
        try:
            said, _ = self._process.call("describe", where="while it was imported")
            with guarded(f"{target!r}: what it says of itself"):
                sets = {name: frozenset(said.pop(name)) for name in ("methods", "layers")}
                description = Description(**said | {"dtypes": tuple(said["dtypes"])} | sets)
            self._take(description, dtype)
        except BaseException:
            self.end()
            raise

    @property
    def why_ended(self) -> str:
        """Why the process is gone; "" while it is there."""
        return self._process.why_ended

    def end(self) -> None:
        """End the process and all that it started."""
        self._process.end()

    def taken_output(self) -> str:
        """What it wrote to its standard output since the last call of this."""
        return str(self._call("output", where="afterwards")[0])

    def reason(self, method: str, config: Config, *size: int) -> str | None:
        """See `Subject.reason`."""
        if method not in self.description.methods:
            return None
        said, _ = self._call("reason", method, config, *size, where=f"in {method}")
        return None if said is None else str(said)

    def closest(self, config: Config) -> Config:
        """See `Subject.closest`."""
        if "closest" not in self.description.methods:
            return config
        found, _ = self._call("closest", config, where="in closest")
        with self.guarded("closest", config):
            own = {name: _like(getattr(config, name, None), value) for name, value in found.items()}
            return type(config)(**own)

    def forward(self, point: Point) -> Flat:
        """See `Subject.forward`."""
        _, found = self._call("forward", point, self.precision.name, where=f"in forward on {point}")
        taps = {name: found.pop(name) for name in list(found) if name != "logits"}
        return self._checked("forward", found, {"logits": point.cotangent.shape}, point) | taps

    def vjp(self, point: Point) -> Flat:
        """See `Subject.vjp`."""
        _, found = self._call("vjp", point, self.precision.name, where=f"in vjp on {point}")
        expected = {name: array.shape for name, array in point.params.items()}
        return self._checked("vjp", found, {"image": point.images.shape} | expected, point)

    def layer(self, name: str, arguments: Flat, settings: Any) -> Flat:
        """See `Subject.layer`."""
        return self._call("layer", name, arguments, dict(settings), where=f"in layer {name}")[1]

    def example(self, rng: np.random.Generator) -> tuple[Any, Flat, Array, tuple[int, ...]]:
        """See `Subject.example`; the configuration stays there, here is what stands for it."""
        said, arrays = self._call("example", rng, where="in example")
        with self.guarded("example"):
            rng.bit_generator.state = said["rng"]
            config = Held(said["number"], said["text"], said["read"])
            params = {n.removeprefix("params."): x for n, x in arrays.items() if n != "images"}
            return config, params, arrays["images"], tuple(said["shape"])

    @property
    def naming(self) -> Naming | None:
        """See `Subject.naming`."""
        said, _ = self._call("naming", where="in naming")
        if said is None:
            return None
        with self.guarded("naming"):
            roles = {
                role: Stored(one["name"], one["out_first"], tuple(one["part"]))
                for role, one in said["roles"].items()
            }
            return Naming(**said | {"roles": roles, "ignored": tuple(said["ignored"])})

    def _call(self, method: str, *arguments: Any, where: str) -> tuple[Any, dict[str, Array]]:
        return self._process.call(method, *arguments, where=where)


# ---- ending processes --------------------------------------------------------------------------


def _like(old: Any, value: Any) -> Any:
    """A field of a configuration, which may be a record itself, as the kind that it was."""
    kind: Any = type(old)
    return kind(**value) if is_dataclass(old) and isinstance(value, dict) else value


def adopt_orphans() -> None:
    """Become the parent of whatever an implementation leaves behind, so that it can be ended.

    Linux only; elsewhere what has left the implementation's group of processes lives on.
    """
    die_with_parent = 1
    if _prctl(die_with_parent, signal.SIGTERM) and _prctl(SET_CHILD_SUBREAPER, 1):
        _adopting.append(True)


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """End what a judge that was killed has left of its implementations; for a command's process."""
    before = set(_children())
    adopts = _prctl(SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        if adopts:
            _end_orphans(before)
            _prctl(SET_CHILD_SUBREAPER, 0)
        for pid in filter(is_stopped, _children()):  # what multiprocessing needs until the end
            with suppress(OSError):
                os.kill(pid, signal.SIGCONT)


def _prctl(option: int, value: int) -> bool:
    """Whether Linux did what it was asked for."""
    if sys.platform != "linux":
        return False
    with suppress(OSError, AttributeError):
        return bool(ctypes.CDLL(None).prctl(option, value) == 0)
    return False


_adopting: list[bool] = []


def _end(process: Any) -> None:
    """End a process and all that it started."""
    if process.pid is None:  # it was never started
        return
    _kill(process)
    _gone(process, 5)
    if _adopting:
        _end_orphans()


def _gone(process: Any, seconds: float) -> bool:
    """Whether a process ends in time; `join` waits for a pipe that its children have too."""
    deadline = time.monotonic() + seconds
    while process.is_alive():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _kill(process: Any) -> None:
    if hasattr(os, "killpg"):
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    with suppress(OSError, ValueError):
        process.kill()


def _end_orphans(before: Iterable[int] = ()) -> None:
    """End what has come to this process from implementations that are gone."""
    from multiprocessing import active_children
    from multiprocessing.resource_tracker import _resource_tracker

    for _ in range(100):
        tracker = getattr(_resource_tracker, "_pid", None)
        own = {child.pid for child in active_children()} | {*before, tracker}
        orphans = [pid for pid in _children() if pid not in own]
        if not orphans:
            return
        for pid in orphans:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
            with suppress(OSError):
                os.waitpid(pid, 0)


def _children() -> list[int]:
    found: list[int] = []
    for file in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, file.read_text().split())
    return found


def _how(code: int | None) -> str:
    """How a process ended."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in [*signal.Signals] else f"signal {-code}"
        guess = "out of memory?" if name == "SIGKILL" else "a crash in native code?"
        return f"{name}: {guess}"
    return f"exit code {code}: it left, or native code did"
