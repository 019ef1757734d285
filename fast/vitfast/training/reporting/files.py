"""Files of a run, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

from vitfast.training.reporting.errors import ReportFailed

NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
"""JSON has no such numbers; in our files they are these strings."""


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is the old one or the new one, on the disk, whenever the process ends.

    The temporary file has a fixed name, so that what a killed process left is written over.

    Raises:
        ReportFailed: it cannot be written, as on a full disk; the old one is still there.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise failed(path, error) from error


def write_json(path: Path, data: Any) -> None:
    """Write JSON, indented, as `write_whole` does; what is not finite as a string."""
    text = json.dumps(plain(data), indent=1, allow_nan=False, ensure_ascii=False)
    write_whole(path, (text + "\n").encode())


def failed(path: Path, error: OSError) -> ReportFailed:
    """One line about a file that could not be written."""
    return ReportFailed(
        f"{path}: could not be written ({error.strerror or error}); make room or give access, then "
        "give the same command again: the run goes on from its last checkpoint"
    )


def plain(value: Any) -> Any:
    """The same in what JSON has: numbers of NumPy and JAX are Python's, tuples are lists."""
    if isinstance(value, dict):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"expected numbers, strings, lists or dicts, got {type(value).__name__}")
