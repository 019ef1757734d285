"""What the commands share: the console, progress, exits, where files go."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

CONFORMS, MISMATCH, USAGE, BROKEN = 0, 1, 2, 3
"""Exit codes: conforms (or done); does not; wrong usage; the implementation could not be run."""

console = Console()


@contextmanager
def progress() -> Iterator[Progress]:
    """A progress display on standard error, which disappears when done."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as display:
        yield display


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def require_writable(option: str, file: Path | None) -> None:
    """Fail before any work if `file`, given as `option`, could not be written."""
    if file is None:
        return
    if file.is_dir():
        fail(USAGE, f"{option} {file}: is a directory; give a file")
    if not os.access(file.resolve().parent, os.W_OK):
        fail(USAGE, f"{option} {file}: its directory does not exist or cannot be written to")


def fail(code: int, message: str) -> NoReturn:
    """Print one line to standard error and exit."""
    Console(stderr=True).print(f"vitspec: {message}", highlight=False, soft_wrap=True, markup=False)
    raise typer.Exit(code)
