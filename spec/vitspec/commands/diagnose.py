"""`vitspec diagnose`: which known mistake an implementation's numbers look like."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from vitspec.commands.check import takes_settings
from vitspec.commands.common import (
    BROKEN,
    CONFORMS,
    MISMATCH,
    USAGE,
    console,
    fail,
    progress,
    require_writable,
    running_implementations,
)  # fmt: skip
from vitspec.testing.settings import HOW

PLACES = (
    "photograph", "case", "interpolation", "point", "law", "vector", "identities", "laws",
    "config", "dtype", "seed",
)  # fmt: skip
"""The settings of a check that say where it saw something depart."""


@takes_settings(*PLACES, photograph=False, laws=1)
def diagnose(
    target: Annotated[
        str,
        typer.Argument(
            help="An installed name, module:attribute, a file adapter.py[:attribute], or "
            "planted:MISTAKE."
        ),
    ],
    *,
    settings: Any,
    timeout: Annotated[
        float,
        typer.Option(
            min=0.1,
            help="Seconds for one answer, after which it is taken to hang.",
            rich_help_panel=HOW,
        ),
    ] = 300.0,
    json: Annotated[Path | None, typer.Option(help="Write the diagnosis to this file.")] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write the departing inputs and the truth into this folder, with a script that "
            "runs the implementation on them.",
        ),
    ] = None,
) -> None:
    """Name the known mistakes that an implementation's numbers look like, nearest first.

    At the place where a check saw it depart, if the line that the check prints is given; else at a
    few small models that tell mistakes apart.

    Exit codes: 0 nothing departs, 1 something does, 2 wrong usage, 3 it could not be run.
    """
    require_writable("--json", json)
    if save is not None and save.exists() and not save.is_dir():
        fail(USAGE, f"--save {save}: expected a folder, or a name that is free")
    try:
        from vitspec.testing.adapter_errors import AdapterError
        from vitspec.testing.diagnosis import diagnosis_tables
        from vitspec.testing.processes import diagnose_target
        from vitspec.testing.report import write_json
    except ImportError as error:
        fail(BROKEN, f"{error}; this needs: python -m pip install 'vitspec[testing]'")
    place = replace(
        settings, cases=0, interpolations=0, degenerate=False, vectors=False, ill_formed=False,
        laws=settings.laws if settings.identities else 0,
    )  # fmt: skip
    try:
        with running_implementations(), progress() as display:
            display.add_task(f"diagnosing {target}", total=None)
            found = diagnose_target(target, place, timeout, save)
    except AdapterError as error:
        fail(BROKEN, str(error))
    for table in diagnosis_tables(found):
        console.print(table)
    if save is not None:
        console.print(f"The point is in {save}: python {save}/run.py", soft_wrap=True)
    if json is not None:
        write_json(json, found.to_json())
    raise typer.Exit(CONFORMS if found.conforms else MISMATCH)
