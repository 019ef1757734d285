"""A report in the terminal: readable at 80 columns; rich leaves the colours out for NO_COLOR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

import vitspec
from vitspec.testing.report.parts import suspected
from vitspec.testing.report.report import UNMATCHED, Report, advice, drawn, statements, to_show, who
from vitspec.testing.report.rows import (
    LEGEND,
    CheckRow,
    check_rows,
    excused,
    layer_of,
    looks_like,
    worst_of_kinds,
)
from vitspec.testing.report.text import first_lines, printable, short
from vitspec.testing.report.words import (
    FIGURES,
    MARK,
    columns,
    departs,
    how_sure,
    is_photograph,
    left_out,
    worst_tensors,
)
from vitspec.testing.results import Result
from vitspec.testing.tolerance import Grade


def print_reports(reports: Sequence[Report], console: Console) -> None:
    """Print all reports: tables, the first failures in full, and the verdicts last."""
    for report in reports:
        _print_report(report, console)
    if any(result.grades for report in reports for result in report.results):
        _print_legend(reports, console)
    for report in reports:
        style = {0: "bold green", 1: "bold red"}.get(report.exit_code, "bold yellow")
        verdict = Text(f"vitspec {vitspec.__version__}: {printable(report.name)} ")
        verdict.append(report.verdict, style=style)
        verdict.append(f" ({report.dtype}, {drawn(report)})", "dim")
        _print(console, verdict, soft_wrap=True)


def _print(console: Console, *words: str | Text | tuple[str, str], **options: Any) -> None:
    """Print words, each in a style if it has one, with nothing in them taken for markup."""
    console.print(Text.assemble(*words), highlight=False, **options)


def _print_report(report: Report, console: Console) -> None:
    target = f" ({printable(report.target)})" if report.target not in ("", report.name) else ""
    _print(console, (who(report), "bold"), (target, "dim"))
    photograph = [g for r in report.results if is_photograph(r) for g in r.grades]
    if photograph:
        console.print(photograph_table(photograph))
        console.print()
    if report.results:
        console.print(checks_table(check_rows(report)))
    if report.output:
        _print(console, "It wrote to its standard output:")
        for line in first_lines(report.output):
            _print(console, f"  | {line}")
    if hint := looks_like(report):
        _print(console, (f"Hint: {hint}", "yellow"))
    for words in excused(report):
        _print(console, f"* {words}")
    shown, rest = to_show(report)
    for result in shown:
        _print_failure(report, result, console)
    if rest:
        checks = ", ".join(sorted({printable(r.check) for r in rest}))
        _print(console, f"and {len(rest)} more: {checks}")
    for glob in report.unmatched:
        _print(console, (UNMATCHED.capitalize(), "red"), printable(glob))
    for what, words in statements(report):
        _print(console, (f"{what}: ", "bold"), words)
    for words in advice(report):
        _print(console, (words, "yellow"))
    console.print()


# ---- tables ------------------------------------------------------------------------------------


def photograph_table(grades: Sequence[Grade]) -> Table:
    """One row for each kind of tensor, with its worst layer."""
    table = _table(
        "photograph, ViT-Base/16", "tensor", "worst layer", "error", "price", "ratio", "verdict"
    )
    for kind, worst, count in worst_of_kinds(grades):
        layer = layer_of(worst.tensor)
        table.add_row(
            _tensor(kind if kind == "logits" else f"d {kind}", worst),
            Text(f"{layer} of {count}" if layer is not None else ""),
            *columns(worst, "error", "price", "ratio"),
            Text("conforms", "green") if worst.conforms else Text("departs", "bold red"),
        )
    return table


def checks_table(rows: Sequence[CheckRow]) -> Table:
    """One row for each check, with how many places passed and the worst tensor of all."""
    open_ = any(row.undecided for row in rows)  # a column of its own, where there is any
    headings = ["check", "pass", "fail", "skip", *(["open"] if open_ else []), "worst tensor"]
    table = _table("checks", *headings, "error", "bound", "ratio")
    for row in rows:
        counts = [
            Text(f"{row.passed}{'*' if row.declared else ''}", "green" if row.passed else "dim"),
            Text(str(row.failed), "bold red" if row.failed else "dim"),
            Text(str(row.skipped), "yellow" if row.skipped else "dim"),
        ]
        if open_:
            counts.append(Text(str(row.undecided), "yellow" if row.undecided else "dim"))
        figures: list[str | Text] = [""] * 4
        if (g := row.worst) is not None:
            figures = [_tensor(g.tensor, g), *columns(g, "error", "bound", "ratio")]
        table.add_row(Text(printable(row.check)), *counts, *figures)
    return table


def _table(title: str, *headings: str) -> Table:
    """A compact table of text and figures."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=0,
        show_edge=False,
    )
    for heading in headings:
        words = heading in ("check", "tensor", "worst tensor", "verdict")
        table.add_column(heading, justify="left" if words else "right", overflow="fold")
    return table


def _tensor(name: str, g: Grade) -> Text:
    text = Text(printable(short(name)))
    return text.append(f" {MARK}", style="dim") if g.cancelled else text


# ---- failures ----------------------------------------------------------------------------------


def _print_failure(report: Report, result: Result, console: Console) -> None:
    console.print()
    _print(console, (departs(result), "bold red"))
    for words in (result.reason, result.point):
        if words:
            console.print(Padding(Text(printable(words)), (0, 0, 0, 2)), highlight=False)
    if result.failures:
        console.print(Padding(_failures_table(worst_tensors(result)), (0, 0, 0, 2)))
    for words in how_sure(worst_tensors(result)[0]) if result.failures else ():
        _print(console, f"  {words}")
    if more := left_out(result):
        _print(console, f"  {more}")
    # One line, however long: it is there to be copied.
    command = printable(report.reproduce(result))
    _print(console, ("  reproduce: ", "dim"), command, soft_wrap=True)
    if diagnose := printable(report.diagnose(result)):
        _print(console, ("  diagnose: ", "dim"), diagnose, soft_wrap=True)


def _failures_table(grades: Sequence[Grade]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("tensor", overflow="fold")
    for heading in ("metric", *FIGURES):
        table.add_column(heading, justify="right", no_wrap=True)
    for g in grades:
        table.add_row(_tensor(g.tensor, g), g.metric, *columns(g, *FIGURES))
    return table


def _print_legend(reports: Sequence[Report], console: Console) -> None:
    results = [r for report in reports for r in report.results]
    lines = [f"{word}: {text}" for word, text in LEGEND.items() if word != MARK]
    if any(is_photograph(r) and r.grades for r in results):
        lines.append("d x: the gradient of x; worst layer: the one with the largest ratio")
    if any(g.cancelled for r in results for g in r.grades):
        lines.append(f"{MARK}: {LEGEND[MARK]}")
    if any(r.status == "undecided" for r in results):
        lines.append("open: rounding is too large here to tell")
    if any(r.status == "xfailed" for r in results):
        lines.append("*: some fail as declared")
    if words := suspected(results):
        lines.append(words)
    _print(console, ("\n".join(lines), "dim"))
