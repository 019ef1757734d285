"""The command `vitspec`.

Exit codes: 0 conforms (or done), 1 does not conform, 2 wrong usage, 3 the implementation could not
be run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

try:
    import typer
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
except ImportError as error:  # the core installs neither
    raise SystemExit(
        f"the command needs {error.name}: python -m pip install 'vitspec[testing]'"
    ) from error

import vitspec

app = typer.Typer(
    help="The Vision Transformer as an executable specification.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()


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


@app.command()
def check(
    names: Annotated[
        list[str] | None, typer.Argument(help="Installed implementations; all, if none is named.")
    ] = None,
    cases: Annotated[
        int, typer.Option(min=0, help="Small random configurations for each implementation.")
    ] = 100,
    photograph: Annotated[
        bool, typer.Option(help="Check on the photograph with ViT-Base/16 at full size.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="What everything is drawn from.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Write the report to this file.")] = None,
) -> None:
    """Check implementations against the specification: logits and every gradient.

    On a photograph with ViT-Base/16 at full size, and on small random configurations.
    """
    from vitspec.testing import check as checks
    from vitspec.testing import implementations
    from vitspec.testing.report import Report, print_report, write_json

    _require_directory(json)
    if not cases and not photograph:
        _fail(2, "nothing to check: give --cases or --photograph")
    names = names or implementations.names()
    if not names:
        _fail(3, "no implementation is installed; for ours: python -m pip install 'vitspec[fast]'")
    report = Report(seed)
    start = time.monotonic()
    try:
        loaded = {name: implementations.load(name) for name in dict.fromkeys(names)}
        for name, one in loaded.items():
            info = {"version": one.version, "spec": one.spec, "dtype": one.dtype}
            report.implementations[name] = info
        workers = min(_cores(), 8)
        with _progress() as progress:
            pictures = progress.add_task(
                "photograph, ViT-Base/16", total=len(loaded), visible=photograph
            )
            small = progress.add_task(
                "small configurations", total=cases * len(loaded), visible=cases > 0
            )
            for result in checks.check_installed(list(loaded), seed, cases, photograph, workers):
                if isinstance(result, checks.PhotographResult):
                    report.photograph[result.implementation] = result.grades
                    progress.update(pictures, advance=1)
                else:
                    report.cases += result
                    progress.update(small, advance=len(result))
    except implementations.AdapterError as error:
        _fail(3, str(error))
    except ImportError as error:
        _fail(3, f"{error}; the check needs: python -m pip install 'vitspec[testing]'")
    report.photograph = dict(sorted(report.photograph.items()))
    report.cases.sort(key=lambda r: (r.implementation, r.case.seed))
    if json is not None:
        write_json(json, report.to_json())
    print_report(report, console)
    console.print(f"{time.monotonic() - start:.0f} s", style="dim", highlight=False)
    raise typer.Exit(0 if report.conforms else 1)


@app.command()
def bench(
    repetitions: Annotated[int, typer.Option(min=1, help="Repetitions; the best counts.")] = 8,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
) -> None:
    """Time ViT-Base/16, forward and backward, against this machine's matrix product."""
    from vitspec.testing import bench as benchmark
    from vitspec.testing.report import bench_json, bench_tables, write_json

    _require_directory(json)
    timings = []
    with _progress() as progress:
        task = progress.add_task("ViT-Base/16", total=2)
        for dtype in ("float64", "float32"):
            progress.update(task, description=f"ViT-Base/16 in {dtype}")
            timings.append(benchmark.measure_in_fresh_process(dtype, repetitions))
            progress.update(task, advance=1)
    for table in bench_tables(timings):
        console.print(table)
    if json is not None:
        write_json(json, bench_json(timings))


@app.command()
def deviations() -> None:
    """Print the figures of docs/deviations.md: where TorchLean departs from itself."""
    from vitspec.testing.upstream_figures import deviation_report

    console.print(deviation_report(), highlight=False, soft_wrap=True, markup=False)


@contextmanager
def _progress() -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield progress


def _cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _require_directory(file: Path | None) -> None:
    if file is None:
        return
    if file.is_dir():
        _fail(2, f"--json {file}: is a directory; give a file")
    if not os.access(file.resolve().parent, os.W_OK):
        _fail(2, f"--json {file}: its directory does not exist or cannot be written to")


def _fail(code: int, message: str) -> NoReturn:
    Console(stderr=True).print(f"vitspec: {message}", highlight=False, soft_wrap=True)
    raise typer.Exit(code)
