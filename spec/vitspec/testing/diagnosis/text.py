"""A diagnosis for people, within 80 columns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from vitspec.testing.diagnosis.diagnosis import Departure, Diagnosis, Near

WIDTH = 80
KINDS_SHOWN = 12
"""Rows of the table of departures; JSON has all."""


def diagnosis_tables(diagnosis: Diagnosis) -> list[Any]:
    """The diagnosis as what rich prints; colours only say again what the words say."""
    d = diagnosis
    place = f", {d.place} first" if d.place else ""
    head = Text(f"{d.implementation} {d.version} as {d.spec}, {d.dtype}, seed {d.seed}: ")
    head.append(f"looked at {len(d.points)} points in {d.seconds:.1f} s{place}", style="dim")
    parts: list[Any] = [head, Text(d.verdict, style="bold green" if d.conforms else "bold red")]
    if d.nearest:
        parts.append(_nearest_table(d))
    if d.departures:
        first = d.departures[0]
        parts.append(Text(f"First to depart: {_shown(first)}", style="bold"))
        parts.append(_departures_table(d))
    parts += [Text(("" if cause.endswith(":") else "  ") + cause) for cause in d.causes]
    parts += [Text(note) for note in d.notes]
    if d.name and not d.conforms:
        parts.append(Text(f"See docs/catalogue.md on {' and '.join(d.nearest[0].names)}."))
    return parts


def _table(*headings: tuple[str, str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, width=WIDTH, pad_edge=False)
    for heading, justify in headings:
        table.add_column(
            heading, justify="right" if justify == "right" else "left", overflow="fold",
            no_wrap=justify == "right",
        )  # fmt: skip
    return table


def _nearest_table(d: Diagnosis) -> Table:
    table = _table(
        ("nearest deviations", ""), ("distance", "right"), ("tensors that agree", "right")
    )
    for near in d.nearest:
        table.add_row(_name(near), _number(near.distance), f"{near.agreeing} of {near.compared}",
                      style="bold" if near.matches else "")  # fmt: skip
    if not d.conforms and d.specification > 1:
        table.add_row("(none: the specification)", _number(d.specification), "", style="dim")
    return table


def _name(near: Near) -> Text:
    text = Text(near.name)
    if near.derivatives:
        text.append(f", derivatives {near.derivatives}", style="dim")
    return text


def _departures_table(d: Diagnosis) -> Table:
    """One row for each kind of tensor, with its worst layer."""
    kinds: dict[str, list[Departure]] = {}
    for one in d.departures:
        kinds.setdefault(re.sub(r"layers\.\d+", "layers.*", _shown(one)), []).append(one)
    table = _table(("departs", ""), ("error", "right"), ("bound", "right"), ("it is", ""))
    chosen = _telling(kinds)
    for shown, layers in ((name, kinds[name]) for name in kinds if name in chosen):
        worst = max(layers, key=lambda one: one.error / one.bound if one.bound else 0.0)
        patterns = {one.pattern for one in layers}
        table.add_row(
            shown if len(layers) > 1 else _shown(worst), f"{worst.error:.1e}",
            f"{worst.bound:.1e}", patterns.pop() if len(patterns) == 1 else "",
        )  # fmt: skip
    if (more := len(kinds) - KINDS_SHOWN) > 0:
        table.add_row(f"... and {more} more", "", "", "", style="dim")
    return table


def _telling(kinds: Mapping[str, Sequence[Departure]]) -> set[str]:
    """The rows that say most: the first, then those of a pattern, the rarest pattern first."""
    patterns = {name: layers[0].pattern for name, layers in kinds.items()}
    count = Counter(patterns.values())
    first = next(iter(kinds), "")
    order = sorted(kinds, key=lambda n: (n != first, not patterns[n], count[patterns[n]]))
    return set(order[:KINDS_SHOWN])


def _shown(departure: Departure) -> str:
    name = departure.tensor.replace("encoder.layers.", "layers.")
    return f"d {name}" if departure.kind == "gradient" else name


def _number(value: float) -> str:
    return f"{value:.2g}" if value < 100 else f"{value:.0e}"
