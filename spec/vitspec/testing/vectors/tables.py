"""What there is, and what it sees, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitspec.testing.catalogue import CATALOGUE
from vitspec.testing.vectors import folder
from vitspec.testing.vectors.folder import Vector

if TYPE_CHECKING:
    from rich.table import Table


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
    """Markdown: what ordinary whole models show in float64 and hide in `dtype`, and what sees it.

    A deviation is seen where it lies beyond the bound. Ordinary are the models of `basic`.
    """
    graded = [v for v in map(folder.load, folder.ids()) if v.kind != "ill-formed"]
    ordinary = [v for v in graded if v.kind == "model" and v.case["category"] == "basic"]
    shown = [d.name for d in CATALOGUE if _best(d.name, "float64", ordinary)]
    hidden = [name for name in shown if not _best(name, dtype, ordinary)]
    lines = [
        f"| hidden in {dtype}: {len(hidden)} of {len(shown)} | seen by (times over the bound) |",
        "| --- | --- |",
    ]
    for name in hidden:
        best = _best(name, dtype, graded)[:3]
        seen = ", ".join(f"`{case_id}` ({margin:g})" for margin, case_id in best)
        lines.append(f"| [{name}](catalogue.md#{name}) | {seen or 'none'} |")
    return "\n".join(lines) + "\n"


def _best(name: str, dtype: str, vectors: list[Vector]) -> list[tuple[float, str]]:
    """The vectors that see a deviation, with its margin there, the largest first."""
    margins = [(v.case["kill_margin"].get(dtype, {}).get(name, 0.0), v.id) for v in vectors]
    return sorted((found for found in margins if found[0] > 1), reverse=True)
