"""The fields of config.json by type: a value that is there must be of the right one.

Each method returns the field's value, or its default if the key is missing. A value of another type
is a problem, which is noted, and the default returned, so that all problems are found at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitfast.checkpoints.errors import quoted

LARGEST = 2**31
"""No size of a model reaches this; larger ones would only make arithmetic and messages explode."""


class Fields:
    """The fields of a configuration, and the problems found so far."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = given
        self.problems: list[str] = []

    def natural(self, key: str, default: int) -> int:
        """A natural number."""
        value = self.given.get(key, default)
        if _is_natural(value):
            return int(value)
        return self._refuse(key, "a natural number", value, default)

    def natural_or_null(self, key: str, default: int) -> int:
        """A natural number; null is the default too, and so is 0."""
        return default if self.given.get(key) is None else self.natural(key, default) or default

    def number(self, key: str, default: float) -> float:
        """A number."""
        value = self.given.get(key, default)
        if type(value) is float or (type(value) is int and abs(value) < 2**53):
            return float(value)
        return self._refuse(key, "a number", value, default)

    def boolean(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.given.get(key, default)
        return value if isinstance(value, bool) else self._refuse(key, "a Boolean", value, default)

    def text(self, key: str, default: str) -> str:
        """A text."""
        value = self.given.get(key, default)
        return value if isinstance(value, str) else self._refuse(key, "a text", value, default)

    def pair(self, key: str, default: int) -> tuple[int, int]:
        """Height and width: a list of two natural numbers, or one for both."""
        value = self.given.get(key, default)
        if _is_natural(value):
            return value, value
        if isinstance(value, list) and len(value) == 2 and all(map(_is_natural, value)):
            return value[0], value[1]
        expected = "a natural number or a list of two"
        return self._refuse(key, expected, value, (default, default))

    def _refuse(self, key: str, expected: str, value: object, default: Any) -> Any:
        self.problems.append(f"{key}: expected {expected}, got {quoted(value)}")
        return default


def _is_natural(value: object) -> bool:
    return type(value) is int and 0 <= value < LARGEST
