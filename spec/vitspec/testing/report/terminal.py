"""A report in the terminal: readable at 80 columns; rich leaves the colours out for NO_COLOR."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

import vitspec
from vitspec.testing.report.rows import (
    LEGEND,
    MARK,
    TENSORS,
    CheckRow,
    check_rows,
    departs,
    excused,
    layer_of,
    looks_like,
    to_show,
    who,
    worst_of_kinds,
    worst_tensors,
)
from vitspec.testing.report.text import figure, first_lines, printable, ratio, short
from vitspec.testing.report.report import Report
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
        verdict.append(f" ({report.dtype}, seed {report.seed}, {report.seconds:.0f} s)", "dim")
        console.print(verdict, soft_wrap=True, highlight=False)


def _print_report(report: Report, console: Console) -> None:
    header = Text(who(report), style="bold")
    if report.target != report.name:
        header.append(f" ({printable(report.target)})", style="not bold dim")
    console.print(header, highlight=False)
    photograph = [g for r in report.results if str(r.place) == "photograph" for g in r.grades]
    if photograph:
        console.print(photograph_table(photograph))
        console.print()
    if report.results:
        console.print(checks_table(check_rows(report)))
    if report.output:
        console.print("It wrote to its standard output:", highlight=False)
        for line in first_lines(report.output):
            console.print(Text(f"  | {line}"), highlight=False)
    if hint := looks_like(report):
        console.print(Text(f"Hint: {hint}", style="yellow"), highlight=False)
    for words in excused(report):
        console.print(Text(f"* {words}"), highlight=False)
    _print_failures(report, console)
    for glob in report.unmatched:
        console.print(
            Text.assemble(("Declared, but nothing is named so: ", "red"), printable(glob)),
            highlight=False,
        )
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
            figure(worst.error),
            figure(worst.price),
            ratio(worst.ratio),
            Text("conforms", "green") if worst.conforms else Text("departs", "bold red"),
        )
    return table


def checks_table(rows: Sequence[CheckRow]) -> Table:
    """One row for each check, with how many places passed and the worst tensor of all."""
    table = _table(
        "checks", "check", "pass", "fail", "skip", "worst tensor", "error", "bound", "ratio"
    )
    for row in rows:
        figures: list[str | Text] = [""] * 4
        if (g := row.worst) is not None:
            figures = [_tensor(g.tensor, g), figure(g.error), figure(g.bound), ratio(g.ratio)]
        table.add_row(Text(printable(row.check)), *_counts(row), *figures)
    return table


def _counts(row: CheckRow) -> list[Text]:
    c = row.count
    passed, failed = c["passed"] + c["xfailed"], c["failed"] + c["errored"] + c["xpassed"]
    declared = "*" if c["xfailed"] else ""
    return [
        Text(f"{passed}{declared}", "green" if passed else "dim"),
        Text(str(failed), "bold red" if failed else "dim"),
        Text(str(c["skipped"]), "yellow" if c["skipped"] else "dim"),
    ]


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


def _print_failures(report: Report, console: Console) -> None:
    shown, rest = to_show(report)
    for result in shown:
        _print_failure(report, result, console)
    if rest:
        checks = ", ".join(sorted({printable(r.check) for r in rest}))
        console.print(Text(f"and {len(rest)} more: {checks}"), highlight=False)


def _print_failure(report: Report, result: Result, console: Console) -> None:
    console.print()
    console.print(Text(departs(result), style="bold red"), highlight=False)
    for words in (result.reason, result.point):
        if words:
            console.print(Padding(Text(printable(words)), (0, 0, 0, 2)), highlight=False)
    if result.failures:
        console.print(Padding(_failures_table(result), (0, 0, 0, 2)))
    if (more := len(result.failures) - TENSORS) > 0:
        console.print(f"  and {more} more tensors", highlight=False)
    # One line, however long: it is there to be copied.
    command = Text.assemble(("  reproduce: ", "dim"), printable(report.reproduce(result)))
    console.print(command, soft_wrap=True, highlight=False)


def _failures_table(result: Result) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("tensor", overflow="fold")
    for heading in ("metric", "error", "price", "bound", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    for g in worst_tensors(result):
        figures = [figure(x) for x in (g.error, g.price, g.bound)]
        table.add_row(_tensor(g.tensor, g), g.metric, *figures, ratio(g.ratio))
    return table


def _print_legend(reports: Sequence[Report], console: Console) -> None:
    results = [r for report in reports for r in report.results]
    lines = [f"{word}: {text}" for word, text in LEGEND.items() if word != MARK]
    if any(str(r.place) == "photograph" and r.grades for r in results):
        lines.append("d x: the gradient of x; worst layer: the one with the largest ratio")
    if any(g.cancelled for r in results for g in r.grades):
        lines.append(f"{MARK}: {LEGEND[MARK]}")
    if any(r.status == "xfailed" for r in results):
        lines.append("*: some fail as declared")
    console.print("\n".join(lines), style="dim", highlight=False, markup=False)
