"""Orbax's noise, silenced: what fails is said once, in one line, by the error that we raise.

When a write fails, Orbax logs the traceback of each of its threads, and TensorStore's, which report
to an event loop that is closed by then, print one for each array.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable


def silence() -> None:
    """Silence it for good: its threads may speak up after the error has been raised."""
    logging.getLogger("absl").addFilter(_not_from_orbax)  # once, however often
    if not isinstance(sys.unraisablehook, _Hook):
        sys.unraisablehook = _Hook(sys.unraisablehook)


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


class _Hook:
    """`sys.unraisablehook` as it was, but for TensorStore's."""

    def __init__(self, other: Callable[["sys.UnraisableHookArgs"], object]) -> None:
        self.other = other

    def __call__(self, unraisable: "sys.UnraisableHookArgs") -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            self.other(unraisable)
