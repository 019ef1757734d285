"""The report of a check: a table for people, JSON for programs."""

from __future__ import annotations

import json
import os
import platform
import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import vitspec
from vitspec.testing.bench import Timing
from vitspec.testing.check import CaseResult
from vitspec.testing.tolerance import Grade


@dataclass
class Report:
    """What was checked and how it went.

    Attributes:
        implementations: name -> {"version", "spec", "dtype"}.
        photograph: name -> the verdicts on the photograph.
        cases: the small cases.
        seed: what all of it was drawn from.
    """

    seed: int
    implementations: dict[str, dict[str, str]] = field(default_factory=dict)
    photograph: dict[str, list[Grade]] = field(default_factory=dict)
    cases: list[CaseResult] = field(default_factory=list)

    @property
    def conforms(self) -> bool:
        """Whether something was checked, and every tensor of it conforms."""
        photographs = [g.conforms for grades in self.photograph.values() for g in grades]
        cases = [not case.failures for case in self.cases]
        return bool(photographs or cases) and all(photographs) and all(cases)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-serialisable data; an infinite error is the string "inf"."""
        return {
            "schema": "vitspec-check/1",
            "vitspec": vitspec.__version__,
            "conforms": self.conforms,
            "seed": self.seed,
            "environment": _environment(),
            "implementations": self.implementations,
            "photograph": {n: [_grade_json(g) for g in gs] for n, gs in self.photograph.items()},
            "cases": [
                {
                    "implementation": result.implementation,
                    "case": asdict(result.case),
                    "tensors": result.tensors,
                    "worst": _grade_json(result.worst),
                    "failures": [_grade_json(g) for g in result.failures],
                }
                for result in self.cases
            ],
        }


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically: the file is the old one or the new one, never half of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent or ".", prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(data, file, indent=1, allow_nan=False)
            file.write("\n")
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # as any new file; mkstemp's are private
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _grade_json(g: Grade) -> dict[str, Any]:
    numbers = {"error": g.error, "price": g.price, "bound": g.bound, "ratio": g.ratio}
    safe = {k: v if np.isfinite(v) else str(v) for k, v in numbers.items()}
    return {"tensor": g.tensor, "metric": g.metric, **safe, "conforms": g.conforms}


def by_kind(grades: Sequence[Grade]) -> dict[str, list[Grade]]:
    """The verdicts with the layers of one parameter together, in order of first appearance."""
    kinds: dict[str, list[Grade]] = {}
    for g in grades:
        kinds.setdefault(re.sub(r"\.layers\.\d+\.", ".layers.*.", g.tensor), []).append(g)
    return kinds


def photograph_table(name: str, info: dict[str, str], grades: Sequence[Grade]) -> Table:
    """One row for each kind of tensor, with its worst layer."""
    table = Table(
        title=f"{name} {info['version']} as {info['spec']}, {info['dtype']}: "
        "photograph, ViT-Base/16",
        title_justify="left",
    )
    table.add_column("tensor", overflow="fold")
    table.add_column("worst layer", justify="right")
    for heading in ("error", "price", "ratio"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for kind, group in by_kind(grades).items():
        worst = max(group, key=lambda g: (not g.conforms, g.ratio))
        layer = re.search(r"\.layers\.(\d+)\.", worst.tensor)
        table.add_row(
            kind if kind == "logits" else "d " + kind.replace("encoder.layers.", "layers."),
            f"{layer[1]} of {len(group)}" if layer else "",
            f"{worst.error:.1e}",
            f"{worst.price:.1e}",
            f"{worst.ratio:.2f}",
            _verdict(worst.conforms),
        )
    return table


def cases_table(results: Sequence[CaseResult]) -> Table:
    """One row for each implementation's small cases, with the worst tensor of all."""
    table = Table(title="small random configurations", title_justify="left")
    table.add_column("name", overflow="fold")
    for heading in ("configs", "tensors", "failed"):
        table.add_column(heading, justify="right")
    table.add_column("worst tensor", overflow="fold")
    table.add_column("ratio", justify="right")
    table.add_column("verdict")
    for name in sorted({r.implementation for r in results}):
        own = [r for r in results if r.implementation == name]
        worst = max((r.worst for r in own), key=lambda g: (not g.conforms, g.ratio))
        failed = sum(bool(r.failures) for r in own)
        table.add_row(
            name,
            str(len({r.case.config for r in own})),
            str(sum(r.tensors for r in own)),
            str(failed),
            worst.tensor.replace("encoder.layers.", "layers."),
            f"{worst.ratio:.2f}",
            _verdict(failed == 0),
        )
    return table


