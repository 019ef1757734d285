"""Where errors sit, as an SVG picture: layers across, tensors down, the colour says how far off.

Blue conforms and orange departs, which the common forms of colour blindness tell apart; what
departs has bold figures besides, or a cross where there is no room for them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vitspec.testing.report.rows import MARK, described, layer_of
from vitspec.testing.report.text import figure, in_html, ratio, short
from vitspec.testing.report.report import Report
from vitspec.testing.tolerance import Grade, worst

CONFORMS, DEPARTS = "conforms", "departs"
BINS = (
    (0.01, "&#8804; 0.01"), (0.1, "&#8804; 0.1"), (0.5, "&#8804; 0.5"), (1.0, "&#8804; 1"),
    (10.0, "&#8804; 10"), (1e3, "&#8804; 1000"), (1e6, "&#8804; 10&#8310;"),
    (float("inf"), "more"),
)  # fmt: skip
"""Ratios up to which a colour goes, and what the legend calls it; the first four conform."""
LIGHT = (
    ("#e6eff8", "#1d2a38"), ("#c2daef", "#1d2a38"), ("#8dbbe2", "#10202f"), ("#5798d0", "#0b1722"),
    ("#fdb777", "#2a1400"), ("#f27d1e", "#1f0f00"), ("#c44503", "#ffffff"), ("#7c1d02", "#ffffff"),
)  # fmt: skip
DARK = (
    ("#1b2836", "#b9c6d3"), ("#21435f", "#d5e2ee"), ("#2c6796", "#f2f7fb"), ("#5aa3dc", "#06121c"),
    ("#7a3d10", "#ffe9d6"), ("#d06a14", "#1c0d00"), ("#fb923a", "#1c0d00"), ("#ffd0a3", "#1c0d00"),
)  # fmt: skip
"""The colours of the bins, and of the figures on them."""

CROSS = "\N{MULTIPLICATION SIGN}"
WIDTH, ROW, GAP, LETTER = 760, 24, 2, 6.7
MOST_ROWS, MOST_LAYERS = 120, 64
AFTER = ("encoded", "pooled", "head.weights", "head.bias", "logits")
"""What comes after the layers; all else outside of them comes before."""


@dataclass(frozen=True)
class Cell:
    """The worst verdict on a tensor, and where."""

    grade: Grade
    where: str


def style() -> str:
    """The colours for dark pages; the elements' own are for light ones."""
    rules = [f".c{i}{{fill:{c}}}.t{i}{{fill:{t}}}" for i, (c, t) in enumerate(DARK)]
    return f"@media (prefers-color-scheme:dark){{{''.join(rules)}.ink{{fill:#d7dee6}}}}"


def picture(report: Report) -> str:
    """The SVG element; empty if nothing was graded against the specification."""
    cells = worst_cells(report)
    if not cells:
        return ""
    outside = [name for name in cells if layer_of(name) is None][:MOST_ROWS]
    after = [name for name in AFTER if name in outside]
    before = [name for name in outside if name not in after]
    grid: dict[str, dict[int, str]] = {}
    for name in cells:
        if (layer := layer_of(name)) is not None and layer < MOST_LAYERS:
            kind = name.replace(f"layers.{layer}.", "layers.*.", 1)
            grid.setdefault(kind, {})[layer] = name
    kinds = list(grid)[:MOST_ROWS]
    layers = 1 + max((layer for kind in kinds for layer in grid[kind]), default=-1)
    labels = [*outside, *(_kind(kind) for kind in kinds)]
    left = min(26, max(map(len, labels))) * LETTER + 10
    cell = min(64.0, max(14.0, (WIDTH - left) / max(layers, 1)))
    right = left + (cell * layers if layers else 240)
    parts, y = [], 0.0
    for name in before:
        parts += _row(y, left, name, [(left, right - left, cells[name])])
        y += ROW
    if kinds:
        parts += _heading(y + 6, left, cell, layers)
        y += ROW + 4
    for kind in kinds:
        row = [(left + i * cell, cell, cells[name]) for i, name in sorted(grid[kind].items())]
        parts += _row(y, left, _kind(kind), row)
        y += ROW
    y += 10 if kinds else 0
    for name in after:
        parts += _row(y, left, name, [(left, right - left, cells[name])])
        y += ROW
    dots = any(cell.grade.cancelled for cell in cells.values())
    parts += _legend(y + 14, left, dots)
    width, height = max(right, left + 8 * 62 + 8) + 4, y + (84 if dots else 66)
    return (
        f'<svg class="picture" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'style="max-width:{width:.0f}px" role="img" '
        f'aria-label="error / bound by tensor and layer" '
        f'font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace" font-size="11">'
        f"<style>{style()}</style>\n" + "\n".join(parts) + "\n</svg>"
    )


