"""The report of all that was checked of one implementation."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass, field

from vitspec.testing.results import Result
from vitspec.testing.settings import Settings

_OF_GRADIENTS = ("vjp", "interpolation.vjp", "vector.vjp")


@dataclass(repr=False)
class Report:
    """What was checked of one implementation, and how it went.

    Attributes:
        target: how the command line names the implementation; "" for an object, which has no such
            name.
        name, version, spec, dtype: what it says of itself, and the precision checked in.
        settings: what was checked.
        results: in the order in which they are shown.
        unmatched: globs of the adopter's declaration that matched nothing.
        output: what the implementation wrote to its standard output.
        seconds: how long it took.
    """

    target: str
    name: str
    version: str
    spec: str
    dtype: str
    settings: Settings = field(default_factory=Settings)
    results: list[Result] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    output: str = ""
    seconds: float = 0.0

    def __repr__(self) -> str:
        """One line, which pytest shows where an assertion about the report fails."""
        from vitspec.testing.report.rows import summary

        return f"<Report: {summary(self)}>"

    def __str__(self) -> str:
        """The verdict, and the first failures with the commands that reproduce them."""
        from vitspec.testing.report.rows import explain

        return explain(self)

    @property
    def seed(self) -> int:
        """What everything was drawn from."""
        return self.settings.seed

    def count(self) -> Counter[str]:
        """How many results have each status."""
        return Counter(result.status for result in self.results)

    @property
    def exit_code(self) -> int:
        """0 conforms; 1 a mismatch or an unexpected pass; 3 the implementation could not be run.

        Nothing checked is 3 as well.
        """
        count = self.count()
        if count["failed"] or count["xpassed"] or self.unmatched:
            return 1
        return 3 if count["errored"] or not (count["passed"] or count["xfailed"]) else 0

    @property
    def conforms(self) -> bool:
        """Whether everything that was checked passed, or failed as declared."""
        return self.exit_code == 0

    @property
    def verdict(self) -> str:
        """The one sentence that may be quoted."""
        if self.exit_code == 1:
            return "does not conform"
        if self.exit_code == 3:
            return "could not be checked"
        differentiated = [r for r in self.results if r.check in _OF_GRADIENTS]
        has_vjp = any(r.status in ("passed", "xfailed") for r in differentiated)
        limits = [] if has_vjp else ["forward only"]
        if all(r.check.startswith("identity") for r in self.results):
            limits = ["identities only"]
        if declared := self.count()["xfailed"]:
            limits.append(f"{declared} declared deviation{'s' if declared > 1 else ''}")
        return "conforms, as tested" + (f" ({', '.join(limits)})" if limits else "")

    def reproduce(self, result: Result) -> str:
        """What runs one result again: a command, or for an object the call in Python."""
        again = result.again or self.settings
        if self.target:
            return f"vitspec check {shlex.quote(self.target)} {again.as_options()}"
        return f"check(implementation, {again!r})"
