"""The error for a picture that cannot be used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class InvalidImage(ValueError):  # noqa: N818 - named as InvalidArray and InvalidParameters are
    """One picture or several cannot be used; `problems` says of each which, why, and what to do."""

    def __init__(self, problems: Sequence[str], given: int = 1) -> None:
        self.problems, self.given = tuple(problems), given
        if given == 1:
            message = "; ".join(self.problems)
        else:
            lines = "".join(f"\n  - {problem}" for problem in self.problems)
            message = f"{len(self.problems)} of {given} images cannot be used:{lines}"
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        """So that it can leave a process."""
        return type(self), (self.problems, self.given)
