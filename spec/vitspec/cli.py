"""The command `vitspec`.

Exit codes: 0 conforms (or done), 1 does not conform, 2 wrong usage, 3 the implementation could not
be run.
"""

from __future__ import annotations

try:
    import rich  # noqa: F401 - the commands print with it
    import typer  # noqa: F401
except ImportError as error:  # the core installs neither
    raise SystemExit(
        f"the command needs {error.name}: python -m pip install 'vitspec[testing]'"
    ) from error

from vitspec.commands import (
    bench,
    check,
    diagnose,
    ledgers,
    peers,
    shapes,
    tolerances,
    vectors,
)
from vitspec.commands.common import command_line

app = command_line(
    "vitspec",
    "The Vision Transformer as an executable specification.",
    check.check,
    diagnose.diagnose,
    peers.peers,
    shapes.shapes,
    ledgers.catalogue,
    ledgers.deviations,
    tolerances.tolerances,
    bench.bench,
)
app.add_typer(vectors.app, name="vectors")


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
