"""A verdict's parts: what was compared, whether that is enough, and what was refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from vitspec.testing.confirmation import FLUCTUATION, LOOKS
from vitspec.testing.noise import DIRECTIONS
from vitspec.testing.report.text import printable
from vitspec.testing.results import Result

ENOUGH = 20
"""Drawn cases of which a verdict is evidence; fewer, if fewer were asked for."""
KINDS = ("forward", "gradients", "interpolation", "laws")
"""The kinds of evidence that may be asked for, each counted in drawn cases."""
AT_LEAST_ONE = ("interpolation", "laws")
"""The kinds of which any may be missing, if only one is there."""
COMPARED = ("passed", "failed", "xfailed", "xpassed")
"""The statuses of what was compared."""


def kind_of(result: Result) -> str:
    """Which kind of evidence a comparison is; "" for what may not be missing anyway."""
    suite, check = result.place.suite, result.check
    if suite == "case":
        return {"forward": "forward", "vjp": "gradients"}.get(check, "")
    if suite == "interpolation":
        return "interpolation"
    return "laws" if suite == "law" and check not in ("forward", "vjp") else ""


def compared(results: Iterable[Result], also: tuple[str, ...] = ()) -> dict[str, int]:
    """At how many places each kind was compared; a kind that nowhere was is left out.

    Args:
        results: all.
        also: further statuses that count.
    """
    places = {(kind_of(r), r.place) for r in results if r.status in (*COMPARED, *also)}
    count = Counter(kind for kind, _ in places if kind)
    return {kind: count[kind] for kind in KINDS if count[kind]}


def needed(kind: str, asked: int) -> int:
    """How many must be compared, of as many as were asked for."""
    return min(1 if kind in AT_LEAST_ONE else ENOUGH, asked)


def shortfalls(asked: Mapping[str, int], results: Sequence[Result]) -> list[str]:
    """Of which kinds too little was compared, and why, a line each."""
    # What rounding is too large to decide was compared all the same.
    count, lines = compared(results, also=("undecided",)), []
    for kind, of in asked.items():
        if (found := count.get(kind, 0)) < needed(kind, of):
            text = f"{kind}: {found or 'none'} of {of} cases compared, {needed(kind, of)} needed"
            lines.append(text + _why(kind, results))
    return lines


def _why(kind: str, results: Sequence[Result]) -> str:
    """The commonest reason for which cases of a kind were skipped."""
    suites = {"interpolation": "interpolation", "laws": "law"}
    reasons = Counter(
        r.reason
        for r in results
        if r.status == "skipped" and r.place.suite == suites.get(kind, "case")
    )
    if not reasons:
        return ""
    ((reason, times),) = reasons.most_common(1)
    return printable(f" ({times} x: {reason})")


WHAT_TO_DO = (
    "let supports() allow more small configurations, or give closest(config), the nearest that it "
    "can do; --config names one"
)
"""What helps where too little was compared."""


def computes(results: Sequence[Result], dtype: str) -> list[str]:
    """What is said of the function: each kind with its count, and how many of these depart."""
    lines = []
    for kind, count in compared(results).items():
        own = [r for r in results if kind_of(r) == kind]
        bad = {r.place for r in own if r.status in ("failed", "xpassed")}
        open_ = {r.place for r in own if r.status == "undecided"} - bad
        verdict = f"{len(bad)} depart{'s' * (len(bad) == 1)}" if bad else "all conform"
        more = f", and {len(open_)} cannot be told in {dtype}" if open_ else ""
        lines.append(f"{kind} {count} compared, {verdict}{more}")
    return lines


def suspicions(results: Sequence[Result]) -> dict[str, int]:
    """How many tensors were suspected, by what came of it."""
    outcomes = Counter(g.confirmation.outcome for r in results for g in r.grades if g.confirmation)
    return {outcome: outcomes[outcome] for outcome in ("confirmed", "cleared", "untold")}


def suspected(results: Sequence[Result]) -> str:
    """The same in words; nothing if none was."""
    said = ", ".join(f"{n} {outcome}" for outcome, n in suspicions(results).items() if n)
    if not said:
        return ""
    return f"suspicions: {said} (docs/tolerances.md)"


def false_alarm(results: Sequence[Result]) -> float:
    """A bound on the probability that these would reject correct code.

    It holds if every operation errs independently and within `vitspec.testing.primitives`; by the
    looks at every suspected direction of `vitspec.testing.confirmation`.
    """
    tensors = sum(g.confirmation is not None for r in results for g in r.grades)
    directions = DIRECTIONS + 3  # entries; a row, the norm and the scale
    return float(tensors * directions * len(LOOKS) * 2 * np.exp(-(FLUCTUATION**2) / 6))


def refuses(results: Sequence[Result], strict: bool) -> str:
    """What is said of ill-formed configurations; nothing if none was tried."""
    tried = [r for r in results if r.is_refusal and r.status in COMPARED]
    accepted = [r for r in tried if r.status in ("failed", "xfailed")]
    if not tried:
        return ""
    if not accepted:
        return f"all {len(tried)} refused"
    names = [r.check if r.check.startswith("ill-formed.") else str(r.place) for r in accepted]
    text = f"{len(accepted)} of {len(tried)} accepted: {', '.join(sorted(set(names)))}"
    note = "" if strict else " (reported only; --strict makes it a failure)"
    return printable(text.replace("ill-formed.", "") + note)
