"""Pillow without its warnings, from however many threads."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class Quiet:
    """Leaves Pillow's warnings out while any thread reads a picture.

    They are about metadata, which decide no pixel but for the orientation, and about pictures with
    very many pixels, which are an error here. `warnings.catch_warnings` alone will not do: the
    filters belong to the process, and threads that leave in another order than they came in would
    put back each other's.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = 0
        self._before = warnings.catch_warnings()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """The first that comes in sets the filter, the last that leaves puts the old ones back."""
        with self._lock:
            self._readers += 1
            if self._readers == 1:
                self._before = warnings.catch_warnings()
                self._before.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            yield
        finally:
            with self._lock:
                self._readers -= 1
                if self._readers == 0:
                    self._before.__exit__(None, None, None)


without_warnings = Quiet()
