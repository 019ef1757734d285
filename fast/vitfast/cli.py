"""The command `vitfast`.

Exit codes, as of `vitspec`: 0 done, 1 a check has failed, 2 wrong usage, 3 could not be run.
"""

from __future__ import annotations

try:
    import rich  # noqa: F401 - the commands print with it
    import typer  # noqa: F401
except ImportError as error:
    raise SystemExit(
        f"the command needs {error.name}: python -m pip install 'vitspec[fast]'"
    ) from error

from vitfast.commands import backends, bench, memory, plan, pretrained, train
from vitspec.commands.common import command_line

app = command_line(
    "vitfast",
    "The Vision Transformer of vitspec, fast: JAX, Flax NNX and Tokamax.",
    backends.backends,
    bench.bench,
    memory.memory,
    plan.plan,
    pretrained.classify,
    pretrained.inspect,
    pretrained.attention,
    pretrained.convert,
    train.train,
)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
