"""The command `vitspec`.

Exit codes: 0 conforms (or done), 1 does not conform, 2 wrong usage, 3 the implementation could not
be run.
"""

from __future__ import annotations

from typing import Annotated

try:
    import rich  # noqa: F401 - the commands print with it
    import typer
except ImportError as error:  # the core installs neither
    raise SystemExit(
        f"the command needs {error.name}: python -m pip install 'vitspec[testing]'"
    ) from error

import vitspec
from vitspec.commands import bench, check, diagnose, ledgers, shapes, tolerances, vectors
from vitspec.commands.common import console

app = typer.Typer(
    help="The Vision Transformer as an executable specification.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(check.check)
app.command()(diagnose.diagnose)
app.add_typer(vectors.app, name="vectors")
app.command()(shapes.shapes)
app.command()(ledgers.catalogue)
app.command()(ledgers.deviations)
app.command()(tolerances.tolerances)
app.command()(bench.bench)


def main() -> None:
    """Run the command line."""
    app()


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """The Vision Transformer as an executable specification."""
    if version:
        console.print(f"vitspec {vitspec.__version__}", highlight=False)
        raise typer.Exit
