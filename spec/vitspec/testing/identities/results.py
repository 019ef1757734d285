"""The verdict on an identity, by the implementation's own noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vitspec.testing.laws import Sides
from vitspec.testing.results import WHOLE, Result
from vitspec.testing.tolerance import Grade
from vitspec.typing import Array

FACTOR = 8
"""How many times its noise a residual may be; `docs/identities.md` has the measurements."""
COARSE = 2.0**-3
"""An identity that allows more than this part of what it sums decides nothing."""


def told(
    name: str,
    formula: str,
    tensors: Sequence[str] = (),
    residual: float = 0.0,
    bound: float = 0.0,
    status: Literal["passed", "failed", "skipped", "undecided"] = "passed",
    reason: str = "",
) -> Result:
    """The result of an identity, in terms of the results of all checks.

    Args:
        name: of the identity, the same for every layer.
        formula: the identity in one line.
        tensors: the parameters' gradients (and `image`, `logits`) that it ties together; where it
            compares tensors one by one, those that break it, or else the one nearest to doing so.
        residual: by how much its two sides differ, relative to what they sum.
        bound: the largest residual that rounding explains.
        status: `undecided`: the bound is too large to see a mistake.
        reason: why, if it did not pass.
    """
    grade = Grade(", ".join(tensors), "residual", residual, bound / FACTOR, bound)
    check = check_name(name)
    text = "; ".join(part for part in (reason, formula) if part)
    if status == "undecided":
        return Result(check, WHOLE, status, reason=text, undecided=grade)
    return Result(check, WHOLE, status, () if status == "skipped" else (grade,), text)


def check_name(name: str) -> str:
    """The name of the check of an identity.

    >>> check_name("norm's shift into fc1")
    'identity.norms-shift-into-fc1'
    """
    return "identity." + name.replace("'", "").replace(" ", "-")


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

    @classmethod
    def of(cls, sides: Sides, noise: Array, u: float) -> Comparison:
        """The sides of a law, by the noise of the tensor and the unit roundoff."""
        return cls(sides.left - sides.right, sides.size, sides.noises * noise + u * sides.size)

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


def judged(
    name: str, formula: str, found: Mapping[tuple[str, ...], Comparison]
) -> Iterator[Result]:
    """The verdict on an identity; what is too coarse to decide is a result of its own.

    Args:
        name: of the identity.
        formula: in one line.
        found: the comparisons, each with the tensors that it is about.
    """
    failing = [tensors for tensors, c in found.items() if c.worst > 1]
    coarse = [t for t, c in found.items() if c.worst <= 1 and c.coarse and c.difference.size]
    decided = [tensors for tensors in found if tensors not in coarse]
    if decided:
        nearest = max(decided, key=lambda tensors: found[tensors].worst)
        tensors = _flat(failing or [nearest])
        residual, bound = found[nearest].relative()
        reason = f"the two sides differ by {residual:.1e}, rounding explains {bound:.1e}"
        if not np.isfinite(residual):
            reason = "a side is not finite"
        if failing:
            yield told(name, formula, tensors, residual, bound, "failed", reason)
        else:
            yield told(name, formula, tensors, residual, bound)
    if coarse:
        largest = max(coarse, key=lambda tensors: found[tensors].relative()[1])
        residual, bound = found[largest].relative()
        reason = f"at this point rounding hides differences up to {bound:.1e}"
        if not any(found[tensors].size.any() for tensors in coarse):
            reason = "everything that it sums is zero"
        yield told(name, formula, _flat(coarse), residual, bound, "undecided", reason)


def _flat(groups: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(tensor for group in groups for tensor in group))
