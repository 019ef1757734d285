"""`vitfast backends`: which attentions run here, and whether they are the specification's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from vitspec.commands.common import (
    BROKEN,
    CONFORMS,
    MISMATCH,
    USAGE,
    console,
    fail,
    progress,
    require_writable,
)  # fmt: skip

if TYPE_CHECKING:
    from vitspec.config import ViTConfig

PLAIN = "plain"
PRECISIONS = ("float64", "float32", "bfloat16", "float16")
MODELS = ("vit", "vit_cls")


@dataclass(frozen=True)
class Verdict:
    """What the kit says of a model with a certain attention.

    Attributes:
        precision: what it computed in.
        model: "vit" or "vit_cls".
        verdict: in a word or two.
        reason: why it is no better; empty if it conforms.
        exit_code: the command's, if all were like this.
    """

    precision: str
    model: str
    verdict: str
    reason: str
    exit_code: int


@dataclass
class Backend:
    """An attention: its name, why it does not run on this device (None if it does), verdicts."""

    name: str
    refusal: str | None
    verdicts: list[Verdict] = field(default_factory=list)


def backends(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Only these; all, if none is named."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check those that run against the specification.")
    ] = False,
    precision: Annotated[
        list[str] | None, typer.Option(help="With --check: only this one; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="What the check draws from.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Write what was found as JSON.")] = None,
) -> None:
    """List the attentions, Tokamax's and the plain one: which run on this device, or why not.

    With --check, each that runs is put into a Vision Transformer of either kind, whose logits and
    gradients are graded in every precision.

    Exit codes: 0; 1 if one that runs does not conform; 2 wrong usage; 3 if one could not be
    checked.
    """
    require_writable("--json", json)
    from vitfast.tokamax_attention import KNOWN_IMPLEMENTATIONS, refusal
    from vitspec.testing.report import write_json

    known = (PLAIN, *KNOWN_IMPLEMENTATIONS)
    wanted = _known("NAME", names, known)
    precisions = _known("--precision", precision, PRECISIONS)
    found = [Backend(name, None if name == PLAIN else refusal(name)) for name in wanted]
    if check:
        _check_all([backend for backend in found if backend.refusal is None], precisions, seed)
    console.print(to_table(found, precisions if check else ()))
    for line in reasons(found):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if json is not None:
        write_json(json, to_json(found))
    codes = {verdict.exit_code for backend in found for verdict in backend.verdicts}
    raise typer.Exit(MISMATCH if MISMATCH in codes else max(codes, default=CONFORMS))


def _known(option: str, given: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """Those of the known names that were given, or all."""
    if unknown := set(given or ()) - set(known):
        fail(USAGE, f"{option} {', '.join(sorted(unknown))}: expected {', '.join(known)}")
    return [name for name in known if not given or name in given]


# ---- checking ------------------------------------------------------------------------------------


def config_of_check() -> ViTConfig:
    """A model that no kernel has reason to refuse: two heads of 64, and 110 patches."""
    from vitspec.config import ViTConfig

    return ViTConfig(
        patch_h=4, patch_w=4, stride=1, padding=4,
        embed_dim=128, hidden_dim=96, head_count=2, num_layers=2, num_classes=5,
    )  # fmt: skip


def _check_all(running: Sequence[Backend], precisions: Sequence[str], seed: int) -> None:
    jobs = [(b, precision, m) for b in running for precision in precisions for m in MODELS]
    with progress() as display:
        task = display.add_task("checking", total=len(jobs))
        for backend, precision, model in jobs:
            display.update(task, description=f"checking {backend.name} in {precision}")
            backend.verdicts.append(verdict_on(backend.name, precision, model, seed))
            display.advance(task)


def verdict_on(name: str, precision: str, model: str, seed: int = 0) -> Verdict:
    """The kit's verdict on a model ("vit" or "vit_cls") with this attention, in one precision."""
    from vitfast.implementation import variant
    from vitfast.tokamax_attention import NoWorkingAttention
    from vitspec.testing import AdapterError, check
    from vitspec.testing.precision import PRECISIONS as FORMATS

    of_arrays = FORMATS[precision].own_type  # these need no variant: the arrays' type decides
    implementation = variant(f"{model}{'' if of_arrays else f'_{precision}'}_{name}")
    try:
        report = check(
            implementation, config=config_of_check(), cases=1, laws=0, ill_formed=False,
            degenerate=False, dtype=precision, seed=seed,
        )  # fmt: skip
    except AdapterError as error:
        cause = error.__cause__
        if isinstance(cause, (NotImplementedError, NoWorkingAttention)):
            return Verdict(precision, model, "not taken", _first_line(cause), CONFORMS)
        return Verdict(precision, model, "could not be checked", _first_line(error), BROKEN)
    if report.conforms:
        return Verdict(precision, model, "conforms", "", report.exit_code)
    return Verdict(precision, model, report.verdict, _departures(report), report.exit_code)


def _departures(report: Any) -> str:
    """What is furthest over its bound, or what kept it from running."""
    results = [result for result in report.results if result.status in ("failed", "errored")]
    grades = [result.worst for result in results if result.worst is not None]
    if not grades:
        return results[0].reason if results else ""
    worst = max(grades, key=lambda grade: grade.ratio)
    return f"{worst.tensor}: error {worst.error:.1e}, bound {worst.bound:.1e}"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


# ---- showing -------------------------------------------------------------------------------------


def to_table(found: Sequence[Backend], precisions: Sequence[str]) -> Table:
    """A row for each attention; its verdict in a precision is the worse of both models'."""
    import jax

    table = Table("attention", f"runs on this {jax.devices()[0].device_kind}", *precisions)
    for backend in found:
        cells = []
        for precision in precisions:
            verdicts = [v for v in backend.verdicts if v.precision == precision]
            # "not taken" has exit code 0 too, and is what to show of a model that is not.
            worst = max(verdicts, key=lambda v: (v.exit_code, v.reason), default=None)
            cells.append(worst.verdict if worst else "")
        table.add_row(backend.name, backend.refusal or "yes", *cells)
    return table


def reasons(found: Sequence[Backend]) -> Iterator[str]:
    """A line for each verdict that could be better."""
    for backend in found:
        for v in backend.verdicts:
            if v.reason:
                yield f"{backend.name}, {v.model} in {v.precision}: {v.verdict}: {v.reason}"


def to_json(found: Sequence[Backend]) -> dict[str, Any]:
    """What was found, and on what."""
    import jax

    from vitspec.testing.results import environment

    device = jax.devices()[0]
    return {
        "environment": environment(),
        "device": {"platform": device.platform, "kind": device.device_kind},
        "backends": [asdict(backend) for backend in found],
    }
