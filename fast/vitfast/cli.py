"""The command `vitfast`.

Exit codes, as of `vitspec`: 0 done, 2 wrong usage, 3 vitfast could not be run.
"""

from __future__ import annotations

from typing import Annotated

try:
    import rich  # noqa: F401 - the commands print with it
    import typer
except ImportError as error:
    raise SystemExit(
        f"the command needs {error.name}: python -m pip install 'vitspec[fast]'"
    ) from error

import vitspec
from vitfast.commands import backends, bench, memory, pretrained
from vitspec.commands.common import console

app = typer.Typer(
    help="The Vision Transformer of vitspec, fast: JAX, Flax NNX and Tokamax.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(backends.backends)
app.command()(bench.bench)
app.command()(memory.memory)
for command in (
    pretrained.classify,
    pretrained.inspect,
    pretrained.attention,
    pretrained.convert,
):
    app.command()(command)


def main() -> None:
    """Run the command line."""
    app()


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """The Vision Transformer of vitspec, fast: JAX, Flax NNX and Tokamax."""
    if version:
        console.print(f"vitfast {vitspec.__version__}", highlight=False)
        raise typer.Exit


if __name__ == "__main__":
    main()
