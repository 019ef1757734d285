"""`vitspec vectors`: test vectors for a program in any language."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitspec.commands.common import (
    CONFORMS,
    MISMATCH,
    USAGE,
    console,
    fail,
    progress,
    require_writable,
)  # fmt: skip

app = typer.Typer(help="Test vectors for a program in any language.", no_args_is_help=True)
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder.")]


@app.command("list")
def list_() -> None:
    """List the test vectors."""
    from vitspec.testing import vectors

    console.print(vectors.cases_table())


@app.command()
def export(directory: Folder) -> None:
    """Write the inputs of every test vector, for your program to answer."""
    from vitspec.testing import vectors

    try:
        count = vectors.export(directory)
    except (vectors.VectorError, OSError) as error:
        fail(USAGE, str(error))
    console.print(
        f"{count} cases in {directory}. Your program writes DIR/<case>/result.safetensors, or\n"
        "DIR/<case>/rejected.txt for an ill-formed configuration; then: "
        f"vitspec vectors grade {directory}",
        highlight=False, soft_wrap=True, markup=False,
    )  # fmt: skip


@app.command()
def grade(
    directory: Folder,
    dtype: Annotated[str, typer.Option(help="The precision your program computes in.")] = "float32",
    json: Annotated[Path | None, typer.Option(help="Write the report to this file.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML to this file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write one page with a picture.")] = None,
) -> None:
    """Grade what your program wrote, against the truth in this package.

    Exit codes: 0 conforms, 1 does not, 2 wrong usage or a damaged folder, 3 nothing to grade.
    """
    from vitspec.testing import report, vectors

    for option, file in {"--json": json, "--junit": junit, "--html": html}.items():
        require_writable(option, file)
    try:
        graded = vectors.grade_report(directory, dtype)
    except vectors.VectorError as error:
        fail(USAGE, str(error))
    if json is not None:
        report.write_json(json, report.to_json([graded]))
    if junit is not None:
        report.write_atomically(junit, report.to_junit([graded]))
    if html is not None:
        report.write_atomically(html, report.to_html([graded]))
    report.print_reports([graded], console)
    raise typer.Exit(graded.exit_code)


@app.command()
def verify() -> None:
    """Check the installed test vectors against their checksums and schema."""
    from vitspec.testing import vectors

    try:
        count = vectors.verify()
    except vectors.VectorError as error:
        fail(MISMATCH, str(error))
    console.print(f"{count} cases are as released", highlight=False)
    raise typer.Exit(CONFORMS)


@app.command()
def build(
    directory: Folder,
    check: Annotated[
        bool, typer.Option("--check", help="Compare with DIR, byte by byte, instead of writing.")
    ] = False,
) -> None:
    """Make the test vectors anew, from real balls: the same bytes on every machine."""
    from vitspec.testing import vectors

    with progress() as display:
        task = display.add_task("building", total=None)

        def step(done: int, total: int, name: str) -> None:
            display.update(task, completed=done, total=total, description=name)

        try:
            changed = vectors.build(directory, check=check, step=step)
        except (vectors.VectorError, ImportError, OSError) as error:
            fail(USAGE, str(error))
    if changed:
        verb = "differ" if check else "changed"
        console.print(f"{len(changed)} files {verb}: {', '.join(changed[:10])}", highlight=False)
    raise typer.Exit(MISMATCH if check and changed else CONFORMS)
