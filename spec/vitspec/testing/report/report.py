"""The report of all that was checked of one implementation."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass, field, replace

from vitspec.testing.report import parts
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
        asked: how many cases of each kind of evidence were asked for (`report.parts.KINDS`).
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
    asked: dict[str, int] = field(default_factory=dict)

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
    def bad(self) -> list[Result]:
        """What keeps it from conforming.

        An ill-formed configuration that is accepted does not, unless the settings are strict; nor
        does an identity that is undecided.
        """
        return [r for r in self.results if r.status in BAD and not self._is_only_told(r)]

    def _is_only_told(self, result: Result) -> bool:
        if result.status == "undecided":
            return result.is_identity
        return result.status == "failed" and result.is_refusal and not self.settings.strict

    @property
    def compared(self) -> dict[str, int]:
        """At how many places each kind of evidence was compared."""
        return parts.compared(self.results)

    @property
    def shortfalls(self) -> list[str]:
        """Of which kinds of evidence too little was compared, and why."""
        return parts.shortfalls(self.asked, self.results)

    @property
    def computes(self) -> list[str]:
        """What is said of the function that it computes, with counts."""
        return parts.computes(self.results, self.dtype)

    @property
    def refuses(self) -> str:
        """What is said of ill-formed configurations; nothing if none was tried."""
        return parts.refuses(self.results, self.settings.strict)

    @property
    def exit_code(self) -> int:
        """0 conforms; 1 something departs; 3 there is no verdict.

        1 stands for a mismatch, an unexpected pass, or a declaration of nothing: what departs
        where it was compared departs, whatever happened elsewhere. 3: it could not be run, too
        little was compared, or the precision is too coarse to tell.
        """
        bad = {r.status for r in self.bad}
        if bad & {"failed", "xpassed"} or self.unmatched:
            return 1
        return 3 if bad or self.shortfalls or not self._evidence else 0

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
            return self._why_none()
        return "conforms, as tested" + (f" ({limits})" if (limits := self._limits()) else "")

    @property
    def _evidence(self) -> list[Result]:
        """What passed, or failed as declared: refusals count where nothing else was tried."""
        tried = [r for r in self.results if not r.is_refusal] or self.results
        return [r for r in tried if r.status in ("passed", "xfailed")]

    def _why_none(self) -> str:
        """Why there is no verdict: the first of its reasons."""
        bad, evidence = {r.status for r in self.bad}, self._evidence
        if "errored" in bad:
            seen = {r.check for r in evidence if not r.is_refusal}
            only_forward = "forward" in seen and not any(r.check == "vjp" for r in evidence)
            return (
                "forward conforms; gradients could not be checked"
                if (only_forward and any(r.check == "vjp" for r in self.bad))
                else "could not be checked"
            )
        if self.shortfalls:
            return "could not be checked: not enough was compared"
        return f"cannot be told in {self.dtype}" if bad else "could not be checked"

    def _limits(self) -> str:
        """What a verdict is not about."""
        evidence = self._evidence
        checks = list(dict.fromkeys(r.check for r in evidence))
        tensors = {g.tensor for r in evidence for g in r.grades}
        limits = []
        if all(r.is_identity for r in self.results):
            limits.append("identities only")
        elif not tensors:
            kinds = dict.fromkeys("ill-formed" if r.is_refusal else r.check for r in evidence)
            limits.append(f"{', '.join(kinds)} only")
        elif not tensors - {"logits"} and not set(checks) & {"vjp", "vector.vjp"}:
            limits.append("forward only")
        if declared := self.count()["xfailed"]:
            limits.append(f"{declared} declared deviation{'s' if declared > 1 else ''}")
        return ", ".join(limits)

    def reproduce(self, result: Result) -> str:
        """What runs one result again: a command, or for an object the call in Python."""
        again = result.again or self.settings
        if self.target:
            return f"vitspec check {shlex.quote(self.target)} {again.as_options()}"
        return f"check(implementation, {again!r})"

    def diagnose(self, result: Result) -> str:
        """What looks more closely at a departure: a command, or a call; "" where none can."""
        suite = result.place.suite
        if result.status != "failed" or result.is_refusal or not suite or not result.failures:
            return ""
        if self.spec == "other":  # it has no specification to compare with
            return ""
        if suite == "vectors" and result.check == "vector.layer":
            return ""
        place = replace(result.again or self.settings, only=None, strict=False)
        if self.target:
            return f"vitspec diagnose {shlex.quote(self.target)} {place.as_options()}"
        return f"diagnose(implementation, {place!r})"


def to_show(report: Report) -> tuple[list[Result], list[Result]]:
    """What is wrong: of each check the place that is furthest off, up to `SHOWN`; and the rest."""
    bad = report.bad
    groups: dict[tuple[Status, str], list[Result]] = {}
    for result in bad:
        groups.setdefault((result.status, result.check), []).append(result)
    order = sorted(groups, key=lambda key: ([*BAD].index(key[0]), groups[key][0].is_refusal))
    shown = [max(groups[key], key=_size) for key in order[:SHOWN]]
    return shown, [r for r in bad if not any(r is one for one in shown)]


def who(report: Report) -> str:
    """The implementation, as what, in which precision."""
    return printable(f"{report.name} {report.version} as {report.spec}, {report.dtype}")


def drawn(report: Report) -> str:
    """What everything was drawn from, how long it took, and how many were compared."""
    count = ", ".join(f"{kind} {count}" for kind, count in report.compared.items())
    text = f"seed {report.seed}, {report.seconds:.0f} s"
    return f"{text}; compared: {count}" if count else text


def summary(report: Report) -> str:
    """One line: who, the verdict, how many checks, the worst tensor.

    >>> summary(Report("my-vit", "my-vit", "1.4", "vit", "float32"))
    'my-vit 1.4 as vit, float32: could not be checked: nothing was checked'
    """
    count = Counter(result.status for result in report.bad)
    said = [
        f"{count[status]} of {len(report.results)} {words}"
        for status, words in BAD.items()
        if count[status]
    ]
    if report.unmatched:
        said.append(f"{len(report.unmatched)} declared globs match nothing")
    said += report.shortfalls
    if not said and not report.results:
        said.append("nothing was checked")
    first = next((r for r in to_show(report)[0] if r.failures), None)
    if first and (g := first.worst):
        said.append(f"{first.check} {short(g.tensor)} {ratio(g.ratio)} x its bound{at(first)}")
    text = f"{who(report)}: {report.verdict}" + (f": {', '.join(said)}" if said else "")
    return printable(text)


def explain(report: Report) -> str:
    """The summary and its parts, then the first failures, each with what reproduces it."""
    lines = [summary(report), *(f"  {what}: {said}" for what, said in statements(report))]
    shown, rest = to_show(report)
    for result in shown:
        lines.append(f"  {departs(result)}: {printable(result.reason)}".rstrip(": "))
        lines += [f"    {described(g)}" for g in worst_tensors(result)]
        lines.append(f"    {printable(report.reproduce(result))}")
    if rest:
        lines.append(f"  and {len(rest)} more")
    lines += [f"  {UNMATCHED}{printable(glob)}" for glob in report.unmatched]
    lines += [f"  {words}" for words in advice(report)]
    return "\n".join(lines)


def statements(report: Report) -> list[tuple[str, str]]:
    """The two parts of a verdict, each in words, of those that were asked for."""
    said = []
    if report.asked or report.computes:
        said.append(("Computes the function", "; ".join(report.computes) or "nothing was compared"))
    if report.refuses:
        said.append(("Refuses what is ill-formed", report.refuses))
    return said


def advice(report: Report) -> list[str]:
    """What stands between a report and a verdict, and what to do about it."""
    lines = [printable(words) for words in report.shortfalls]
    if lines:
        lines.append(f"to have more compared, {parts.WHAT_TO_DO}")
    if any(r.status == "undecided" for r in report.bad):
        lines.append(f"{report.dtype} is too coarse to tell: offer float32 too, and check in that")
    return lines


def _size(result: Result) -> float:
    return badness(result.worst)[1] if result.worst else 0.0
