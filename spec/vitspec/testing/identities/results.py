"""What an identity found: the verdict, the numbers that it rests on, and a table of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from vitspec.typing import Array

if TYPE_CHECKING:
    from rich.table import Table

Verdict = Literal["passed", "failed", "skipped", "undecided"]

FACTOR = 8
"""How many times its noise a residual may be; `docs/identities.md` has the measurements."""
COARSE = 2.0**-3
"""An identity that allows more than this part of what it sums decides nothing."""


@dataclass(frozen=True)
class IdentityResult:
    """One identity at one point.

    Attributes:
        name: the identity, the same for every layer.
        tensors: the parameters' gradients (and `image`, `logits`) that it ties together; where it
            compares tensors one by one, those that break it, or else the one nearest to doing so.
        residual: by how much its two sides differ, relative to what they sum.
        bound: the largest residual that rounding explains.
        verdict: `passed`; `failed`; `skipped`, as it does not apply; `undecided`, as the bound is
            too large to see a mistake.
        reason: why, if it did not pass.
        formula: the identity in one line.
    """

    name: str
    tensors: tuple[str, ...]
    residual: float
    bound: float
    verdict: Verdict
    reason: str
    formula: str

    @property
    def ratio(self) -> float:
        """residual / bound: an identity holds up to 1; 0 if nothing was compared."""
        return self.residual / self.bound if self.residual else 0.0


def skipped(name: str, tensors: tuple[str, ...], reason: str, formula: str) -> IdentityResult:
    """The result of an identity that does not apply."""
    return IdentityResult(name, tensors, 0.0, 0.0, "skipped", reason, formula)


@dataclass(frozen=True)
class Comparison:
    """Two sides of an identity, entry by entry.

    Attributes:
        difference: of the two sides.
        size: the sum of the magnitudes of everything that both sides add up.
        noise: how much of the difference rounding explains, typically.
    """

    difference: Array
    size: Array
    noise: Array

    @property
    def bound(self) -> Array:
        """How much of the difference is allowed."""
        return FACTOR * self.noise

    @property
    def worst(self) -> float:
        """The largest difference / bound; infinite if the difference is not finite."""
        difference = np.abs(self.difference)
        excess = np.where(difference > 0, np.inf, np.zeros(difference.shape))
        np.divide(difference, self.bound, out=excess, where=self.bound > 0)
        return float(np.max(np.where(np.isfinite(difference), excess, np.inf), initial=0.0))

    @property
    def coarse(self) -> bool:
        """Whether the bound is no small part of what is summed."""
        return bool(self.bound.sum() > COARSE * self.size.sum())

    def relative(self) -> tuple[float, float]:
        """The worst entry's difference and bound, relative to its size."""
        if not self.difference.size:
            return 0.0, 0.0
        ratio = np.abs(self.difference) / np.maximum(self.bound, np.finfo(np.float64).tiny)
        at = np.unravel_index(np.argmax(np.nan_to_num(ratio, nan=np.inf)), ratio.shape)
        size = max(float(self.size[at]), np.finfo(np.float64).tiny)
        return float(abs(self.difference[at]) / size), float(self.bound[at] / size)


def judged(name: str, formula: str, found: dict[tuple[str, ...], Comparison]) -> IdentityResult:
    """The verdict on an identity.

    Args:
        name: of the identity.
        formula: in one line.
        found: the comparisons, each with the tensors that it is about.
    """
    failing = [tensors for tensors, c in found.items() if c.worst > 1]
    nearest = max(found, key=lambda tensors: found[tensors].worst)
    tensors = tuple(dict.fromkeys(t for group in failing or [nearest] for t in group))
    residual, bound = found[nearest].relative()
    verdict: Verdict = "passed"
    reason = ""
    if failing:
        verdict = "failed"
        reason = f"the two sides differ by {residual:.1e}, rounding explains {bound:.1e}"
        if not np.isfinite(residual):
            reason = "a side is not finite"
    elif all(c.coarse for c in found.values() if c.difference.size):
        verdict = "undecided"
        reason = f"at this point rounding hides differences up to {bound:.1e}"
        if not any(c.size.any() for c in found.values()):
            reason = "everything that it sums is zero"
    return IdentityResult(name, tensors, residual, bound, verdict, reason, formula)


def identities_table(results: Sequence[IdentityResult]) -> Table:
    """A table of at most 80 columns: a row for each identity that fails, one for each other kind.

    The row of a kind shows the result nearest to its bound and how many there were.
    """
    from rich.table import Table

    table = Table(title="Identities that need no oracle", title_justify="left", width=80)
    table.add_column("identity", overflow="fold", ratio=4)
    table.add_column("tensors", overflow="fold", ratio=5)
    table.add_column("residual", justify="right", min_width=8)
    table.add_column("bound", justify="right", min_width=7)
    table.add_column("verdict", min_width=9)
    for verdict in ("failed", "undecided", "passed", "skipped"):
        chosen = [r for r in results if r.verdict == verdict]
        for name in dict.fromkeys(r.name for r in chosen):
            group = [r for r in chosen if r.name == name]
            if verdict == "failed":
                for r in sorted(group, key=lambda r: -r.ratio):
                    table.add_row(*_cells(r, ""), style="bold red")
            else:
                worst = max(group, key=lambda r: r.ratio)
                table.add_row(*_cells(worst, f" x{len(group)}" if len(group) > 1 else ""))
    return table


def _cells(r: IdentityResult, count: str) -> tuple[str, ...]:
    shown = ", ".join(r.tensors[:3]) + (f" and {len(r.tensors) - 3} more" * (len(r.tensors) > 3))
    if r.verdict in ("skipped", "undecided"):
        shown = r.reason
    numbers = ("", "") if r.verdict == "skipped" else (f"{r.residual:.1e}", f"{r.bound:.1e}")
    return (r.name + count, shown, *numbers, r.verdict)
