"""What all forms of a report show: the checks' rows, the failures to show first, one line."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitspec.testing.report.text import figure, printable, ratio, short
from vitspec.testing.report.report import Report
from vitspec.testing.results import Result
from vitspec.testing.tolerance import Grade, worst

BAD = ("failed", "errored", "xpassed")
"""The statuses that keep a report from conforming."""
SHOWN = 3
"""Failures that are shown in full."""
TENSORS = 5
"""Tensors of a failure that are shown."""

MARK = "~0"
"""Marks a tensor that is zero but for rounding."""
LEGEND = {
    "error": "distance from the specification in float64, relative to the tensor's size",
    "price": "the same for the specification itself, in the precision under test",
    "bound": "4 price + 4 u (u: unit roundoff); more for laws, whose two sides both err",
    "ratio": "error / bound of the worst tensor; it conforms up to 1",
    MARK: "zero but for rounding: measured against what cancelled",
}
"""What the columns say."""


@dataclass(frozen=True)
class CheckRow:
    """One check, all of its places together.

    Attributes:
        check: its name; the rules of ill-formed configurations are one.
        count: how many places have each status.
        worst: the verdict furthest over its bound, if the check grades any.
        place: where that is.
    """

    check: str
    count: Counter[str]
    worst: Grade | None
    place: str


def check_rows(report: Report) -> list[CheckRow]:
    """A row for each check, in order of first appearance."""
    groups: dict[str, list[Result]] = {}
    for result in report.results:
        check = "ill-formed.*" if result.check.startswith("ill-formed.") else result.check
        groups.setdefault(check, []).append(result)
    rows = []
    for check, group in groups.items():
        graded = [(g, r.place) for r in group if (g := r.worst) is not None]
        grade, place = max(graded, key=lambda pair: _badness(pair[0]), default=(None, ""))
        rows.append(CheckRow(check, Counter(r.status for r in group), grade, place))
    return rows


def worst_of_kinds(grades: Sequence[Grade]) -> list[tuple[str, Grade, int]]:
    """Each kind of tensor, its worst layer's verdict, and how many layers there are."""
    kinds: dict[str, list[Grade]] = {}
    for g in grades:
        kinds.setdefault(re.sub(r"\.layers\.\d+\.", ".layers.*.", g.tensor), []).append(g)
    return [(kind, worst(group), len(group)) for kind, group in kinds.items()]


def layer_of(tensor: str) -> int | None:
    """The layer that a tensor belongs to.

    >>> layer_of("encoder.layers.11.mha.wq"), layer_of("logits")
    (11, None)
    """
    match = re.search(r"(?:^|\.)layers\.(\d{1,6})\.", tensor)
    return int(match[1]) if match else None


def to_show(report: Report) -> tuple[list[Result], list[Result]]:
    """What is wrong: of each check the place that is furthest off, up to `SHOWN`; and the rest."""
    bad = [r for r in report.results if r.status in BAD]
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in bad:
        groups.setdefault((result.status, result.check), []).append(result)
    order = sorted(groups, key=lambda key: BAD.index(key[0]))
    shown = [max(groups[key], key=_size) for key in order[:SHOWN]]
    return shown, [r for r in bad if not any(r is one for one in shown)]


def worst_tensors(result: Result) -> list[Grade]:
    """The failing tensors that are shown, the furthest off first."""
    return sorted(result.failures, key=_badness, reverse=True)[:TENSORS]


def excused(report: Report) -> list[str]:
    """What departs as declared: how often, where, and why."""
    groups: dict[str, list[Result]] = {}
    for result in report.results:
        if result.status == "xfailed":
            groups.setdefault(result.reason, []).append(result)
    return [
        printable(f"{', '.join(sorted({r.check for r in group}))} ({len(group)} x): {reason}")
        for reason, group in groups.items()
    ]


def described(g: Grade) -> str:
    """A verdict on a tensor in a line."""
    figures = f"error {figure(g.error)}, price {figure(g.price)}, bound {figure(g.bound)}"
    mark = f" {MARK}" if g.cancelled else ""
    return printable(f"{g.tensor}{mark}: {g.metric} {figures}")


