"""The errors of checkpoints: what is wrong with a file, a configuration, or the tensors.

A checkpoint may come from anywhere. Whatever is in it, a caller sees one of these two classes, in
plain words, and never the traceback of a JSON or tensor library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vitspec.errors import InvalidParameters

LONGEST = 100
"""Characters of the longest text out of a file that is repeated in a message."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read or written; `problems` holds everything that is wrong."""

    def __init__(self, subject: str, problems: Sequence[str]) -> None:
        self.subject, self.problems = subject, tuple(problems)
        lines = "".join(f"\n  - {problem}" for problem in problems)
        text = f" {problems[0]}" if len(problems) == 1 else lines
        ValueError.__init__(self, f"{subject}:{text}")

    def __reduce__(self) -> tuple[Any, ...]:
        """So that it can leave a process."""
        return type(self), (self.subject, self.problems)


class InvalidTensors(CheckpointError, InvalidParameters):  # noqa: N818 - as its second parent
    """Tensors do not fit a configuration; `problems` holds everything that is wrong with them."""


def quoted(value: object) -> str:
    """Something out of a file as a message shows it: escaped, on one line, cut if it is long."""
    if isinstance(value, str):
        value = value if len(value) <= LONGEST else value[:LONGEST] + "..."
        return ascii(value)
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number of more than 20 digits"
    return repr(value)


def first_line(error: BaseException) -> str:
    """The class and the first line of another library's error, cut if it is long."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
