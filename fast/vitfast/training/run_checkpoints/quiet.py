"""Orbax's noise, silenced: what fails is said once, in one line, by the error that we raise.

When a write fails, Orbax logs the traceback of each of its threads, and TensorStore's, which report
to an event loop that is closed by then, print one for each array.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from types import TracebackType


def silence() -> None:
    """Silence it for good: its threads may speak up after the error has been raised."""
    logging.getLogger("absl").addFilter(_not_from_orbax)  # once, however often
    if not isinstance(sys.excepthook, _ExceptHook):
        sys.excepthook = _ExceptHook(sys.excepthook)


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


class _ExceptHook:
    """`sys.excepthook` as it was, but for errors that nobody can catch."""

    def __init__(self, other: Callable[..., object]) -> None:
        self.other = other

    def __call__(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if not (kind is RuntimeError and str(error) == "Event loop is closed"):
            self.other(kind, error, trace)
