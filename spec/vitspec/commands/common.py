"""What the commands share: how they are put together, the console, progress, exits, files."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import vitspec
from vitspec.errors import InvalidParameters, NotWellFormed

CONFORMS, MISMATCH, USAGE, BROKEN = 0, 1, 2, 3
"""Exit codes: conforms (or done); does not; wrong usage; the implementation could not be run."""

console = Console()

_program = ContextVar("_program", default="vitspec")


def command_line(name: str, about: str, *commands: Callable[..., Any]) -> typer.Typer:
    """The program `name` with these commands, and `--version`."""
    app = typer.Typer(
        name=name,
        help=about,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )

    @app.callback(invoke_without_command=True)
    def root(
        version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    ) -> None:
        _program.set(name)
        if version:
            console.print(f"{name} {vitspec.__version__}", highlight=False)
            raise typer.Exit

    for command in commands:
        app.command()(command)
    return app


@contextmanager
def progress() -> Iterator[Progress]:
    """A progress display on standard error, which disappears when done."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as display:
        yield display


@contextmanager
def running_implementations() -> Iterator[None]:
    """Leave none of their processes behind; and a fault of ours is no verdict, but exit code 3."""
    from vitspec.testing.adapter_errors import AdapterError
    from vitspec.testing.isolation.remote import nothing_left_behind

    try:
        with nothing_left_behind():
            yield
    except (AdapterError, typer.Exit):
        raise
    except Exception as error:
        if not isinstance(error, InvalidParameters | NotWellFormed):
            traceback.print_exc()
        fail(BROKEN, f"there is no verdict: {type(error).__name__}: {error}")


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
    """Print one line to standard error, which begins with the program's name, and exit."""
    text = f"{_program.get()}: {message}"
    Console(stderr=True).print(text, highlight=False, soft_wrap=True, markup=False)
    raise typer.Exit(code)
