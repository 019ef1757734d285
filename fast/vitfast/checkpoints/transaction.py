"""Files written into a folder together: all of them or none.

Each file is written in full, under a temporary name in the same folder, and forced to the disk.
Only then are they put in place: what was there is set aside, the new files get their names, and
what was set aside is removed. An error on the way puts everything back. If the machine stops in
between, the last file (config.json, which a reader needs) is missing, so that nothing mixed can be
read.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO


class Transaction:
    """A context in which files are written, and in place only after `commit`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mark = secrets.token_hex(4)
        self._staged: list[str] = []
        self._created: list[Path] = []

    def __enter__(self) -> Transaction:
        above = [self.folder, *self.folder.parents]
        self._created = [one for one in above if not one.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def write(self, name: str, write: Callable[[BinaryIO], None]) -> None:
        """Write one file under its temporary name."""
        self._staged.append(name)
        with open(self._new(name), "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())

    def commit(self, stale: Iterable[str] = ()) -> None:
        """Put the files in place, in the order in which they were written; remove the stale ones.

        What was there is set aside in the opposite order, so that the last file's old version goes
        first.
        """
        aside = [
            name
            for name in dict.fromkeys([*reversed(self._staged), *stale])
            if os.path.lexists(self.folder / name)
        ]
        moved: list[str] = []
        placed: list[str] = []
        try:
            for name in aside:
                os.replace(self.folder / name, self._old(name))
                moved.append(name)
            for name in self._staged:
                os.replace(self._new(name), self.folder / name)
                placed.append(name)
        except BaseException:
            for name in reversed(placed):
                os.unlink(self.folder / name)
            for name in reversed(moved):
                os.replace(self._old(name), self.folder / name)
            raise
        self._staged, self._created = [], []
        self._sync()
        for name in moved:
            with contextlib.suppress(OSError):  # the new files are there, whatever becomes of these
                os.unlink(self._old(name))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        for name in self._staged:
            with contextlib.suppress(OSError):
                os.unlink(self._new(name))
        for folder in self._created:
            with contextlib.suppress(OSError):  # somebody else may have put something there
                folder.rmdir()

    def _new(self, name: str) -> Path:
        return self.folder / f".{name}.{self._mark}.new"

    def _old(self, name: str) -> Path:
        return self.folder / f".{name}.{self._mark}.old"

    def _sync(self) -> None:
        """Force the folder itself to the disk, where folders can be opened."""
        with contextlib.suppress(OSError):
            descriptor = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
