"""Where errors sit, as an SVG picture: layers across, tensors down, the colour says how far off.

Blue conforms and orange departs, which the common forms of colour blindness tell apart; what
departs has bold figures besides, or a cross where there is no room for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vitspec.testing.report.report import Report
from vitspec.testing.report.rows import layer_of
from vitspec.testing.report.text import figure, in_html, ratio, short
from vitspec.testing.report.words import MARK, described
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

INK = "#24303c"
TITLE = {"text_anchor": "end", "font_weight": "700", "fill": INK}
"""How the words to the left of what they head are set."""

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
    """The SVG element; empty if no tensor of the model was graded."""
    cells = worst_cells(report)
    if not cells:
        return ""
    outside = [name for name in cells if layer_of(name) is None][:MOST_ROWS]
    grid = _grid(cells)
    layers = 1 + max((layer for row in grid.values() for layer in row), default=-1)
    left = min(26, max(map(len, [*outside, *map(_label, grid)]))) * LETTER + 10
    cell = min(64.0, max(14.0, (WIDTH - left) / max(layers, 1)))
    right = left + (cell * layers if layers else 240)
    parts, y = [], 0.0
    for name in (name for name in outside if name not in AFTER):
        parts += _row(y, left, name, [(left, right - left, cells[name])])
        y += ROW
    if grid:
        parts += _heading(y + 6, left, cell, layers)
        y += ROW + 4
    for kind, row in grid.items():
        parts += _row(y, left, _label(kind), [(left + i * cell, cell, row[i]) for i in sorted(row)])
        y += ROW
    y += 10 if grid else 0
    for name in (name for name in AFTER if name in outside):
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


def _grid(cells: Mapping[str, Cell]) -> dict[str, dict[int, Cell]]:
    """The cells of tensors of layers: by kind, and by layer."""
    grid: dict[str, dict[int, Cell]] = {}
    for name, cell in cells.items():
        if (layer := layer_of(name)) is not None and layer < MOST_LAYERS:
            grid.setdefault(name.replace(f"layers.{layer}.", "layers.*.", 1), {})[layer] = cell
    return {kind: grid[kind] for kind in list(grid)[:MOST_ROWS]}


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


def _label(kind: str) -> str:
    return short(kind).removeprefix("layers.*.")


def _element(tag: str, inner: str = "", /, **attributes: str | float) -> str:
    """An SVG element; coordinates, which are no integers, have one decimal."""
    start = f"<{tag}"
    for name, value in attributes.items():
        text = f"{value:.1f}" if isinstance(value, float) else value
        start += f' {name.rstrip("_").replace("_", "-")}="{text}"'
    return start + (f">{inner}</{tag}>" if inner else "/>")


def _text(x: float, y: float, words: str, of: str = "ink", **attributes: str | float) -> str:
    """Words whose baseline is at y, in the colour of the page's ink or of a bin's figures."""
    return _element("text", words, class_=of, x=x, y=y, **attributes)


def _box(i: int, x: float, y: float, width: float) -> str:
    """A box of colour i."""
    fill, _ = LIGHT[i]
    place = {"x": x + GAP / 2, "y": y + GAP / 2, "width": width - GAP, "height": ROW - GAP}
    return _element("rect", class_=f"c{i}", **place, rx=3, fill=fill)


def _dot(x: float, y: float, i: int) -> str:
    """Marks a tensor that is zero but for rounding."""
    return _element("circle", class_=f"t{i}", cx=x, cy=y, r=2, fill=LIGHT[i][1])


def _row(y: float, left: float, name: str, cells: Iterable[tuple[float, float, Cell]]) -> list[str]:
    shown = name if len(name) <= 26 else f"{name[:12]}...{name[-11:]}"
    words = f"{in_html(shown)}<title>{in_html(name)}</title>"
    label = _text(left - 8, y + 16, words, text_anchor="end", fill=INK)
    return [label, *(_cell(x, y, width, cell) for x, width, cell in cells)]


def _cell(x: float, y: float, width: float, cell: Cell) -> str:
    g = cell.grade
    i = bin_of(g.ratio) if g.conforms else max(4, bin_of(g.ratio))
    text = ratio(g.ratio) if g.ratio >= 0.01 else figure(g.ratio)
    if len(text) * LETTER > width - 4:
        text = "" if g.conforms else CROSS
    verdict = CONFORMS if g.conforms else DEPARTS
    title = f"{described(g)}, ratio {figure(g.ratio)}: {verdict} ({cell.where})"
    parts = [f"<g><title>{in_html(title)}</title>", _box(i, x, y, width)]
    if text:
        look = {"text_anchor": "middle", "fill": LIGHT[i][1]}
        look |= {} if g.conforms else {"font_weight": "700"}
        parts.append(_text(x + width / 2, y + 16, in_html(text), f"t{i}", **look))
    if g.cancelled:
        parts.append(_dot(x + width - 6, y + 6, i))
    return "".join([*parts, "</g>"])


def _heading(y: float, left: float, cell: float, layers: int) -> list[str]:
    step = 1 if cell > 18 else 4
    return [_text(left - 8, y + 16, "layer", **TITLE)] + [
        _text(left + (i + 0.5) * cell, y + 16, str(i), text_anchor="middle", fill=INK)
        for i in range(0, layers, step)
    ]


def _legend(y: float, left: float, dots: bool) -> list[str]:
    parts = [_text(left - 8, y + 16, "error / bound", **TITLE)]
    places = [left + 62 * i + (8 if i > 3 else 0) for i in range(len(BINS))]
    for i, (x, (_, label)) in enumerate(zip(places, BINS, strict=True)):
        words = _text(x + 31, y + 16, label, f"t{i}", text_anchor="middle", fill=LIGHT[i][1])
        parts.append(_box(i, x, y, 62) + words)
    if dots:
        words = f"{MARK}: zero but for rounding, measured against what cancelled"
        dot = _dot(left + 6, y + 56, 0).replace("t0", "ink")
        parts.append(dot + _text(left + 14, y + 60, words, fill=INK))
    for i, word in ((0, CONFORMS), (4, DEPARTS)):
        parts.append(_text(places[i] + 124, y + 40, word, text_anchor="middle", fill=INK))
    return parts
