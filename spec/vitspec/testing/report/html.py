"""A report as one HTML page: nothing is loaded, nothing runs, light or dark as the reader likes."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

import vitspec
from vitspec.testing.report.picture import picture
from vitspec.testing.report.rows import (
    BAD,
    LEGEND,
    MARK,
    TENSORS,
    CheckRow,
    check_rows,
    departs,
    excused,
    looks_like,
    to_show,
    who,
    worst_tensors,
)
from vitspec.testing.report.text import figure, first_lines, in_html, ratio, short
from vitspec.testing.report.report import Report
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
    target = f" <code>{in_html(report.target)}</code>" if report.target != report.name else ""
    parts = [
        f"<section>\n<h1>{in_html(who(report))}</h1>",
        f'<p><span class="verdict {kind}">{sign} {in_html(report.verdict)}</span>{target} '
        f'<span class="dim">seed {report.seed}, {report.seconds:.0f} s</span></p>',
    ]
    if hint := looks_like(report):
        parts.append(f'<p class="hint">Hint: {in_html(hint)}</p>')
    for glob in report.unmatched:
        parts.append(
            f'<p class="hint">Declared, but nothing is named so: <code>{in_html(glob)}</code></p>'
        )
    if svg := picture(report):
        parts.append(
            "<h2>Where errors sit</h2>\n<figure>\n"
            f"{svg}\n<figcaption>The worst of all places: the logits, and the gradients of the "
            "image and of every parameter. Point at a cell for its figures.</figcaption>\n</figure>"
        )
    parts += _failures(report)
    if report.results:
        parts.append(f"<h2>Checks</h2>\n{_checks(check_rows(report))}")
    if known := excused(report):
        items = "\n".join(f"<li>{in_html(words)}</li>" for words in known)
        parts.append(f"<h2>Declared</h2>\n<ul>\n{items}\n</ul>")
    if report.output:
        lines = in_html("\n".join(first_lines(report.output)))
        parts.append(f"<h2>Its standard output</h2>\n<pre>{lines}</pre>")
    return "\n".join([*parts, "</section>"])


def _checks(rows: Sequence[CheckRow]) -> str:
    headings = "<th>check</th><th>passed</th><th>failed</th><th>skipped</th>" + _HEADINGS
    body = "\n".join(_check(row) for row in rows)
    return _table(headings.replace("<th>tensor", "<th>worst tensor"), body)


def _check(row: CheckRow) -> str:
    c, g = row.count, row.worst
    bad = sum(c[status] for status in BAD)
    declared = f" ({c['xfailed']} as declared)" if c["xfailed"] else ""
    cells = [
        f"<td><code>{in_html(row.check)}</code></td>",
        f"<td>{c['passed'] + c['xfailed']}{declared}</td>",
        f"<td>{bad}</td><td>{c['skipped']}</td>",
        _figures(g) if g is not None else '<td colspan="5"></td>',
    ]
    start = '<tr class="bad">' if bad else "<tr>"
    return start + "".join(cells) + "</tr>"


_HEADINGS = "<th>tensor</th><th>error</th><th>price</th><th>bound</th><th>ratio</th>"


def _figures(g: Grade) -> str:
    mark = f" <abbr title='{LEGEND[MARK]}'>{MARK}</abbr>" if g.cancelled else ""
    tensor = f'<td><code title="{in_html(g.tensor)}">{in_html(short(g.tensor))}</code>{mark}</td>'
    numbers = (figure(g.error), figure(g.price), figure(g.bound), ratio(g.ratio))
    return tensor + "".join(f"<td>{number}</td>" for number in numbers)


def _table(headings: str, body: str) -> str:
    head = f"<thead><tr>{headings}</tr></thead>"
    return f'<div class="scroll"><table>\n{head}\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _failures(report: Report) -> list[str]:
    shown, rest = to_show(report)
    parts = ["<h2>What departs</h2>"] if shown else []
    parts += [_failure(report, result) for result in shown]
    if rest:
        items = "\n".join(_item(report, result) for result in rest[:MOST_LISTED])
        left = len(rest) - MOST_LISTED
        more = f"\n<li>and {left} more</li>" if left > 0 else ""
        parts.append(
            f"<details><summary>{len(rest)} more</summary>\n<ul>\n{items}{more}\n</ul></details>"
        )
    return parts


def _failure(report: Report, result: Result) -> str:
    parts = [f"<article>\n<h3>{in_html(departs(result))}</h3>"]
    if result.reason:
        parts.append(f"<p>{in_html(result.reason)}</p>")
    if result.failures:
        rows = "\n".join(f"<tr>{_figures(g)}</tr>" for g in worst_tensors(result))
        parts.append(_table(_HEADINGS, rows))
    if (more := len(result.failures) - TENSORS) > 0:
        parts.append(f'<p class="dim">and {more} more tensors</p>')
    if result.point:
        parts.append(f'<p class="point">{in_html(result.point)}</p>')
    command = in_html(report.reproduce(result))
    return "\n".join([*parts, f"<pre>{command}</pre>\n</article>"])


def _item(report: Report, result: Result) -> str:
    words = departs(result) + (f": {result.reason}" if result.reason else "")
    return f"<li>{in_html(words)}<br/><code>{in_html(report.reproduce(result))}</code></li>"
