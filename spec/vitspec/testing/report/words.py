"""What all forms of a report say, in words: who it was, what departs, how to see it again.

`Report` shows itself in these words. So nothing here needs it, or a `Result`, but in annotations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitspec.testing.report.text import figure, printable, ratio, short
from vitspec.testing.tolerance import Grade

if TYPE_CHECKING:
    from vitspec.testing.results import Report, Result, Status

BAD: dict[Status, str] = {
    "failed": "failed", "errored": "could not be run", "xpassed": "unexpectedly pass",
}  # fmt: skip
"""The statuses that keep a report from conforming, the worst first, in the words of a summary."""
SHOWN = 3
"""Failures that are shown in full."""
FIGURES = ("error", "price", "bound", "ratio")
"""Those of a verdict, in the order of columns."""
TENSORS = 5
"""Tensors of a failure that are shown."""
MARK = "~0"
"""Marks a tensor that is zero but for rounding."""
UNMATCHED = "declared, but nothing is named so: "
"""What precedes a glob of the adopter's declaration that matched nothing."""


def is_photograph(result: Result) -> bool:
    """Whether it is of the photograph, at the size of ViT-Base/16."""
    return result.place == "photograph"


def _at(result: Result) -> str:
    """Where, if anywhere in particular."""
    article = "the " if is_photograph(result) else ""
    return f" at {article}{result.place}" if str(result.place) else ""


def to_show(report: Report) -> tuple[list[Result], list[Result]]:
    """What is wrong: of each check the place that is furthest off, up to `SHOWN`; and the rest."""
    bad = [r for r in report.results if r.status in BAD]
    groups: dict[tuple[Status, str], list[Result]] = {}
    for result in bad:
        groups.setdefault((result.status, result.check), []).append(result)
    order = sorted(groups, key=lambda key: [*BAD].index(key[0]))
    shown = [max(groups[key], key=_size) for key in order[:SHOWN]]
    return shown, [r for r in bad if not any(r is one for one in shown)]


def worst_tensors(result: Result) -> list[Grade]:
    """The failing tensors that are shown, the furthest off first."""
    return sorted(result.failures, key=badness, reverse=True)[:TENSORS]


def left_out(result: Result) -> str:
    """How many failing tensors are not shown, in words; nothing if all are."""
    more = len(result.failures) - TENSORS
    return f"and {more} more tensors" if more > 0 else ""


def told(result: Result, reason: str, indent: str = "") -> list[str]:
    """What is wrong at a result, for this reason, in lines; those on its tensors are indented."""
    tensors = (*map(described, worst_tensors(result)), left_out(result))
    lines = (departs(result), reason, result.point, *(indent + line for line in tensors if line))
    return [printable(line) for line in lines if line]


def columns(g: Grade, *names: str) -> list[str]:
    """These of a verdict's `FIGURES`, in few characters."""
    return [ratio(g.ratio) if name == "ratio" else figure(getattr(g, name)) for name in names]


def described(g: Grade) -> str:
    """A verdict on a tensor in a line."""
    error, price, bound = columns(g, "error", "price", "bound")
    mark = f" {MARK}" if g.cancelled else ""
    return printable(f"{g.tensor}{mark}: {g.metric} error {error}, price {price}, bound {bound}")


def departs(result: Result) -> str:
    """What happened at a result, in a few words."""
    words = {
        "failed": "departs",
        "errored": "could not be run",
        "xpassed": "passes, though declared to fail",
        "xfailed": "departs, as declared",
    }
    return printable(f"{result.check} {words.get(result.status, result.status)}{_at(result)}")


def who(report: Report) -> str:
    """The implementation, as what, in which precision."""
    return printable(f"{report.name} {report.version} as {report.spec}, {report.dtype}")


def drawn(report: Report) -> str:
    """What everything was drawn from, and how long it took."""
    return f"seed {report.seed}, {report.seconds:.0f} s"


def summary(report: Report) -> str:
    """One line: who, the verdict, how many checks, the worst tensor.

    >>> from vitspec.testing.results import Report
    >>> summary(Report("my-vit", "my-vit", "1.4", "vit", "float32", 0))
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
        parts.append(f"{first.check} {short(g.tensor)} {ratio(g.ratio)} x its bound{_at(first)}")
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


def badness(g: Grade) -> tuple[bool, float]:
    """Orders verdicts, the furthest off last; NaN is as bad as can be."""
    return not g.conforms, g.ratio if not np.isnan(g.ratio) else float("inf")


def _size(result: Result) -> float:
    return badness(result.worst)[1] if result.worst else 0.0
