"""`vitspec diagnose`: which known mistake an implementation's numbers look like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitspec.commands.common import (
    BROKEN,
    CONFORMS,
    MISMATCH,
    console,
    fail,
    progress,
    require_writable,
    running_implementations,
)  # fmt: skip


def diagnose(
    target: Annotated[
        str,
        typer.Argument(
            help="An installed name, module:attribute, a file adapter.py[:attribute], or "
            "planted:MISTAKE."
        ),
    ],
    dtype: Annotated[
        str | None, typer.Option(help="The precision, if the implementation has several.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="What everything is drawn from.")] = 0,
    timeout: Annotated[
        float,
        typer.Option(min=0.1, help="Seconds for one answer, after which it is taken to hang."),
    ] = 300.0,
    json: Annotated[Path | None, typer.Option(help="Write the diagnosis to this file.")] = None,
) -> None:
    """Name the known mistakes that an implementation's numbers look like, nearest first.

    Exit codes: 0 nothing departs, 1 something does, 2 wrong usage, 3 it could not be run.
    """
    require_writable("--json", json)
    try:
        from vitspec.testing.adapter_errors import AdapterError
        from vitspec.testing.diagnosis import diagnosis_tables
        from vitspec.testing.processes import diagnose_target
        from vitspec.testing.report import write_json
    except ImportError as error:
        fail(BROKEN, f"{error}; this needs: python -m pip install 'vitspec[testing]'")
    try:
        with running_implementations(), progress() as display:
            display.add_task(f"diagnosing {target}", total=None)
            found = diagnose_target(target, dtype, seed, timeout)
    except AdapterError as error:
        fail(BROKEN, str(error))
    for table in diagnosis_tables(found):
        console.print(table)
    if json is not None:
        write_json(json, found.to_json())
    raise typer.Exit(CONFORMS if found.conforms else MISMATCH)