def departs(result: Result) -> str:
    """What happened at a result, in a few words."""
    words = {
        "failed": "departs",
        "errored": "could not be run",
        "xpassed": "passes, though declared to fail",
        "xfailed": "departs, as declared",
    }
    return printable(f"{result.check} {words.get(result.status, result.status)}{_at(result)}")


def summary(report: Report) -> str:
    """One line: who, the verdict, how many checks, the worst tensor.

    >>> summary(Report("my-vit", "my-vit", "1.4", "vit", "float32", 0))
    'my-vit 1.4 as vit, float32: could not be checked: nothing was checked'
    """
    count = report.count()
    parts = [
        f"{count[status]} of {len(report.results)} {words}"
        for status, words in (
            ("failed", "failed"), ("errored", "could not be run"), ("xpassed", "unexpectedly pass"),
        )
        if count[status]
    ]  # fmt: skip
    if report.unmatched:
        parts.append(f"{len(report.unmatched)} declared globs match nothing")
    if not parts and not report.results:
        parts.append("nothing was checked")
    failed = [r for r in to_show(report)[0] if r.failures]
    if failed and (g := failed[0].worst):
        first = failed[0]
        parts.append(f"{first.check} {short(g.tensor)} {ratio(g.ratio)} x its bound{_at(first)}")
    text = f"{who(report)}: {report.verdict}" + (f": {', '.join(parts)}" if parts else "")
    return printable(text)


def who(report: Report) -> str:
    """The implementation, as what, in which precision."""
    return printable(f"{report.name} {report.version} as {report.spec}, {report.dtype}")


def explain(report: Report) -> str:
    """The summary, then the first failures, each with the command that reproduces it."""
    lines = [summary(report)]
    shown, rest = to_show(report)
    for result in shown:
        lines.append(f"  {departs(result)}: {printable(result.reason)}".rstrip(": "))
        for g in worst_tensors(result):
            lines.append(f"    {described(g)}")
        lines.append(f"    {printable(report.reproduce(result))}")
    if rest:
        lines.append(f"  and {len(rest)} more")
    lines += [f"  declared, but nothing is named so: {printable(g)}" for g in report.unmatched]
    return "\n".join(lines)


HIGHEST = "set the highest matmul precision"
COARSER = {
    "float32": {"TF32 or float16": (13, HIGHEST), "bfloat16": (16, HIGHEST)},
    "float64": {
        "float32": (29, "enable float64 (in JAX: jax_enable_x64)"),
        "TF32 or float16": (42, HIGHEST),
        "bfloat16": (45, HIGHEST),
    },
}
"""For a precision: the coarser ones, by how many bits they are shorter, and what to do."""
WORST_OF_RUNS = 1.5
"""Bits by which a price, the worst of several runs, is above the error of one."""
LIKE = 2.0
"""Bits by which the median may differ."""
SPREAD = 3.6
"""Bits within which most tensors lie. A mistake spares some of them, and ruins others."""
MANY = 10
"""Tensors that it takes to tell."""


def looks_like(report: Report) -> str:
    """A hint, if all tensors err alike, as those of a coarser precision would; or nothing.

    Of the catalogue's mistakes in float32 and float64, none looks so. The photograph is left out:
    at its size a coarser precision's errors average out, and are nearer to the price.
    """
    grades = [
        g
        for r in report.results
        if r.check in ("forward", "vjp") and r.status == "failed" and str(r.place) != "photograph"
        for g in r.grades
        if 0 < g.price < np.inf and 0 < g.error < np.inf and not g.cancelled
    ]
    if len(grades) < MANY:
        return ""
    low, median, high = np.quantile([np.log2(g.error / g.price) for g in grades], (0.1, 0.5, 0.9))
    for name, (shorter, advice) in COARSER.get(report.dtype, {}).items():
        if high - low <= SPREAD and abs(median - (shorter - WORST_OF_RUNS)) <= LIKE:
            return f"looks like {name} arithmetic, not {report.dtype}: {advice}"
    return ""


def _at(result: Result) -> str:
    """Where, if anywhere in particular."""
    article = "the " if str(result.place) == "photograph" else ""
    return f" at {article}{result.place}" if result.place else ""


def _badness(g: Grade) -> tuple[bool, float]:
    return not g.conforms, g.ratio if not np.isnan(g.ratio) else float("inf")


def _size(result: Result) -> float:
    return _badness(result.worst)[1] if result.worst else 0.0
