"""What one checked step says: a line for the display, a record, a table, a file."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitspec.testing.report.files import write_json
from vitspec.testing.tolerance import Grade

FILE_NAME = "gradient_departs.json"
"""In the run directory, if a gradient has departed."""

SHOWN = 10
"""Tensors in the table."""


@dataclass(frozen=True)
class GradientReport:
    """The verdict on one step's gradient.

    Attributes:
        step: the number of updates before it.
        rows: which images of the batch were looked at.
        precision: what the step computes in.
        grades: the verdict on every gradient, furthest over its bound first.
        loss, expected_loss: the step's loss of these images, and the specification's.
        runs: how many runs of the specification that err were needed.
        seconds: what the check took.
        parts: the same by what was done: "step" is the step's own program.
        share: the part of the time since the first check that all checks took, if known.
        named: deviations of the catalogue whose gradient it is, up to rounding.
        advice: what to do next, if it departs.
    """

    step: int
    rows: tuple[int, ...]
    precision: str
    grades: tuple[Grade, ...]
    loss: float
    expected_loss: float
    runs: int
    seconds: float
    parts: dict[str, float] = field(default_factory=dict)
    share: float | None = None
    named: tuple[str, ...] = ()
    advice: str = ""

    @property
    def conforms(self) -> bool:
        """Whether every gradient is within its bound."""
        return all(grade.conforms for grade in self.grades)

    @property
    def departing(self) -> tuple[Grade, ...]:
        """The gradients that are not within their bounds."""
        return tuple(grade for grade in self.grades if not grade.conforms)

    def line(self) -> str:
        """One line for the display.

        >>> worst = Grade("head.bias", "norm", 2e-7, 1e-7, 8e-7)
        >>> GradientReport(200, (3,), "float32", (worst,), 0.5, 0.5, 1, 0.25, share=0.012).line()
        'gradient check at step 200: conforms; worst head.bias at 0.25 of its bound; 0.2 s, \
1.2 % of the time'
        """
        worst = self.grades[0]
        where = f"gradient check at step {self.step}"
        if self.conforms:
            verdict = f"conforms; worst {worst.tensor} at {_factor(worst.ratio)} of its bound"
        else:
            verdict = (
                f"{len(self.departing)} of {len(self.grades)} gradients depart; worst "
                f"{worst.tensor} at {_factor(worst.ratio)} times its bound"
            )
        return f"{where}: {verdict}; {self._cost()}"

    def _cost(self) -> str:
        cost = f"{self.seconds:.1f} s"
        return cost if self.share is None else f"{cost}, {100 * self.share:.1f} % of the time"

    def record(self) -> dict[str, Any]:
        """Flat figures for `metrics.jsonl`."""
        return {
            "gradient_check_ratio": self.grades[0].ratio,
            "gradient_check_seconds": round(self.seconds, 3),
        }

    def table(self) -> str:
        """The worst gradients, and what is known of the fault, as text for a terminal."""
        header = ("gradient of", "metric", "error", "price", "bound", "error / bound")
        rows: list[tuple[str, ...]] = [header]
        for one in self.grades[:SHOWN]:
            figures = (f"{x:.1e}" for x in (one.error, one.price, one.bound))
            rows.append((one.tensor, one.metric, *figures, _factor(one.ratio)))
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        lines = [self.line(), ""]
        for row in rows:
            first = row[0].ljust(widths[0])
            rest = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
            lines.append("  ".join((first, *rest)).rstrip())
        left = len(self.grades) - SHOWN
        lines += [f"... and {left} more"] if left > 0 else []
        images = ", ".join(map(str, self.rows))
        lines += ["", f"images {images} of the batch, in {self.precision}; loss {self.loss:.6g}, "
                      f"by the specification {self.expected_loss:.6g}"]  # fmt: skip
        if self.named:
            lines.append(f"It looks like {' or '.join(self.named)} (docs/catalogue.md).")
        lines += [self.advice] if self.advice else []
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Everything, without infinities and NaN: these are words."""
        return {
            "step": self.step,
            "rows": list(self.rows),
            "precision": self.precision,
            "conforms": self.conforms,
            "loss": _number(self.loss),
            "expected_loss": _number(self.expected_loss),
            "runs": self.runs,
            "seconds": self.seconds,
            "parts": self.parts,
            "share": self.share,
            "named": list(self.named),
            "advice": self.advice,
            "gradients": [
                {
                    "tensor": one.tensor,
                    "metric": one.metric,
                    "error": _number(one.error),
                    "price": _number(one.price),
                    "bound": _number(one.bound),
                    "ratio": _number(one.ratio),
                    "conforms": one.conforms,
                    "cancelled": one.cancelled,
                }
                for one in self.grades
            ],
        }

    def write(self, folder: Path) -> Path:
        """Write the report into a folder; returns the file."""
        path = folder / FILE_NAME
        write_json(path, self.as_json())
        return path


class GradientDeparts(RuntimeError):  # noqa: N818
    """A step's gradient is not the specification's.

    Attributes:
        report: how far, where, and what it looks like.
    """

    def __init__(self, report: GradientReport) -> None:
        self.report = report
        looks = f"; it looks like {' or '.join(report.named)}" if report.named else ""
        super().__init__(f"{report.line()}{looks}")


def _number(x: float) -> float | str:
    return float(x) if math.isfinite(x) else str(x)


def _factor(x: float) -> str:
    return f"{x:.2f}" if x < 10 else f"{x:.3g}"
