"""`vitspec tolerances`: the table that justifies the constants of the bound."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitspec.commands.common import console, progress, require_writable


def tolerances(
    seeds: Annotated[int, typer.Option(min=1, help="Random cases for each variant.")] = 20,
    dtype: Annotated[
        list[str] | None, typer.Option(help="A precision; may be repeated. All by default.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Renew the table on this page, docs/tolerances.md.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
) -> None:
    """Measure correct variants and planted mistakes against the bound, in every precision."""
    from vitspec.testing import calibration
    from vitspec.testing.report import write_atomically, write_json

    require_writable("--json", json)
    require_writable("--markdown", markdown)
    with progress() as display:
        task = display.add_task("measuring", total=None)

        def step(done: int, total: int, name: str) -> None:
            display.update(task, completed=done, total=total, description=name)

        figures = calibration.measure(dtype, seeds, step)
    for table in calibration.tables(figures):
        console.print(table)
    if markdown is not None:
        page = markdown.read_text(encoding="utf-8") if markdown.exists() else ""
        write_atomically(markdown, calibration.renewed(page, figures))
    if json is not None:
        write_json(json, calibration.to_json(figures))
