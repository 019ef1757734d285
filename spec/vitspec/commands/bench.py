"""`vitspec bench`: how fast the specification is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

import vitspec
from vitspec import bench as benchmark
from vitspec.bench import Timing
from vitspec.commands.common import USAGE, console, fail, progress, require_writable


def bench(
    repetitions: Annotated[int, typer.Option(min=1, help="Repetitions; the best counts.")] = 8,
    family: Annotated[
        str, typer.Option(help="vit (the Lean mirror's), or vision-transformer (practical).")
    ] = "vit",
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
) -> None:
    """Time ViT-Base/16, forward and backward, against this machine's matrix product."""
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


# ---- showing -----------------------------------------------------------------------------------

TITLES = {"vit": "ViT-Base/16", "vision-transformer": "ViT-Base/16 (practical family)"}
"""What the tables call a family."""


def bench_tables(timings: Sequence[Timing], family: str = "vit") -> list[Table]:
    """The passes against their ceiling, and where the forward's time goes."""
    passes = Table(title=f"{TITLES[family]}, 3 x 224 x 224, one image", title_justify="left")
    passes.add_column("pass")
    headings = (
        "ms",
        "kernel ms",
        "useful GFLOP",
        "GFLOP/s",
        "ceiling GFLOP/s",
        "fraction",
        "peak MB",
    )
    for heading in headings:
        passes.add_column(heading, justify="right")
    parts = Table(title="where the forward's time goes, in ms", title_justify="left")
    parts.add_column("precision")
    for name in timings[0].parts:
        parts.add_column(name, justify="right")
    for timing in timings:
        for one in timing.passes:
            passes.add_row(
                f"{one.name} {timing.dtype}",
                f"{one.seconds * 1e3:.0f}",
                f"{one.kernel_seconds * 1e3:.0f}",
                f"{one.gflop:.1f}",
                f"{one.gflop / one.seconds:.0f}",
                f"{one.gflop / one.ceiling_seconds:.0f}",
                f"{one.fraction:.2f}",
                f"{timing.peak_bytes / 1e6:.0f}",
            )
        parts.add_row(timing.dtype, *[f"{s * 1e3:.1f}" for s in timing.parts.values()])
    return [passes, parts]


def bench_json(timings: Sequence[Timing], family: str = "vit") -> dict[str, Any]:
    """The timings as JSON-serialisable data."""
    from vitspec.testing.results import environment

    return {
        "schema": "vitspec-bench/1",
        "vitspec": vitspec.__version__,
        "environment": environment(),
        "family": family,
        "timings": [
            asdict(t) | {"fractions": {one.name: one.fraction for one in t.passes}} for t in timings
        ],
    }
