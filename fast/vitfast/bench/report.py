"""The tables of `vitfast bench`, for the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

import vitspec
from vitfast.bench.cases import SQUARE
from vitfast.bench.measure import Outcome
from vitfast.bench.results import CaseResult
from vitspec.testing.results import environment

TITLES = {"forward": "forward", "gradient": "gradient", "train_step": "training step"}
NOTE = (
    "x: time over the fastest peer's, below 1 is faster; ceiling: useful operations per second "
    "over those of the matrix products alone; MB: peak memory of the process above what its "
    "imports took"
)
GPU_NOTE = NOTE.partition("MB:")[0] + "MB: the device's peak"


@dataclass(frozen=True)
class Sheet:
    """A table in plain text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def rich(self) -> Table:
        """For the terminal."""
        table = Table(
            title=self.title, title_justify="left", caption=self.note, caption_justify="left"
        )
        for i, column in enumerate(self.columns):
            # Folded, not cut short, where the terminal is narrow.
            table.add_column(
                column, justify="right" if i else "left", no_wrap=not i, overflow="fold"
            )
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """For a page."""
        lines = [self.columns, ["---", *["---:"] * (len(self.columns) - 1)], *self.rows]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"### {self.title}\n\n{table}\n" + (f"\n{self.note}\n" if self.note else "")


def case_sheets(result: CaseResult) -> list[Sheet]:
    """All rows of a case, a table for each pass."""
    measured = [one for one in result.outcomes if one.status == "measured"]
    others = [f"{one.row.name}: {one.status}, {one.detail}" for one in result.outcomes]
    disturbed, visits = sum(o.disturbed for o in measured), sum(o.visits for o in measured)
    note = "; ".join(
        [o for one, o in zip(result.outcomes, others, strict=True) if one not in measured]
        + [f"{disturbed} of {visits} visits disturbed by other processes"]
    )
    return [
        Sheet(
            f"{result.case.title}: {TITLES[name]}",
            ("", "ms", "x", "images/s", "of ceiling", f"of {result.side}³", "first s", "MB"),
            [_line(result, one, name) for one in measured],
            f"{_reached(result, name)}; {note}",
        )
        for name in result.case.passes
    ]


def _reached(result: CaseResult, name: str) -> str:
    ceilings = {"ceiling": result.ceiling(name), f"{result.side}³": result.ceiling(SQUARE)}
    return ", ".join(
        f"{title} {best.per_second / 1e9:,.0f} GFLOP/s by {best.by}"
        for title, best in ceilings.items()
        if best is not None
    )


def _line(result: CaseResult, outcome: Outcome, name: str) -> list[str]:
    seconds = outcome.seconds[name]
    return [
        outcome.row.name,
        significant(seconds * 1e3),
        _ratio(result.times_fastest_peer(name, seconds)),
        significant(result.case.batch / seconds),
        _ratio(result.of_ceiling(name, seconds, name)),
        _ratio(result.of_ceiling(name, seconds, SQUARE)),
        significant(outcome.first_call[name]),
        f"{memory_of(outcome, name) / 1e6:,.0f}",
    ]


def memory_of(outcome: Outcome, name: str) -> int:
    """The device's peak, or the process's after a pass above what its imports took, in bytes."""
    if "device_peak" in outcome.memory:
        return outcome.memory["device_peak"]
    return outcome.memory[f"rss_{name}"] - outcome.memory["rss_imported"]


def summary_sheet(results: Sequence[CaseResult]) -> Sheet:
    """vitfast's fastest row in each case beside the fastest peer, and the fastest on JAX."""
    rows = []
    for result in results:
        for name in result.case.passes:
            ours = result.fastest(name, result.ours)
            if ours is None:
                continue
            case = result.case
            cells = [
                f"{case.family} {case.size} b{case.batch} {TITLES[name]}",
                _who(ours, name),
            ]
            for peers in (result.peers, result.jax_peers):
                cells += _beside(ours.seconds[name], result.fastest(name, peers), name)
            rows.append(cells)
    return Sheet(
        "vitfast beside its peers, in ms",
        ["", "vitfast", "fastest peer", "faster by", "fastest JAX peer", "faster by"],
        rows,
        "faster by: the peer's time over vitfast's, above 1 is in vitfast's favour",
    )


def _who(outcome: Outcome, name: str) -> str:
    return f"{significant(outcome.seconds[name] * 1e3)} {outcome.row.name}"


def _beside(ours: float, peer: Outcome | None, name: str) -> list[str]:
    if peer is None:
        return ["", ""]
    return [_who(peer, name), _ratio(peer.seconds[name] / ours)]


def attention_sheet(rows: Sequence[dict[str, Any]]) -> Sheet:
    """Attention over long sequences: memory and time of each implementation."""
    lines = []
    for row in rows:
        cells = [f"{row['implementation']}, {row['tokens']} tokens"]
        for name in ("forward", "gradient"):
            temp, ms = row.get(f"{name}_temp"), row.get(f"{name}_ms")
            cells += ["" if temp is None else f"{temp / 1e6:,.1f}"]
            cells += ["not run" if ms is None else significant(ms)]
        lines.append([*cells, row.get("detail", "")])
    return Sheet(
        "attention, by the number of tokens",
        ["", "fwd temp MB", "fwd ms", "grad temp MB", "grad ms", ""],
        lines,
        "temp: what the compiled program needs beside its inputs and outputs",
    )


def markdown(sheets: Sequence[Sheet], device: dict[str, Any]) -> str:
    """A page with all tables, and what they were made with."""
    made = [f"{name} {version}" for name, version in environment().items()]
    made += [str(device["kind"])]
    made += [f"{device['threads']} threads"] if device["threads"] else []
    made += ["freed memory kept"] if device["keep_memory"] else []
    note = NOTE if device["platform"] == "cpu" else GPU_NOTE
    head = f"# vitfast bench\n\nvitspec {vitspec.__version__}; {', '.join(made)}.\n\n{note}.\n\n"
    return head + "\n".join(sheet.markdown() for sheet in sheets)


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def significant(value: float) -> str:
    """Three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
