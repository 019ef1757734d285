"""What tables and pictures show: the checks' rows, kinds of tensors, what is excused, a hint."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitspec.testing.report.report import Report
from vitspec.testing.report.text import printable
from vitspec.testing.report.words import BAD, MARK, badness, is_photograph
from vitspec.testing.results import Result
from vitspec.testing.tolerance import Grade, worst

LEGEND = {
    "error": "distance from the specification in float64, relative to the tensor's size",
    "price": "the same for arithmetic that errs as that precision does",
    "bound": "4 prices (and 4 u at full size); more for laws, whose two sides both err",
    "ratio": "error / bound of the worst tensor; up to 1, or as new points decide",
    MARK: "zero but for rounding: measured against what cancelled",
}
"""What the columns say."""


@dataclass(frozen=True)
class CheckRow:
    """One check, all of its places together.

    Attributes:
        check: its name; the rules of ill-formed configurations are one.
        passed: how many places passed, or failed as declared.
        declared: how many of these failed.
        failed: how many failed, could not be run, or passed though declared to fail.
        skipped: how many were passed over.
        undecided: how many cannot be told.
        worst: the verdict furthest over its bound, if the check grades any.
    """

    check: str
    passed: int
    declared: int
    failed: int
    skipped: int
    undecided: int
    worst: Grade | None


def check_rows(report: Report) -> list[CheckRow]:
    """A row for each check, in order of first appearance."""
    groups: dict[str, list[Result]] = {}
    for result in report.results:
        check = "ill-formed.*" if result.check.startswith("ill-formed.") else result.check
        groups.setdefault(check, []).append(result)
    rows = []
    for check, group in groups.items():
        count = Counter(r.status for r in group)
        grades = [g for r in group if (g := r.worst) is not None]
        passed, declared = count["passed"] + count["xfailed"], count["xfailed"]
        failed = sum(count[status] for status in BAD if status != "undecided")
        counts = passed, declared, failed, count["skipped"], count["undecided"]
        rows.append(CheckRow(check, *counts, max(grades, key=badness, default=None)))
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
WORST_ENTRY = 1.0
"""Bits by which a price, of operations at their worst, is above the error of real ones."""
LIKE = 1.35
"""Bits by which the median may differ."""
SPREAD = 3.6
"""Bits within which most tensors lie. A mistake spares some of them, and ruins others. (The worst
entry of a few is one that ought to be nearly zero: the topmost fifth does not count.)"""
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
        if r.check in ("forward", "vjp") and r.status == "failed" and not is_photograph(r)
        for g in r.grades
        if 0 < g.price < np.inf and 0 < g.error < np.inf and not g.cancelled
    ]
    if len(grades) < MANY:
        return ""
    low, median, high = np.quantile([np.log2(g.error / g.price) for g in grades], (0.1, 0.5, 0.8))
    for name, (shorter, advice) in COARSER.get(report.dtype, {}).items():
        if high - low <= SPREAD and abs(median - (shorter - WORST_ENTRY)) <= LIKE:
            return f"looks like {name} arithmetic, not {report.dtype}: {advice}"
    return ""
