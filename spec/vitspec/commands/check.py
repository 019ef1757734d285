"""`vitspec check`: implementations against the specification."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitspec.commands.common import (
    BROKEN,
    MISMATCH,
    USAGE,
    console,
    cores,
    fail,
    progress,
    require_writable,
)  # fmt: skip

if TYPE_CHECKING:
    from vitspec.testing.kinds import Config
    from vitspec.testing.results import Report, Result
    from vitspec.testing.run import Job, Settings

_FILES = "Report files"
_WHAT = "What to check"
_HOW = "How"


def check(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TARGET]...",
            help="An installed name, module:attribute, a file adapter.py[:attribute], or "
            "planted:MISTAKE. All installed implementations, if none is named.",
        ),
    ] = None,
    cases: Annotated[
        int,
        typer.Option(min=0, help="Small random configurations each.", rich_help_panel=_WHAT),
    ] = 100,
    interpolations: Annotated[
        int,
        typer.Option(
            min=0,
            help="Small cases with images of another size, if it interpolates positions.",
            rich_help_panel=_WHAT,
        ),
    ] = 12,
    laws: Annotated[
        int,
        typer.Option(min=0, help="Small cases for the laws and identities.", rich_help_panel=_WHAT),
    ] = 4,
    photograph: Annotated[
        bool, typer.Option(help="The photograph, ViT-Base/16 at full size.", rich_help_panel=_WHAT)
    ] = True,
    vectors: Annotated[
        bool, typer.Option(help="The shipped test vectors.", rich_help_panel=_WHAT)
    ] = True,
    identities: Annotated[
        bool,
        typer.Option(
            "--identities",
            help="Only what needs no specification: works for any model.",
            rich_help_panel=_WHAT,
        ),
    ] = False,
    config: Annotated[
        str | None,
        typer.Option(
            help="Only this configuration: a JSON file, base, large, or key=value,...; of the "
            "practical family, PRESET,key=value,... (hf-vit-base, d2l, ...).",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(help="Only checks of this name; may have *.", rich_help_panel=_WHAT),
    ] = None,
    case: Annotated[
        int | None,
        typer.Option(min=0, help="Only the small case of this number.", rich_help_panel=_WHAT),
    ] = None,
    interpolation: Annotated[
        int | None,
        typer.Option(
            min=0, help="Only the images of another size of this number.", rich_help_panel=_WHAT
        ),
    ] = None,
    law: Annotated[
        int | None,
        typer.Option(min=0, help="Only the laws' case of this number.", rich_help_panel=_WHAT),
    ] = None,
    vector: Annotated[
        str | None, typer.Option(help="Only this test vector.", rich_help_panel=_WHAT)
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="The precision, if the implementation has several.", rich_help_panel=_HOW
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="What everything is drawn from.", rich_help_panel=_HOW)
    ] = 0,
    timeout: Annotated[
        float,
        typer.Option(
            min=0.1, help="Seconds without any result after which it hangs.", rich_help_panel=_HOW
        ),
    ] = 300.0,
    declared: Annotated[
        Path | None,
        typer.Option(help="TOML file of declared deviations.", rich_help_panel=_HOW),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="JSON.", rich_help_panel=_FILES)] = None,
    junit: Annotated[Path | None, typer.Option(help="JUnit XML.", rich_help_panel=_FILES)] = None,
    markdown: Annotated[Path | None, typer.Option(help="Markdown.", rich_help_panel=_FILES)] = None,
    html: Annotated[
        Path | None, typer.Option(help="One page, with a picture.", rich_help_panel=_FILES)
    ] = None,
) -> None:
    """Check implementations against the specification: logits and every gradient.

    On a photograph with ViT-Base/16 at full size, on small random configurations, and on the
    shipped test vectors; against laws; and that ill-formed configurations are refused.

    Exit codes: 0 conforms, 1 does not, 2 wrong usage, 3 the implementation could not be run.
    """
    files = {"--json": json, "--junit": junit, "--markdown": markdown, "--html": html}
    for option, file in files.items():
        require_writable(option, file)
    try:
        from vitspec.testing import implementations, report
        from vitspec.testing.declared import DeclarationError, apply, load
        from vitspec.testing.run import Settings
    except ImportError as error:
        fail(BROKEN, f"{error}; the check needs: python -m pip install 'vitspec[testing]'")
    jobs = _single_jobs(case, interpolation, law, vector)
    if vector is not None:
        only = only or "vector.*"
    settings = Settings(
        seed=seed,
        cases=cases,
        interpolations=interpolations,
        laws=laws,
        photograph=photograph,
        vectors=vectors,
        identities=identities,
        dtype=dtype,
        config=_config(config),
        only=only,
        jobs=jobs,
        vector=vector,
    )
    if not settings.plan():
        fail(USAGE, "nothing to check: these options leave no check to run")
    try:
        declaration = load(declared) if declared else None
        reports = _run(targets or implementations.names(), settings, timeout)
        if declaration is not None:
            whole = settings == Settings(
                seed=seed, cases=cases, interpolations=interpolations, laws=laws, dtype=dtype
            )
            reports = [apply(declaration, one, _diagnosis_of, whole) for one in reports]
    except DeclarationError as error:
        fail(USAGE, str(error))
    except implementations.AdapterError as error:
        fail(BROKEN, str(error))
    if json is not None:
        report.write_json(json, report.to_json(reports))
    writers = {junit: report.to_junit, markdown: report.to_markdown, html: report.to_html}
    for file, text_of in writers.items():
        if file is not None:
            report.write_atomically(file, text_of(reports))
    report.print_reports(reports, console)
    codes = {one.exit_code for one in reports}
    raise typer.Exit(MISMATCH if MISMATCH in codes else max(codes))


def _single_jobs(
    case: int | None, interpolation: int | None, law: int | None, vector: str | None
) -> tuple[Job, ...] | None:
    jobs: list[Job] = []
    if case is not None:
        jobs.append(("case", case))
    if interpolation is not None:
        jobs.append(("interpolation", interpolation))
    if law is not None:
        jobs.append(("law", law))
    if vector is not None:
        jobs.append(("vectors", 0))
    return tuple(jobs) or None


def _diagnosis_of(report: Report, result: Result) -> str | None:
    """The mistake that an implementation's numbers look like, for declarations that expect one."""
    del result  # a diagnosis is of the implementation, at points of its own
    return _diagnosis(report.target, report.dtype, report.seed)


@cache
def _diagnosis(target: str, dtype: str, seed: int) -> str | None:
    from vitspec.testing import implementations
    from vitspec.testing.diagnose import expected_by_name

    return expected_by_name(implementations.find(target), dtype=dtype, seed=seed)


def _config(text: str | None) -> Config | None:
    if text is None:
        return None
    from vitspec.testing.config_text import read_config

    try:
        return read_config(text)
    except (ValueError, OSError) as error:
        fail(USAGE, f"--config {text}: {error}")


def _run(targets: list[str], settings: Settings, timeout: float) -> list[Report]:
    from vitspec.testing import implementations
    from vitspec.testing.run import check_targets, new_report

    if not targets:
        fail(BROKEN, "no implementation is installed; for ours: pip install 'vitspec[fast]'")
    reports = {
        target: new_report(target, implementations.find(target), settings)
        for target in dict.fromkeys(targets)
    }
    planned = len(settings.plan()) * len(reports)
    with progress() as display:
        task = display.add_task("checking", total=planned)
        for done in check_targets(reports, settings, min(cores(), 8), timeout):
            display.update(task, advance=len(done.jobs), description=f"checking {done.target}")
    for one in reports.values():
        one.sort()
    return list(reports.values())
