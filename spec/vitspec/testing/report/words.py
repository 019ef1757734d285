"""What all forms of a report say of one result, in words."""

from __future__ import annotations

import numpy as np

from vitspec.testing.report.text import figure, printable, ratio
from vitspec.testing.results import Result, Status
from vitspec.testing.tolerance import Grade

BAD: dict[Status, str] = {
    "errored": "could not be run", "failed": "failed", "xpassed": "unexpectedly pass",
    "undecided": "cannot be told",
}  # fmt: skip
"""The statuses that keep a report from conforming, in the words of a summary: a crash first."""
FIGURES = ("error", "price", "bound", "ratio")
"""A verdict's figures, in the order of columns."""
TENSORS = 5
"""Tensors of a failure that are shown."""
MARK = "~0"
"""Marks a tensor that is zero but for rounding."""


def is_photograph(result: Result) -> bool:
    """Whether it is of the photograph, at the size of ViT-Base/16."""
    return result.place.suite == "photograph"


def at(result: Result) -> str:
    """Where, if anywhere in particular."""
    article = "the " if is_photograph(result) else ""
    return f" at {article}{result.place}" if result.place else ""


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
    text = f"{g.tensor}{mark}: {g.metric} error {error}, price {price}, bound {bound}"
    return printable(", ".join([text, *how_sure(g)]))


def how_sure(g: Grade) -> list[str]:
    """What new points said of a suspicion, in words; nothing where there was none."""
    if (asked := g.confirmation) is None:
        return []
    points = f"{asked.points} new point{'s' * (asked.points != 1)}"
    where = points if asked.points else "the first point, beyond doubt"
    outcome = "cannot be told" if asked.outcome == "untold" else asked.outcome
    sure = f"{outcome} at {where}: {figure(abs(asked.mean))} standard deviations of rounding"
    return [sure, asked.explanation] if asked.explanation else [sure]


def departs(result: Result) -> str:
    """What happened at a result, in a few words."""
    words = {
        "failed": "accepts what is ill-formed" if result.is_refusal else "departs",
        "errored": "could not be run",
        "xpassed": "passes, though declared to fail",
        "xfailed": "departs, as declared",
        "undecided": "cannot be told",
    }
    return printable(f"{result.check} {words.get(result.status, result.status)}{at(result)}")


def first_departure(target: str, result: Result) -> str:
    """A line for those who wait for the report."""
    return printable(f"{target}: {departs(result)}: {described(worst_tensors(result)[0])}")


def badness(g: Grade) -> tuple[bool, bool, float]:
    """Orders verdicts, the furthest off last; NaN is as bad as can be."""
    return not g.conforms, not g.untold, g.ratio if not np.isnan(g.ratio) else float("inf")
