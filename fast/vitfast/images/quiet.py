"""Pillow without its warnings, from however many threads."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

FILTER: Any = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
"""What `warnings.filterwarnings("ignore", module=r"PIL\\.")` puts among the filters."""


class Quiet:
    """Leaves Pillow's warnings out while any thread reads a picture.

    They are about metadata, which decide no pixel but for the orientation, and about pictures with
    very many pixels, which are an error here. `warnings.catch_warnings` will not do: the filters
    belong to the process, and threads that leave in another order than they came in would put back
    each other's. So one filter is put in, and that one alone is taken out.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = 0
        self._added = False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """The first that comes in puts the filter in, the last that leaves takes it out."""
        with self._lock:
            self._readers += 1
            if self._readers == 1:
                self._added = FILTER not in warnings.filters
                warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            yield
        finally:
            with self._lock:
                self._readers -= 1
                if self._readers == 0 and self._added:
                    # Another thread may have put older filters back meanwhile, without it.
                    with suppress(ValueError):
                        warnings.filters.remove(FILTER)  # type: ignore[attr-defined]


without_warnings = Quiet()
