"""A report as Markdown, such as a step of GitHub Actions shows in its summary."""

from __future__ import annotations

from collections.abc import Sequence

import vitspec
from vitspec.testing.report.rows import (
    MARK,
    TENSORS,
    check_rows,
    departs,
    described,
    excused,
    looks_like,
    to_show,
    worst_tensors,
)
from vitspec.testing.report.text import (
    fenced,
    figure,
    first_lines,
    in_markdown,
    printable,
    ratio,
    short,
)
from vitspec.testing.report.report import Report
from vitspec.testing.results import Result
from vitspec.testing.tolerance import Grade

SIGNS = {0: "✅", 1: "❌", 3: "⚠️"}


def to_markdown(reports: Sequence[Report]) -> str:
    """The reports: a verdict, a table of the checks, and the first failures of each."""
    parts = [part for report in reports for part in _report(report)]
    legend = (
        f"ratio: error / bound, which conforms up to 1. {MARK}: zero but for rounding, measured "
        f"against what cancelled. vitspec {vitspec.__version__}."
    )
    return "\n\n".join([*parts, f"<sub>{legend}</sub>"]) + "\n"


def _report(report: Report) -> list[str]:
    name = in_markdown(f"{report.name} {report.version}")
    title = f"### {SIGNS[report.exit_code]} {name} as {report.spec}, {report.dtype}"
    parts = [title, f"**{report.verdict}** (seed {report.seed}, {report.seconds:.0f} s)"]
    if report.results:
        parts.append(_table(report))
    if hint := looks_like(report):
        parts.append(f"Hint: {hint}.")
    if known := excused(report):
        parts.append("\n".join(f"- {in_markdown(words)}" for words in known))
    shown, rest = to_show(report)
    parts += [_failure(report, result) for result in shown]
    if rest:
        parts.append(f"and {len(rest)} more.")
    parts += [f"Declared, but nothing is named so: {in_markdown(g)}" for g in report.unmatched]
    if report.output:
        lines = "\n".join(first_lines(report.output))
        parts.append(f"It wrote to its standard output:\n\n{fenced(lines)}")
    return parts


def _table(report: Report) -> str:
    lines = [
        "| check | passed | failed | skipped | worst tensor | error | bound | ratio |",
        "| --- | ---: | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for row in check_rows(report):
        c = row.count
        passed, failed = c["passed"] + c["xfailed"], c["failed"] + c["errored"] + c["xpassed"]
        figures = ["", "", "", ""]
        if (g := row.worst) is not None:
            figures = [_tensor(g), figure(g.error), figure(g.bound), ratio(g.ratio)]
        bold = f"**{failed}**" if failed else "0"
        cells = [in_markdown(row.check), str(passed), bold, str(c["skipped"]), *figures]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _tensor(g: Grade) -> str:
    return in_markdown(short(g.tensor)) + (f" {MARK}" if g.cancelled else "")


def _failure(report: Report, result: Result) -> str:
    lines = [departs(result), result.reason, result.point]
    lines += [f"  {described(g)}" for g in worst_tensors(result)]
    if (more := len(result.failures) - TENSORS) > 0:
        lines.append(f"  and {more} more tensors")
    details = fenced("\n".join(printable(line) for line in lines if line))
    return f"{details}\n\n{fenced(report.reproduce(result), 'sh')}"
