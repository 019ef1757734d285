"""`vitfast bench`: how fast vitfast is beside what one would use instead."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from vitfast.bench import report
from vitfast.bench.apart import default_device, in_fresh_process
from vitfast.bench.cases import FAMILIES, FORWARD, GRADIENT, SIZES, TRAIN_STEP, Case
from vitfast.bench.measure import measure, steps
from vitfast.bench.results import CaseResult, result_of, to_json
from vitfast.bench.rows import PEERS, choose
from vitfast.bench.sequences import implementations, measure_apart
from vitspec.commands.common import BROKEN, USAGE, console, cores, fail, progress, require_writable
from vitspec.testing.report import write_atomically, write_json

SIZES_HELP = "tiny, small, base, large or toy; may be repeated. tiny, small and base by default."


def bench(
    size: Annotated[list[str] | None, typer.Option(help=SIZES_HELP)] = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="May be repeated. 1 and 8 by default.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16, of everything.")] = "float32",
    family: Annotated[
        list[str] | None,
        typer.Option(help="post-norm or pre-norm: which function. Both by default."),
    ] = None,
    peers: Annotated[
        list[str] | None, typer.Option(help="A peer; may be repeated. All by default.")
    ] = None,
    repetitions: Annotated[int, typer.Option(min=1, help="Visits of each row, at most.")] = 7,
    seconds: Annotated[
        float, typer.Option(min=0, help="After so long, no further repetition of a table begins.")
    ] = 90.0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of every row, on a CPU. All cores by default.")
    ] = None,
    keep_memory: Annotated[
        bool,
        typer.Option("--keep-memory", help="Every process keeps what it frees, on Linux."),
    ] = False,
    train_step: Annotated[
        bool, typer.Option("--train-step", help="Measure training steps in bfloat16 instead.")
    ] = False,
    sequence: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Measure attention over so many tokens instead; may be repeated."),
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables to this file.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
) -> None:
    """Time vitfast beside its peers: the same function, the same inputs, in turn.

    Exit codes: 0 measured, 2 wrong usage, 3 vitfast could not be run. A peer that is missing or
    fails is a line in the table.
    """
    sizes = _known("--size", size or ["tiny", "small", "base"], SIZES)
    families = _known("--family", family or FAMILIES, FAMILIES)
    _known("--peers", peers or [], PEERS)
    _known("--dtype", [dtype], ("float32", "bfloat16"))
    if train_step and sequence:
        fail(USAGE, "--train-step and --sequence measure different things; give one of them")
    require_writable("--markdown", markdown)
    require_writable("--json", json)
    try:
        device = in_fresh_process(default_device)
    except Exception as error:  # whatever JAX raises for its drivers
        fail(BROKEN, f"JAX does not start: {error}")
    device["threads"] = (threads or cores()) if device["platform"] == "cpu" else None

    device["keep_memory"] = keep_memory

    tables: list[CaseResult] = []
    attention: list[dict[str, Any]] = []
    if sequence:
        attention = _attention(sizes[0], sequence, dtype)
        sheets = [report.attention_sheet(attention)]
    else:
        passes = (TRAIN_STEP,) if train_step else (FORWARD, GRADIENT)
        cases = [
            Case(one, name, images, "bfloat16" if train_step else dtype, passes)
            for one in (FAMILIES[:1] if train_step else families)
            for name in sizes
            for images in batch or [1, 8]
        ]
        tables = _tables(cases, peers, device, repetitions, seconds)
        sheets = [sheet for table in tables for sheet in report.case_sheets(table)]
        sheets.append(report.summary_sheet(tables))
    for sheet in sheets:
        console.print(sheet.rich())
    if markdown is not None:
        write_atomically(markdown, report.markdown(sheets, device))
    if json is not None:
        write_json(json, to_json(tables, attention, device))
    for table in tables:
        for outcome in table.ours:
            if outcome.status != "measured":
                fail(BROKEN, f"{outcome.row.name} could not be run: {outcome.detail}")


def _known(option: str, given: Sequence[Any], known: Collection[Any]) -> Sequence[Any]:
    """`given`, if all of them are known."""
    for name in given:
        if name not in known:
            fail(USAGE, f"{option} {name}: expected one of {', '.join(known)}")
    return given


def _tables(
    cases: Sequence[Case],
    peers: Sequence[str] | None,
    device: dict[str, Any],
    repetitions: int,
    seconds: float,
) -> list[CaseResult]:
    platform = device["platform"]
    plan = [(case, choose(case.family, case.passes, platform, peers)) for case in cases]
    tables = []
    with progress() as display:
        total = sum(steps(rows, repetitions) for _, rows in plan)
        task = display.add_task("", total=total)
        for case, rows in plan:

            def step(doing: str, title: str = case.title) -> None:
                display.update(task, advance=1, description=f"{title}: {doing}")

            measured = measure(
                case,
                rows,
                device=platform,
                threads=device["threads"],
                keep_memory=device["keep_memory"],
                repetitions=repetitions,
                seconds=seconds,
                step=step,
            )
            tables.append(result_of(case, measured, platform))
    return tables


def _attention(size: str, sequence: Sequence[int], dtype: str) -> list[dict[str, Any]]:
    names = in_fresh_process(implementations)
    rows = []
    with progress() as display:
        task = display.add_task("", total=len(names) * len(sequence))
        for tokens in sequence:
            for name in names:
                display.update(task, description=f"{name}, {tokens} tokens")
                rows.append(measure_apart(size, tokens, name, dtype))
                display.update(task, advance=1)
    return rows
