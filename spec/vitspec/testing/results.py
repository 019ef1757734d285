"""What a check says: one result for each check and place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from vitspec.testing.settings import Settings
from vitspec.testing.tolerance import Grade, worst

Status = Literal["passed", "failed", "xfailed", "xpassed", "skipped", "errored", "undecided"]


@dataclass(frozen=True)
class Place:
    """Where a check was made: one unit of a suite, such as the small case number 17.

    Attributes:
        suite: the name of the suite, of `vitspec.testing.suites.SUITES`; "" for the whole.
        index: which of its units: a number, or the name of a test vector; None if it has but one.
        more: how many further units are included.

    >>> str(Place("case", 17)), str(Place("photograph")), str(Place("vectors", "edge-one-token"))
    ('case 17', 'photograph', 'vector edge-one-token')
    """

    suite: str
    index: int | str | None = None
    more: int = 0

    def __str__(self) -> str:
        """What people call it."""
        name = self.suite.removesuffix("s") if isinstance(self.index, str) else self.suite
        unit = name if self.index is None else f"{name} {self.index}"
        return f"{unit} and {self.more} more" if self.more else unit

    def __bool__(self) -> bool:
        """Whether it is anywhere in particular."""
        return bool(self.suite)


WHOLE = Place("")
"""The place of what is said of everything."""


@dataclass(frozen=True)
class Result:
    """One check at one place.

    Attributes:
        check: the check's permanent name, such as "vjp".
        place: where.
        status: passed; failed; xfailed (a declared deviation); xpassed (declared, yet it passed);
            skipped (not applicable, with the reason); errored (the implementation did not run);
            undecided (rounding is too large here to tell).
        grades: the verdicts on single tensors, if the check grades any.
        reason: what happened, in a line.
        point: what was evaluated, in words.
        undecided: the comparison of an identity that rounding is too large to decide.
        again: the settings that run this check at this place again.
    """

    check: str
    place: Place
    status: Status
    grades: tuple[Grade, ...] = ()
    reason: str = ""
    point: str = ""
    undecided: Grade | None = None
    again: Settings | None = None

    @property
    def worst(self) -> Grade | None:
        """The verdict furthest over its bound."""
        return worst(self.grades) if self.grades else None

    @property
    def failures(self) -> tuple[Grade, ...]:
        """The verdicts that do not conform."""
        return tuple(g for g in self.grades if not g.conforms)

    @property
    def is_refusal(self) -> bool:
        """Whether it says that what is ill-formed is refused, not what is computed."""
        return self.check.startswith("ill-formed.") or self.check == "vector.ill-formed"

    @property
    def is_identity(self) -> bool:
        """Whether it is of an identity, one of many relations at one point."""
        return self.check.split(".")[0] == "identity"

    def ids(self) -> list[str]:
        """What a declaration may name: "check.tensor" for each failing tensor, or "check"."""
        return [f"{self.check}.{g.tensor}" for g in self.failures] or [self.check]


def graded(check: str, place: Place, grades: Iterable[Grade], point: str = "") -> Result:
    """The result of grading tensors."""
    grades = tuple(grades)
    departs = [g for g in grades if not g.conforms]
    status: Status = "failed" if departs else "passed"
    if departs and all(g.untold for g in departs):
        status = "undecided"
    return Result(check, place, status, grades, point=point)


def environment() -> dict[str, Any]:
    """The versions that the figures were made with."""
    import platform
    from contextlib import suppress
    from importlib.metadata import PackageNotFoundError, version

    packages = {}
    for name in ("numpy", "jax", "jaxlib", "flax", "tokamax", "torch"):
        with suppress(PackageNotFoundError):
            packages[name] = version(name)
    return {"python": platform.python_version(), "machine": platform.machine(), **packages}
