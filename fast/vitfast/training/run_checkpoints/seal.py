"""What a checkpoint consists of, in a file beside it: any later change of its bytes is seen.

    {"arrays": {name: [type, shape]}, "files": {path: [bytes, SHA-256]}, "sha256": ..., "step": 30}

The last digest is that of the file itself without it. A file that is missing, cut short or altered
is found by reading every byte once, before anything else reads it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

FILE = "contents.json"

Arrays = dict[str, list[Any]]
"""Of each array by name: its type and its shape."""


def seal(folder: Path, step: int, arrays: Arrays) -> None:
    """Write down what is in a folder, and force all of it to the disk.

    The two files at the top that Orbax completes later have only times in them, which nothing
    reads, and stay out.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.parent != folder]
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(_synced, paths))
    files = {
        path.relative_to(folder).as_posix(): each for path, each in zip(paths, found, strict=True)
    }
    with (folder / FILE).open("xb") as file:
        file.write(_text({"step": step, "arrays": arrays, "files": files}))
        file.flush()
        os.fsync(file.fileno())


def read_seal(folder: Path) -> dict[str, Any]:
    """What `seal` wrote.

    Raises:
        ValueError: it is missing, or not what was written; the message says which.
    """
    try:
        content = (folder / FILE).read_bytes()
    except OSError as error:
        raise ValueError(f"{FILE} cannot be read ({error.strerror})") from error
    try:
        value = json.loads(content)
        value.pop("sha256")
        same = content == _text(value)
    except (ValueError, RecursionError, AttributeError, KeyError):
        same = False
    if not same:
        raise ValueError(f"{FILE} is not as it was written")
    return value


def faults(folder: Path, part: int = 0, parts: int = 1) -> list[str]:
    """What is wrong with the files of a checkpoint: nothing, if the list is empty.

    Args:
        folder: the checkpoint.
        part: of the files, every `parts`-th is read, from this one on.
        parts: how many share the work.
    """
    try:
        written = read_seal(folder)
    except ValueError as error:
        return [str(error)]
    if str(written["step"]) != folder.name:
        return [f"it is that of step {written['step']}, renamed"]
    files = sorted(written["files"].items())[part::parts]
    with ThreadPoolExecutor() as pool:
        return [fault for fault in pool.map(lambda item: _fault(folder, *item), files) if fault]


def _fault(folder: Path, name: str, expected: list[Any]) -> str | None:
    try:
        size = (folder / name).stat().st_size
        if size != expected[0]:
            return f"{name} has {size} bytes instead of {expected[0]}"
        return None if _digest(folder / name) == expected else f"the bytes of {name} have changed"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"


def _digest(path: Path, sync: bool = False) -> list[Any]:
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return [file.tell(), digest]


def _synced(path: Path) -> list[Any]:
    return _digest(path, sync=True)


def _text(value: Mapping[str, Any]) -> bytes:
    """The bytes of the file, its own digest included."""
    own = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    return json.dumps({**value, "sha256": own}, sort_keys=True, indent=1).encode()
