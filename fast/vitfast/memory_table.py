"""The figures of `vitfast.memory`: tables for people, JSON for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

import vitspec
from vitfast.memory import Footprint, Memory, Training
from vitspec.testing.results import environment


class Measured(NamedTuple):
    """One model on several meshes, of which there is at least one.

    Attributes:
        name: what the user calls the model.
        training: what it is, and how it is trained.
        memories: its footprint on each mesh.
    """

    name: str
    training: Training
    memories: Sequence[Memory]

    @property
    def title(self) -> str:
        """The model in words."""
        how = f"{self.training.optimizer}, {self.training.param_dtype}"
        if self.training.dtype is not None:
            how += f", computed in {self.training.dtype}"
        if self.training.batch is not None:
            how += f", batch {self.training.batch}" + self.training.remat * " with remat"
        return f"{self.name}: {self.memories[0].parameter_count:,} parameters, {how}"


def to_table(measured: Measured) -> Table:
    """One row for a device alone, and one for each mesh; 80 columns wide."""
    headings, rows = _cells(measured)
    table = Table(
        title=measured.title,
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=0,
        collapse_padding=True,
    )
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left", no_wrap=i > 0)
    for row in rows:
        table.add_row(*row)
    return table


def to_markdown(every: Sequence[Measured]) -> str:
    """The same as Markdown, one table for each model."""
    parts = []
    for measured in every:
        headings, rows = _cells(measured)
        ruler = ["---", *["---:"] * (len(headings) - 1)]
        lines = (f"| {' | '.join(line)} |\n" for line in [headings, ruler, *rows])
        parts.append(f"{measured.title}\n\n{''.join(lines)}")
    return "\n".join(parts)


def to_json(every: Sequence[Measured]) -> dict[str, Any]:
    """The same as JSON-serialisable data, in bytes."""
    return {
        "schema": "vitfast-memory/1",
        "vitspec": vitspec.__version__,
        "environment": environment(),
        "models": [
            {
                "name": measured.name,
                "training": asdict(measured.training),
                "meshes": [asdict(one) for one in measured.memories],
            }
            for measured in every
        ],
    }


def _cells(measured: Measured) -> tuple[list[str], list[list[str]]]:
    """Headings and rows."""
    whole = measured.memories[0].unsharded
    headings = ["on each device of", "parameters", "gradients", "moments"]
    headings += ["activations"] if whole.activations is not None else []
    rows = [_row("one device alone", whole, whole)]
    rows += [_row(_shown(one), one.per_device, whole) for one in measured.memories]
    return [*headings, "total", "part"], rows


def _row(label: str, here: Footprint, whole: Footprint) -> list[str]:
    parts = [here.parameters, here.gradients, here.optimizer_state, here.activations, here.total]
    figures = [_bytes(number) for number in parts if number is not None]
    return [label, *figures, f"1/{whole.total / here.total:.1f}"]


def _shown(memory: Memory) -> str:
    axes = (f"{axis}={size}" for axis, size in memory.mesh.items() if size > 1)
    return ",".join(axes) or "a mesh of one"


def _bytes(number: int) -> str:
    """In binary units, to three digits: 1.13 GiB."""
    step = min(3, int(math.log2(max(number, 1)) // 10))
    scaled = number / 1024**step
    digits = 0 if step == 0 or scaled >= 100 else 1 if scaled >= 10 else 2
    return f"{scaled:.{digits}f} {('B', 'KiB', 'MiB', 'GiB')[step]}"
