"""Ctrl-C, or a cluster's SIGTERM, ends a run after the step that it is at, with a checkpoint.

The first signal is only noted; the loop looks after each step. The second one ends the process as
it always does, in the middle of whatever it is at.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import jax

SIGNALS = (signal.SIGINT, signal.SIGTERM)

SAID = b"\nstopping after this step; once more stops at once\n"


class Interrupted(Exception):  # noqa: N818
    """A signal has ended the run; str() says where it goes on.

    Attributes:
        signal: its number.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class Request:
    """Whether somebody has asked for an end.

    Attributes:
        signal: the number of the signal that did; None before.
    """

    def __init__(self) -> None:
        self.signal: int | None = None


@contextmanager
def noted_signals(wanted: bool) -> Iterator[Request]:
    """Inside, the first signal is noted.

    Of several processes each would note it at another step, and save another step's state, so
    there signals do what they always do; as in any thread but the main one, which alone gets them.

    Args:
        wanted: whether signals are to be noted at all.
    """
    request, before = Request(), dict[int, object]()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def note(number: int, frame: FrameType | None) -> None:
        request.signal = number
        restore()
        os.write(2, SAID)

    alone = jax.process_count() == 1
    if wanted and alone and threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield request
    finally:
        restore()
