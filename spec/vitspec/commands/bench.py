"""`vitspec bench`: how fast the specification is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitspec.commands.common import USAGE, console, fail, progress, require_writable


def bench(
    repetitions: Annotated[int, typer.Option(min=1, help="Repetitions; the best counts.")] = 8,
    family: Annotated[
        str, typer.Option(help="vit (the Lean mirror's), or vision-transformer (practical).")
    ] = "vit",
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
) -> None:
    """Time ViT-Base/16, forward and backward, against this machine's matrix product."""
    from vitspec.testing import bench as benchmark
    from vitspec.testing.bench_report import bench_json, bench_tables
    from vitspec.testing.report import write_json

    require_writable("--json", json)
    if family not in benchmark.FAMILIES:
        known = ", ".join(benchmark.FAMILIES)
        fail(USAGE, f"--family: expected one of {known}, got {family!r}")
    timings = []
    with progress() as display:
        task = display.add_task("ViT-Base/16", total=2)
        for dtype in ("float64", "float32"):
            display.update(task, description=f"ViT-Base/16 in {dtype}")
            timings.append(benchmark.measure_in_fresh_process(dtype, repetitions, family))
            display.update(task, advance=1)
    for table in bench_tables(timings, family):
        console.print(table)
    if json is not None:
        write_json(json, bench_json(timings, family))
