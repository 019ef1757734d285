"""`vitspec check`: implementations against the specification."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import cache, partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

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
    running_implementations,
)  # fmt: skip
from vitspec.testing.settings import HOW, Settings

if TYPE_CHECKING:
    from vitspec.testing.processes import Progress
    from vitspec.testing.report.report import Report
    from vitspec.testing.results import Result

_FILES = "Report files"


def takes_settings(*names: str, **defaults: Any) -> Callable[..., Callable[..., None]]:
    """Give a command an option for each field of `Settings`, which it is given as `settings`.

    The options stand where the command's own parameter `settings` does.

    Args:
        names: of the fields; none is all of them.
        defaults: of fields, where the command has others.
    """
    types = get_type_hints(Settings)
    chosen = [one for one in fields(Settings) if not names or one.name in names]
    options = [_option(one, types[one.name], defaults) for one in chosen]

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**given: Any) -> None:
            own = {option.name: given.pop(option.name) for option in options}
            own |= {name: tuple(value) for name, value in own.items() if isinstance(value, list)}
            photograph = own.pop("photograph")
            settings = Settings(**own | {"config": _config(own["config"])})
            if photograph is None:  # not typed
                settings = replace(settings, photograph=defaults.get("photograph", True))
            else:
                settings = replace(settings, photograph=photograph)
                settings = settings.photograph_alone if photograph else settings
            command(settings=settings, **given)

        parameters: list[inspect.Parameter] = []
        hints = get_type_hints(command, include_extras=True)
        for one in inspect.signature(command).parameters.values():
            own = [one.replace(annotation=hints[one.name])]
            parameters += options if one.name == "settings" else own
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return decorated


def _option(one: Any, kind: Any, defaults: Mapping[str, Any]) -> inspect.Parameter:
    """The option of a field of `Settings`."""
    how = {"min": one.metadata["min"]} if "min" in one.metadata else {}
    default = defaults.get(one.name, one.default)
    switch = [f"--{one.name.replace('_', '-')}"] if default is False else []
    option = typer.Option(
        *switch, help=one.metadata["words"], rich_help_panel=one.metadata["panel"], **how
    )
    if one.name == "photograph":  # None where it is not typed
        kind, default = bool | None, None
    elif isinstance(default, tuple):
        kind, default = list[get_args(kind)[0]], []  # type: ignore[misc]
    elif default is None:
        kind = str | None  # a configuration is given as text
    return inspect.Parameter(
        one.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, option],
    )


@takes_settings()
def check(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TARGET]...",
            help="An installed name, module:attribute, a file adapter.py[:attribute], or "
            "planted:MISTAKE. All installed implementations, if none is named.",
        ),
    ] = None,
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
    declared: Annotated[
        Path | None,
        typer.Option(help="TOML file of declared deviations.", rich_help_panel=HOW),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="JSON.", rich_help_panel=_FILES)] = None,
    junit: Annotated[Path | None, typer.Option(help="JUnit XML.", rich_help_panel=_FILES)] = None,
    markdown: Annotated[Path | None, typer.Option(help="Markdown.", rich_help_panel=_FILES)] = None,
    html: Annotated[
        Path | None, typer.Option(help="One page, with a picture.", rich_help_panel=_FILES)
    ] = None,
) -> None:
    """Check implementations against the specification: logits and every gradient.

    On a photograph with ViT-Base/16 at full size, on small random configurations, at points where
    code breaks, and on the shipped test vectors; against laws; and that ill-formed configurations
    are refused.

    Exit codes: 0 conforms, 1 does not, 2 wrong usage, 3 no verdict: it could not be run, or too
    little was compared.
    """
    files = {"--json": json, "--junit": junit, "--markdown": markdown, "--html": html}
    for option, file in files.items():
        require_writable(option, file)
    try:
        from vitspec.testing import report
        from vitspec.testing.declared import DeclarationError, apply, load
        from vitspec.testing.finding import names
        from vitspec.testing.implementations import AdapterError
        from vitspec.testing.run import plan
    except ImportError as error:
        fail(BROKEN, f"{error}; the check needs: python -m pip install 'vitspec[testing]'")
    if not plan(settings):
        fail(USAGE, "nothing to check: these options leave no check to run")
    try:
        declaration = load(declared) if declared else None
        reports = _run(targets or names(), settings, timeout)
        if declaration is not None:
            diagnosis = partial(_diagnosis_of, timeout)
            reports = [apply(declaration, one, diagnosis, settings.whole) for one in reports]
    except DeclarationError as error:
        fail(USAGE, str(error))
    except AdapterError as error:
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


def _diagnosis_of(timeout: float, report: Report, result: Result) -> str | None:
    """The mistake that an implementation's numbers look like, for declarations that expect one."""
    del result  # a diagnosis is of the implementation, at points of its own
    return _diagnosis(report.target, report.dtype, report.seed, timeout)


@cache
def _diagnosis(target: str, dtype: str, seed: int, timeout: float) -> str | None:
    from vitspec.testing.processes import diagnose_target

    place = Settings(dtype=dtype, seed=seed).nothing_but()
    with running_implementations():
        return diagnose_target(target, place, timeout).name


def _config(text: str | None) -> Any:
    if text is None:
        return None
    from vitspec.config_text import read_config
    from vitspec.errors import NotWellFormed

    try:
        return read_config(text)
    except (ValueError, OSError, NotWellFormed) as error:
        fail(USAGE, f"--config {text}: {error}")


def _run(targets: list[str], settings: Settings, timeout: float) -> list[Report]:
    from vitspec.testing.processes import begin_targets, check_targets, worker_pool
    from vitspec.testing.run import plan, shown_order

    if not targets:
        fail(BROKEN, "no implementation is installed; for ours: pip install 'vitspec[fast]'")
    told: set[str] = set()
    workers = min(cores(), 8)
    with running_implementations(), progress() as display, worker_pool(workers) as pool:
        task = display.add_task("checking", total=None)
        reports = begin_targets(pool, targets, settings, timeout)
        display.update(task, total=len(plan(settings)) * len(reports))
        for done in check_targets(pool, reports, settings, timeout):
            display.update(task, advance=len(done.places), description=f"checking {done.target}")
            if done.target not in told and (line := _first_departure(done)):
                told.add(done.target)
                display.console.print(line, highlight=False, markup=False)
    for one in reports.values():
        one.results.sort(key=shown_order)
    return list(reports.values())


def _first_departure(done: Progress) -> str:
    """Where an implementation departs, for those who wait; the report comes when all is done."""
    from vitspec.testing.report.words import first_departure

    bad = [result for result in done.results if result.status == "failed" and result.grades]
    return first_departure(done.target, bad[0]) if bad else ""
