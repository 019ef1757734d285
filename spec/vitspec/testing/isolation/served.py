"""What runs in the process of an implementation: it imports the implementation and answers calls.

Nothing here is trusted by a judge: the implementation may have changed any of it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from vitspec.testing.adapter_errors import WHOLE, AdapterError, raised, shown
from vitspec.testing.finding import find
from vitspec.testing.implementations import Subject
from vitspec.testing.isolation.wire import receive_call, send_answer
from vitspec.testing.reference import Flat, Point

READ = ("stride", "padding", "head_count", "num_attention_heads", "num_heads", "n_heads", "heads")
"""What identities read of a configuration of another function."""
OUTPUT = 10_000
"""Bytes of its standard output that are kept of each call for it."""

SET_CHILD_SUBREAPER = 36
"""What Linux is asked for to have a process adopt what its children leave behind."""

Answer = tuple[Any, Flat]


@dataclass(frozen=True)
class Held:
    """A configuration of the user's own, which stays in the implementation's process.

    Attributes:
        number: which.
        text: how it prints.
        read: its attributes of `READ`, as far as they are whole numbers.
    """

    number: int
    text: str
    read: Mapping[str, Any]

    def __repr__(self) -> str:
        """What the configuration itself prints."""
        return self.text

    def __getattr__(self, name: str) -> Any:
        """An attribute of the configuration."""
        if name in READ and name in (read := self.__dict__.get("read", {})):
            return read[name]
        raise AttributeError(name)


def serve(connection: Connection, target: str, dtype: str | None) -> None:
    """Import an implementation and answer calls until the judge is gone; does not return."""
    _stand_apart()
    os.environ.pop("PYTHONSAFEPATH", None)  # for judges; what it starts finds modules as ever
    taken_output = _capture()
    server: Server | None = None
    while True:
        try:
            method, arguments = receive_call(connection)
        except (EOFError, OSError):
            os._exit(0)
        arrays: Flat = {}
        try:
            if method == "describe":
                server = Server(Subject(find(target), dtype))
                data: Any = {"answer": server.describe()}
            elif method == "output":
                data = {"answer": taken_output()}
            else:
                answer, arrays = getattr(server, method)(*arguments)
                data = {"answer": answer}
            send_answer(connection, data, arrays)
        except BaseException as error:  # Ctrl-C does not come here: it raised that itself
            if isinstance(error, AdapterError):
                said = {"error": shown(error, str, WHOLE), "raised": error.raised}
            else:
                said = {"error": f"{target!r}: {method} raised {raised(error)}"}
            send_answer(connection, said, {})


class Server:
    """The calls of a judge, by their names: each returns data for JSON, and arrays."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.held: list[Any] = []

    def describe(self) -> dict[str, Any]:
        """What it says of itself."""
        said = asdict(self.subject.description)
        return {n: sorted(v) if isinstance(v, frozenset) else v for n, v in said.items()}

    def reason(self, *arguments: Any) -> Answer:
        """See `Subject.reason`."""
        return self.subject.reason(*arguments), {}

    def closest(self, config: Any) -> Answer:
        """The fields of the nearest configuration."""
        return asdict(self.subject.closest(config)), {}

    def forward(self, point: Point, dtype: str) -> Answer:
        """See `Subject.forward`."""
        return None, self.subject.in_precision(dtype).forward(self._own(point))

    def vjp(self, point: Point, dtype: str) -> Answer:
        """See `Subject.vjp`."""
        return None, self.subject.in_precision(dtype).vjp(self._own(point))

    def layer(self, *arguments: Any) -> Answer:
        """See `Subject.layer`."""
        return None, self.subject.layer(*arguments)

    def naming(self) -> Answer:
        """The fields of its own naming, or None."""
        naming = self.subject.naming
        return naming and asdict(naming), {}

    def example(self, rng: np.random.Generator) -> Answer:
        """A point of its own; the configuration stays here."""
        config, params, images, shape = self.subject.example(rng)
        self.held.append(config)
        read = (
            config if isinstance(config, Mapping) else {n: getattr(config, n, None) for n in READ}
        )
        data = {
            "number": len(self.held) - 1,
            "text": shown(config),
            "read": {n: v for n in READ if isinstance(v := read.get(n), int | tuple)},
            "shape": shape,
            "rng": rng.bit_generator.state,
        }
        return data, {"images": images} | {f"params.{name}": x for name, x in params.items()}

    def _own(self, point: Point) -> Point:
        held = isinstance(point.config, Held)
        return replace(point, config=self.held[point.config.number]) if held else point


def _stand_apart() -> None:
    """Lead a session and group of processes, which can be ended as a whole.

    What its children leave behind stays here as long as this process does: the judge, which runs
    several implementations, then adopts only what belongs to one that is gone.
    """
    if hasattr(os, "setsid"):
        with suppress(OSError):
            os.setsid()
    if sys.platform == "linux":
        die_with_parent = 1
        with suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            libc.prctl(die_with_parent, signal.SIGKILL)
            libc.prctl(SET_CHILD_SUBREAPER, 1)


def _capture() -> Callable[[], str]:
    """Send what this process writes to its standard output into a file.

    Returns:
        What takes it out of there.
    """
    file = tempfile.TemporaryFile("w+b")  # noqa: SIM115 - it lives as long as the process
    os.dup2(file.fileno(), 1)
    sys.stdout = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")

    def taken() -> str:
        with suppress(Exception):  # the implementation may have closed or replaced it
            sys.stdout.flush()
        file.seek(0)
        text = file.read(OUTPUT).decode("utf-8", "replace")
        file.seek(0)
        file.truncate()
        return text

    return taken
