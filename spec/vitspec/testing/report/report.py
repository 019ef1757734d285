"""The report of all that was checked of one implementation."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass, field

from vitspec.testing.report.text import printable, ratio, short
from vitspec.testing.report.words import BAD, at, badness, departs, described, worst_tensors
from vitspec.testing.results import Result, Status
from vitspec.testing.settings import Settings

SHOWN = 3
"""Failures that are shown in full."""
UNMATCHED = "declared, but nothing is named so: "
"""What precedes a glob of the adopter's declaration that matched nothing."""


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
        return f"<Report: {summary(self)}>"

    def __str__(self) -> str:
        """The verdict, and the first failures with the commands that reproduce them."""
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
        differentiated = [r for r in self.results if r.check.split(".")[-1] == "vjp"]
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


def to_show(report: Report) -> tuple[list[Result], list[Result]]:
    """What is wrong: of each check the place that is furthest off, up to `SHOWN`; and the rest."""
    bad = [r for r in report.results if r.status in BAD]
    groups: dict[tuple[Status, str], list[Result]] = {}
    for result in bad:
        groups.setdefault((result.status, result.check), []).append(result)
    order = sorted(groups, key=lambda key: [*BAD].index(key[0]))
    shown = [max(groups[key], key=_size) for key in order[:SHOWN]]
    return shown, [r for r in bad if not any(r is one for one in shown)]


def who(report: Report) -> str:
    """The implementation, as what, in which precision."""
    return printable(f"{report.name} {report.version} as {report.spec}, {report.dtype}")


def drawn(report: Report) -> str:
    """What everything was drawn from, and how long it took."""
    return f"seed {report.seed}, {report.seconds:.0f} s"


def summary(report: Report) -> str:
    """One line: who, the verdict, how many checks, the worst tensor.

    >>> summary(Report("my-vit", "my-vit", "1.4", "vit", "float32"))
    'my-vit 1.4 as vit, float32: could not be checked: nothing was checked'
    """
    count = report.count()
    parts = [
        f"{count[status]} of {len(report.results)} {words}"
        for status, words in BAD.items()
        if count[status]
    ]
    if report.unmatched:
        parts.append(f"{len(report.unmatched)} declared globs match nothing")
    if not parts and not report.results:
        parts.append("nothing was checked")
    first = next((r for r in to_show(report)[0] if r.failures), None)
    if first and (g := first.worst):
        parts.append(f"{first.check} {short(g.tensor)} {ratio(g.ratio)} x its bound{at(first)}")
    text = f"{who(report)}: {report.verdict}" + (f": {', '.join(parts)}" if parts else "")
    return printable(text)


def explain(report: Report) -> str:
    """The summary, then the first failures, each with the command that reproduces it."""
    lines = [summary(report)]
    shown, rest = to_show(report)
    for result in shown:
        lines.append(f"  {departs(result)}: {printable(result.reason)}".rstrip(": "))
        lines += [f"    {described(g)}" for g in worst_tensors(result)]
        lines.append(f"    {printable(report.reproduce(result))}")
    if rest:
        lines.append(f"  and {len(rest)} more")
    lines += [f"  {UNMATCHED}{printable(glob)}" for glob in report.unmatched]
    return "\n".join(lines)


def _size(result: Result) -> float:
    return badness(result.worst)[1] if result.worst else 0.0
