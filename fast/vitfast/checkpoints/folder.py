"""The files of a checkpoint's folder: regular files within it, and nothing else.

What a folder holds may have been made by somebody else. A file is opened only if, with every
symbolic link followed, it is a regular file inside the folder. One arrangement has links that
leave the folder and is known: the cache of the Hugging Face hub, whose snapshots link to `blobs`
beside them,

    models--owner--name/snapshots/<revision>/model.safetensors -> ../../blobs/<hash>

There, the bound is the folder `models--owner--name`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vitfast.checkpoints.errors import CheckpointError, quoted


@dataclass(frozen=True)
class RegularFile:
    """A regular file as it was found: its path as given, the file that this is, size and age."""

    shown: str
    path: str
    size: int
    stamp: tuple[int, int, int]

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The file, open for reading, if it is still the one that was found.

        Raises:
            CheckpointError: it cannot be opened or read, or has been changed or exchanged since.
        """
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        try:
            with open(os.open(self.path, flags | getattr(os, "O_BINARY", 0)), "rb", 0) as file:
                if _stamp(os.fstat(file.fileno())) != self.stamp:
                    raise CheckpointError(
                        self.shown, ["the file has changed since it was opened; load it again"]
                    )
                yield file
        except OSError as error:
            raise CheckpointError(self.shown, [f"cannot be read: {error.strerror}"]) from error

    def read(self, limit: int) -> bytes:
        """All bytes, which must not be more than `limit`."""
        if self.size > limit:
            raise CheckpointError(
                self.shown, [f"expected at most {limit} bytes, found {self.size}"]
            )
        content = bytearray(self.size)
        self.read_into(memoryview(content), 0)
        return bytes(content)

    def read_into(self, buffer: memoryview, begin: int) -> None:
        """Fill a buffer with the bytes from `begin` on."""
        with self.open() as file:
            file.seek(begin)
            done = 0
            while done < len(buffer):
                if not (count := file.readinto(buffer[done:])):  # type: ignore[attr-defined]
                    raise CheckpointError(self.shown, ["the file ended while it was read"])
                done += count


@dataclass(frozen=True)
class Folder:
    """A folder that holds a checkpoint."""

    path: Path

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> Folder:
        """The folder of this path, which must be one."""
        folder = Path(path)
        if not folder.is_dir():
            what = "it is a file" if folder.exists() else "there is nothing of that name"
            raise CheckpointError(str(folder), [f"expected the folder of a checkpoint; {what}"])
        return cls(folder)

    @property
    def bound(self) -> Path:
        """The folder that no link may leave."""
        real = Path(os.path.realpath(self.path))
        hub = real.parent.parent
        is_snapshot = real.parent.name == "snapshots" and hub.name.startswith("models--")
        return hub if is_snapshot else real

    def has(self, name: str) -> bool:
        """Whether there is anything of this name, even a link that leads nowhere."""
        return os.path.lexists(self.path / name)

    def file(self, name: str) -> RegularFile:
        """The file of this name.

        Raises:
            CheckpointError: the name is a path, or what it names is missing, outside of the folder,
                or no regular file.
        """
        shown = f"{self.path}{os.sep}{name}"
        if name in ("", ".", "..") or not name.isprintable() or set(name) & set("/\\:\0"):
            raise CheckpointError(
                str(self.path), [f"expected the name of a file in this folder, got {quoted(name)}"]
            )
        try:
            real = os.path.realpath(self.path / name, strict=True)
            if not Path(real).is_relative_to(self.bound):
                raise CheckpointError(
                    shown, ["links to a file outside of the folder; put the file itself there"]
                )
            found = os.stat(real)
        except FileNotFoundError as error:
            raise CheckpointError(shown, ["there is no such file"]) from error
        except OSError as error:
            raise CheckpointError(shown, [f"cannot be read: {error.strerror}"]) from error
        if not stat.S_ISREG(found.st_mode):
            raise CheckpointError(shown, ["expected a regular file; it was not opened"])
        return RegularFile(shown, real, found.st_size, _stamp(found))


def _stamp(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_size, found.st_mtime_ns
