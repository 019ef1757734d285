"""What there is, and what it sees, as tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vitspec.testing.catalogue import CATALOGUE, Deviation
from vitspec.testing.vectors import folder
from vitspec.testing.vectors.folder import Vector

if TYPE_CHECKING:
    from rich.table import Table

ORDINARY = "basic"
"""The category of models whose inputs are nothing special."""


def cases_table() -> Table:
    """The table of all cases, for a terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table("case", "of", "kills", box=None, pad_edge=False)
    table.columns[2].justify = "right"
    for case_id in folder.ids():
        vector = folder.load(case_id)
        what = vector.case.get("layer") or vector.case["spec"]
        kills = "-" if vector.kind == "ill-formed" else str(len(vector.case["flags"]))
        table.add_row(Text(case_id), what, kills)
        table.add_row(Text(f"  {vector.case['description']}", style="dim"))
    return table


def low_precision_table(dtype: str = "bfloat16") -> str:
    """Markdown: the deviations that ordinary whole models hide in a precision, and what sees them.

    A deviation is seen where it lies beyond the bound. It is hidden if no ordinary model (a case of
    the category `basic`) sees it.
    """
    graded = [v for v in map(folder.load, folder.ids()) if v.kind != "ill-formed"]
    hidden = [d for d in CATALOGUE if d.visible_in_model and not any(_ordinary(d, dtype, graded))]
    visible = sum(d.visible_in_model for d in CATALOGUE)
    lines = [
        f"Ordinary models in {dtype} see {visible - len(hidden)} of {visible} deviations. The"
        " others, with the vectors that see them and how far beyond the bound:",
        "",
        f"| hidden in {dtype} | seen by |",
        "| --- | --- |",
    ]
    for deviation in hidden:
        seen = [(v.case["kill_margin"].get(dtype, {}).get(deviation.name, 0), v.id) for v in graded]
        best = sorted((margin, case_id) for margin, case_id in seen if margin > 1)[::-1][:3]
        shown = ", ".join(f"`{case_id}` ({margin:g})" for margin, case_id in best)
        lines.append(f"| [{deviation.name}](catalogue.md#{deviation.name}) | {shown or 'none'} |")
    return "\n".join(lines) + "\n"


def _ordinary(deviation: Deviation, dtype: str, graded: list[Vector]) -> Iterator[bool]:
    for vector in graded:
        if vector.kind == "model" and vector.case["category"] == ORDINARY:
            yield vector.case["kill_margin"].get(dtype, {}).get(deviation.name, 0) > 1
