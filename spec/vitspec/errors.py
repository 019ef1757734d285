"""The errors that vitspec raises before it does any work.

Each says what was given, what was expected and what to do, and lists everything that is wrong at
once. All are `ValueError`s, so a caller who only wants "bad input" can catch that.
"""

from collections.abc import Sequence
from typing import Any


class NotWellFormed(ValueError):  # noqa: N818 - reads as a judgement, as in Lean's `WF`
    """A configuration breaks well-formedness rules; `violations` holds every broken one."""

    def __init__(self, subject: str, violations: Sequence[str]) -> None:
        self.subject, self.violations = subject, tuple(violations)
        super().__init__(f"{subject} is not well-formed:" + _bullets(violations))

    def __reduce__(self) -> tuple[Any, ...]:
        """So that it can leave a process."""
        return type(self), (self.subject, self.violations)


class InvalidParameters(ValueError):  # noqa: N818
    """Parameters do not fit the configuration; `problems` holds every one that does not."""

    def __init__(self, subject: str, problems: Sequence[str]) -> None:
        self.subject, self.problems = subject, tuple(problems)
        super().__init__(f"{subject} do not fit the configuration:" + _bullets(problems))

    def __reduce__(self) -> tuple[Any, ...]:
        """So that it can leave a process."""
        return type(self), (self.subject, self.problems)


class InvalidArray(ValueError):  # noqa: N818
    """An array has the wrong kind, shape, scalar type or values."""


def _bullets(lines: Sequence[str]) -> str:
    return "".join(f"\n  - {line}" for line in lines)