def print_report(report: Report, console: Console) -> None:
    """Print the tables, the first failures in full, and the verdict."""
    for name, grades in report.photograph.items():
        console.print(photograph_table(name, report.implementations[name], grades))
    if report.cases:
        console.print(cases_table(report.cases))
    for result in [r for r in report.cases if r.failures][:5]:
        console.print(
            f"[red]{result.implementation} departs on[/red] {result.case}", highlight=False
        )
        for g in result.failures[:5]:
            console.print(
                f"  {g.tensor}: {g.metric} error {g.error:.1e}, bound {g.bound:.1e}",
                highlight=False,
            )
    console.print(
        "d x: the gradient of x; worst layer: the one with the largest ratio\n"
        "error: distance from the specification in float64, relative to the tensor\n"
        "price: the same for the specification itself, in the precision under test\n"
        "ratio: error / (4 price + 4 u), which conforms up to 1",
        style="dim",
        highlight=False,
    )
    verdict = "conforms, as tested" if report.conforms else "does not conform"
    console.print(f"vitspec {vitspec.__version__}: {verdict}", style="bold", highlight=False)


def bench_tables(timings: Sequence[Timing]) -> list[Table]:
    """The passes against their ceiling, and where the forward's time goes."""
    passes = Table(title="ViT-Base/16, 3 x 224 x 224, one image", title_justify="left")
    passes.add_column("pass")
    headings = (
        "ms",
        "kernel ms",
        "useful GFLOP",
        "GFLOP/s",
        "ceiling GFLOP/s",
        "fraction",
        "peak MB",
    )
    for heading in headings:
        passes.add_column(heading, justify="right")
    parts = Table(title="where the forward's time goes, in ms", title_justify="left")
    parts.add_column("precision")
    for name in timings[0].parts:
        parts.add_column(name, justify="right")
    for timing in timings:
        for one in timing.passes:
            passes.add_row(
                f"{one.name} {timing.dtype}",
                f"{one.seconds * 1e3:.0f}",
                f"{one.kernel_seconds * 1e3:.0f}",
                f"{one.gflop:.1f}",
                f"{one.gflop / one.seconds:.0f}",
                f"{one.gflop / one.ceiling_seconds:.0f}",
                f"{one.fraction:.2f}",
                f"{timing.peak_bytes / 1e6:.0f}",
            )
        parts.add_row(timing.dtype, *[f"{s * 1e3:.1f}" for s in timing.parts.values()])
    return [passes, parts]


def bench_json(timings: Sequence[Timing]) -> dict[str, Any]:
    """The timings as JSON-serialisable data."""
    return {
        "schema": "vitspec-bench/1",
        "vitspec": vitspec.__version__,
        "environment": _environment(),
        "timings": [
            asdict(t) | {"fractions": {one.name: one.fraction for one in t.passes}} for t in timings
        ],
    }


def _environment() -> dict[str, str]:
    packages = {}
    for name in ("numpy", "jax", "jaxlib", "flax", "tokamax", "torch"):
        with suppress(PackageNotFoundError):
            packages[name] = package_version(name)
    return {"python": platform.python_version(), "machine": platform.machine(), **packages}


def _verdict(conforms: bool) -> str:
    return "[green]conforms[/green]" if conforms else "[red]departs[/red]"
