"""What an identity found: the verdict, the numbers that it rests on, and a table of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
        if not self.residual:
            return 0.0
        return self.residual / self.bound if self.bound else float("inf")


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
        """Whether the bound is no small part of what is summed, or nothing is."""
        size = self.size.sum()
        return bool(size == 0 or self.bound.sum() > COARSE * size)

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
    """A table of at most 80 columns.

    Every result that fails or is undecided has a row with its tensors and the reason; of the others
    each identity has one, with its largest residual and how many results there are. Identities that
    do not apply share a row for each reason.
    """
    from rich.table import Table

    table = Table(title="Identities that need no oracle", title_justify="left", width=80)
    table.add_column("identity", overflow="fold", ratio=1)
    table.add_column("n", justify="right")
    table.add_column("residual", justify="right")
    table.add_column("bound", justify="right")
    table.add_column("verdict")
    for verdict, style in (("failed", "bold red"), ("undecided", "yellow")):
        for r in sorted((r for r in results if r.verdict == verdict), key=lambda r: -r.ratio):
            shown = ", ".join(r.tensors[:4]) + ", ..." * (len(r.tensors) > 4)
            text = "\n  ".join(filter(None, [r.name, shown, r.formula, r.reason]))
            table.add_row(text, "1", *_numbers(r), verdict, style=style)
    for name, group in _grouped([r for r in results if r.verdict == "passed"], "name"):
        worst = max(group, key=lambda r: r.ratio)
        table.add_row(name, str(len(group)), *_numbers(worst), "passed")
    for reason, group in _grouped([r for r in results if r.verdict == "skipped"], "reason"):
        names = ", ".join(dict.fromkeys(r.name for r in group))
        table.add_row(f"{reason}: {names}", str(len(group)), "", "", "skipped", style="dim")
    return table


def _grouped(
    results: Sequence[IdentityResult], key: str
) -> Iterator[tuple[str, list[IdentityResult]]]:
    for value in dict.fromkeys(getattr(r, key) for r in results):
        yield value, [r for r in results if getattr(r, key) == value]


def _numbers(r: IdentityResult) -> tuple[str, str]:
    return (f"{r.residual:.1e}", f"{r.bound:.1e}") if r.bound or r.residual else ("", "")
