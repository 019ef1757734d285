"""A report as Markdown, such as a step of GitHub Actions shows in its summary."""

from __future__ import annotations

from collections.abc import Sequence

import vitspec
from vitspec.testing.report.report import UNMATCHED, Report, advice, drawn, statements, to_show
from vitspec.testing.report.rows import CheckRow, check_rows, excused, looks_like
from vitspec.testing.report.text import fenced, first_lines, in_markdown, short
from vitspec.testing.report.words import MARK, columns, told

SIGNS = {0: "✅", 1: "❌", 3: "⚠️"}
HEAD = (
    "| check | passed | failed | skipped | open | worst tensor | error | bound | ratio |",
    "| --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: |",
)


def to_markdown(reports: Sequence[Report]) -> str:
    """The reports: a verdict, a table of the checks, and the first failures of each."""
    parts = [part for report in reports for part in _report(report)]
    legend = (
        f"ratio: error / bound, which conforms up to 1. {MARK}: zero but for rounding, measured "
        f"against what cancelled; open: it cannot be told. vitspec {vitspec.__version__}."
    )
    return "\n\n".join([*parts, f"<sub>{legend}</sub>"]) + "\n"


def _report(report: Report) -> list[str]:
    name = in_markdown(f"{report.name} {report.version}")
    title = f"### {SIGNS[report.exit_code]} {name} as {report.spec}, {report.dtype}"
    parts = [title, f"**{report.verdict}** ({drawn(report)})"]
    if said := [f"- {what}: {in_markdown(words)}" for what, words in statements(report)]:
        parts.append("\n".join(said))
    parts += [in_markdown(words) for words in advice(report)]
    if report.results:
        parts.append("\n".join([*HEAD, *map(_check, check_rows(report))]))
    if hint := looks_like(report):
        parts.append(f"Hint: {hint}.")
    if known := excused(report):
        parts.append("\n".join(f"- {in_markdown(words)}" for words in known))
    shown, rest = to_show(report)
    for result in shown:
        parts.append(fenced("\n".join(told(result, result.reason, "  "))))
        parts.append(fenced(report.reproduce(result), "sh"))
    if rest:
        parts.append(f"and {len(rest)} more.")
    parts += [f"{UNMATCHED.capitalize()}{in_markdown(glob)}" for glob in report.unmatched]
    if report.output:
        lines = "\n".join(first_lines(report.output))
        parts.append(f"It wrote to its standard output:\n\n{fenced(lines)}")
    return parts


def _check(row: CheckRow) -> str:
    figures = ["", "", "", ""]
    if (g := row.worst) is not None:
        tensor = in_markdown(short(g.tensor)) + (f" {MARK}" if g.cancelled else "")
        figures = [tensor, *columns(g, "error", "bound", "ratio")]
    failed = f"**{row.failed}**" if row.failed else "0"
    counts = [str(row.passed), failed, str(row.skipped), str(row.undecided)]
    cells = [in_markdown(row.check), *counts, *figures]
    return f"| {' | '.join(cells)} |"
