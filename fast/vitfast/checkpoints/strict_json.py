"""JSON objects out of files that may be damaged or hostile.

Stricter than Python's reader: UTF-8, an object at the top, no name twice in one object, no NaN and
no infinity (not even as 1e999), and a limit on the size. Too deep a nesting is an error like
others.
"""

from __future__ import annotations

import json
import math
from typing import Any, Never

from vitfast.checkpoints.errors import CheckpointError, first_line, quoted
from vitfast.checkpoints.folder import RegularFile

LARGEST = 2**25
"""Bytes of the largest JSON file that is read: ten times a configuration of 21841 labels."""


def read_object(file: RegularFile) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: it is no such file.
    """
    return parse_object(file.read(LARGEST), file.shown)


def parse_object(content: bytes, where: str) -> dict[str, Any]:
    """The object that is written in `content`; `where` begins the message of an error."""
    try:
        value = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_without_repetition,
            parse_constant=_refuse,
            parse_float=_finite,
        )
    except RecursionError as error:
        raise CheckpointError(where, ["expected JSON, found one that nests too deeply"]) from error
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise CheckpointError(where, [f"expected JSON in UTF-8; {first_line(error)}"]) from error
    if not isinstance(value, dict):
        raise CheckpointError(where, [f"expected a JSON object, found {quoted(value)}"])
    return value


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {quoted(name)} stands twice in one object")
        found[name] = value
    return found


def _refuse(name: str) -> Never:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value
