"""A report as one HTML page: nothing is loaded, nothing runs, light or dark as the reader likes."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

import vitspec
from vitspec.testing.report.picture import picture
from vitspec.testing.report.report import UNMATCHED, Report, advice, drawn, statements, to_show, who
from vitspec.testing.report.rows import LEGEND, CheckRow, check_rows, excused, looks_like
from vitspec.testing.report.text import first_lines, in_html, short
from vitspec.testing.report.words import FIGURES, MARK, columns, departs, left_out, worst_tensors
from vitspec.testing.results import Result, environment
from vitspec.testing.tolerance import Grade

SIGNS = {0: ("good", "✓"), 1: ("bad", "✗"), 3: ("odd", "!")}
MOST_LISTED = 200
"""Failures that the page lists besides those in full."""


def to_html(reports: Sequence[Report]) -> str:
    """The page, which is XML as well."""
    style = files("vitspec.testing.report").joinpath("page.css").read_text("utf-8")
    title = in_html(", ".join(f"{r.name}: {r.verdict}" for r in reports) or "nothing was checked")
    packages = ", ".join(f"{name} {version}" for name, version in environment().items())
    body = "\n".join(_report(report) for report in reports)
    legend = "".join(f"<dt>{in_html(k)}</dt><dd>{in_html(v)}</dd>" for k, v in LEGEND.items())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"/>
<meta name="color-scheme" content="light dark"/>
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
<dl>{legend}</dl>
<footer>vitspec {vitspec.__version__}; {in_html(packages)}</footer>
</main>
</body>
</html>
"""


def _report(report: Report) -> str:
    kind, sign = SIGNS[report.exit_code]
    target = (
        f" <code>{in_html(report.target)}</code>" if report.target not in ("", report.name) else ""
    )
    parts = [
        f"<section>\n<h1>{in_html(who(report))}</h1>",
        f'<p><span class="verdict {kind}">{sign} {in_html(report.verdict)}</span>{target} '
        f'<span class="dim">{drawn(report)}</span></p>',
    ]
    parts += [f"<p>{what}: {in_html(words)}</p>" for what, words in statements(report)]
    hints = [in_html(words) for words in advice(report)]
    hints += [f"Hint: {in_html(hint)}"] if (hint := looks_like(report)) else []
    hints += [f"{UNMATCHED.capitalize()}<code>{in_html(glob)}</code>" for glob in report.unmatched]
    parts += [f'<p class="hint">{hint}</p>' for hint in hints]
    if svg := picture(report):
        parts.append(
            "<h2>Where errors sit</h2>\n<figure>\n"
            f"{svg}\n<figcaption>The worst of all places: the logits, and the gradients of the "
            "image and of every parameter. Point at a cell for its figures.</figcaption>\n</figure>"
        )
    parts += _failures(report)
    if report.results:
        headings = ("check", "passed", "failed", "skipped", "open", "worst tensor")
        parts.append(f"<h2>Checks</h2>\n{_table(headings, [*map(_check, check_rows(report))])}")
    if known := excused(report):
        parts.append(f"<h2>Declared</h2>\n{_list([in_html(words) for words in known])}")
    if report.output:
        lines = in_html("\n".join(first_lines(report.output)))
        parts.append(f"<h2>Its standard output</h2>\n<pre>{lines}</pre>")
    return "\n".join([*parts, "</section>"])


def _check(row: CheckRow) -> str:
    declared = f" ({row.declared} as declared)" if row.declared else ""
    check, passed = f"<code>{in_html(row.check)}</code>", f"{row.passed}{declared}"
    figures = _figures(row.worst) if row.worst is not None else '<td colspan="5"></td>'
    start = '<tr class="bad">' if row.failed else "<tr>"
    cells = (check, passed, row.failed, row.skipped, row.undecided)
    return start + "".join(f"<td>{cell}</td>" for cell in cells) + f"{figures}</tr>"


def _figures(g: Grade) -> str:
    mark = f" <abbr title='{LEGEND[MARK]}'>{MARK}</abbr>" if g.cancelled else ""
    tensor = f'<code title="{in_html(g.tensor)}">{in_html(short(g.tensor))}</code>{mark}'
    return "".join(f"<td>{cell}</td>" for cell in (tensor, *columns(g, *FIGURES)))


def _table(headings: Sequence[str], rows: Sequence[str]) -> str:
    cells = "".join(f"<th>{heading}</th>" for heading in (*headings, *FIGURES))
    head, body = f"<thead><tr>{cells}</tr></thead>", "\n".join(rows)
    return f'<div class="scroll"><table>\n{head}\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _list(items: Sequence[str]) -> str:
    lines = "\n".join(f"<li>{item}</li>" for item in items)
    return f"<ul>\n{lines}\n</ul>"


def _failures(report: Report) -> list[str]:
    shown, rest = to_show(report)
    parts = ["<h2>What departs</h2>"] if shown else []
    parts += [_failure(report, result) for result in shown]
    if rest:
        items = [_item(report, result) for result in rest[:MOST_LISTED]]
        if (left := len(rest) - MOST_LISTED) > 0:
            items.append(f"and {left} more")
        summary = f"<summary>{len(rest)} more</summary>"
        parts.append(f"<details>{summary}\n{_list(items)}</details>")
    return parts


def _failure(report: Report, result: Result) -> str:
    parts = [f"<article>\n<h3>{in_html(departs(result))}</h3>"]
    if result.reason:
        parts.append(f"<p>{in_html(result.reason)}</p>")
    if result.failures:
        rows = [f"<tr>{_figures(g)}</tr>" for g in worst_tensors(result)]
        parts.append(_table(["tensor"], rows))
    if more := left_out(result):
        parts.append(f'<p class="dim">{more}</p>')
    if result.point:
        parts.append(f'<p class="point">{in_html(result.point)}</p>')
    command = in_html(report.reproduce(result))
    return "\n".join([*parts, f"<pre>{command}</pre>\n</article>"])


def _item(report: Report, result: Result) -> str:
    words = departs(result) + (f": {result.reason}" if result.reason else "")
    return f"{in_html(words)}<br/><code>{in_html(report.reproduce(result))}</code>"