def worst_cells(report: Report) -> dict[str, Cell]:
    """The worst verdict on each tensor, over all places, in order of first appearance."""
    found: dict[str, Cell] = {}
    for result in report.results:
        if result.check.startswith(("vector.layer", "identity.")):
            continue  # their tensors are not the model's
        where = f"{result.check} at {result.place}" if result.place else result.check
        for g in result.grades:
            before = found.get(g.tensor)
            if before is None or worst([before.grade, g]) is g:
                found[g.tensor] = Cell(g, where)
    return found


def bin_of(ratio: float) -> int:
    """The colour of a ratio; NaN is as bad as can be."""
    return next((i for i, (limit, _) in enumerate(BINS) if ratio <= limit), len(BINS) - 1)


def _kind(kind: str) -> str:
    return short(kind).removeprefix("layers.*.")


def _row(y: float, left: float, name: str, cells: Iterable[tuple[float, float, Cell]]) -> list[str]:
    shown = name if len(name) <= 26 else f"{name[:12]}...{name[-11:]}"
    parts = [
        f'<text class="ink" x="{left - 8:.1f}" y="{y + 16:.1f}" text-anchor="end" fill="#24303c">'
        f"{in_html(shown)}<title>{in_html(name)}</title></text>"
    ]
    return parts + [_cell(x, y, width, cell) for x, width, cell in cells]


def _cell(x: float, y: float, width: float, cell: Cell) -> str:
    g = cell.grade
    i = bin_of(g.ratio) if g.conforms else max(4, bin_of(g.ratio))
    words = ratio(g.ratio) if g.ratio >= 0.01 else figure(g.ratio)
    text = words
    if len(text) * LETTER > width - 4:
        text = "" if g.conforms else CROSS
    verdict = CONFORMS if g.conforms else DEPARTS
    title = f"{described(g)}, ratio {figure(g.ratio)}: {verdict} ({cell.where})"
    bold = "" if g.conforms else ' font-weight="700"'
    return (
        f"<g><title>{in_html(title)}</title>"
        f'<rect class="c{i}" x="{x + GAP / 2:.1f}" y="{y + GAP / 2:.1f}" '
        f'width="{width - GAP:.1f}" height="{ROW - GAP}" rx="3" fill="{LIGHT[i][0]}"/>'
        + (
            f'<text class="t{i}" x="{x + width / 2:.1f}" y="{y + 16:.1f}" text-anchor="middle" '
            f'fill="{LIGHT[i][1]}"{bold}>{in_html(text)}</text>'
            if text
            else ""
        )
        + (_dot(x + width - 6, y + 6, i) if g.cancelled else "")
        + "</g>"
    )


def _dot(x: float, y: float, i: int) -> str:
    """Marks a tensor that is zero but for rounding."""
    return f'<circle class="t{i}" cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{LIGHT[i][1]}"/>'


def _heading(y: float, left: float, cell: float, layers: int) -> list[str]:
    step = 1 if cell > 18 else 4
    texts = [
        f'<text class="ink" x="{left + (i + 0.5) * cell:.1f}" y="{y + 16:.1f}" '
        f'text-anchor="middle" fill="#24303c">{i}</text>'
        for i in range(0, layers, step)
    ]
    name = f'<text class="ink" x="{left - 8:.1f}" y="{y + 16:.1f}" text-anchor="end" '
    return [f'{name}font-weight="700" fill="#24303c">layer</text>', *texts]


def _legend(y: float, left: float, dots: bool) -> list[str]:
    parts = [
        f'<text class="ink" x="{left - 8:.1f}" y="{y + 16:.1f}" text-anchor="end" '
        'font-weight="700" fill="#24303c">error / bound</text>'
    ]
    for i, (_, label) in enumerate(BINS):
        x = left + 62 * i + (8 if i > 3 else 0)
        parts.append(
            f'<rect class="c{i}" x="{x + 1:.1f}" y="{y + 1:.1f}" width="60" height="{ROW - GAP}" '
            f'rx="3" fill="{LIGHT[i][0]}"/><text class="t{i}" x="{x + 31:.1f}" y="{y + 16:.1f}" '
            f'text-anchor="middle" fill="{LIGHT[i][1]}">{label}</text>'
        )
    if dots:
        parts.append(
            _dot(left + 6, y + 56, 0).replace("t0", "ink")
            + f'<text class="ink" x="{left + 14:.1f}" y="{y + 60:.1f}" fill="#24303c">'
            f"{MARK}: zero but for rounding, measured against what cancelled</text>"
        )
    for i, word in ((0, CONFORMS), (4, DEPARTS)):
        x = left + 62 * i + (8 if i else 0) + 124
        parts.append(
            f'<text class="ink" x="{x:.1f}" y="{y + 40:.1f}" text-anchor="middle" '
            f'fill="#24303c">{word}</text>'
        )
    return parts
