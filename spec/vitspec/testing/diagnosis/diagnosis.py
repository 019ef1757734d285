"""What `diagnose` says."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import vitspec


@dataclass(frozen=True)
class Near:
    """A deviation of the catalogue, or several at once, and how near the implementation is to it.

    Attributes:
        name: of the catalogue; two at once are joined by " + ".
        description: what is wrong, in words.
        distance: the largest error, over its bound, from the specification with the deviation in
            it, of all tensors at all points: up to 1 it is rounding.
        agreeing: how many tensors are within their bounds, counted at each point.
        compared: how many there are.
        matches: whether all are.
        derivatives: "by hand": those of the right forward; "automatic": those of the mistaken one;
            "" where that makes no difference.
        same: deviations that cannot be told from it by what was tried, in this precision.
        equal: those of them that are the very same function at every point, in any precision.
        decided: at how many of the points the specification without it departs: these decide.
    """

    name: str
    description: str
    distance: float
    agreeing: int
    compared: int
    matches: bool
    derivatives: str = ""
    same: tuple[str, ...] = ()
    equal: tuple[str, ...] = ()
    decided: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The single deviations."""
        return tuple(self.name.split(" + "))


@dataclass(frozen=True)
class Departure:
    """A tensor that is not what the specification computes.

    Attributes:
        tensor: its name.
        kind: "tap" (an intermediate value), "logits" or "gradient".
        error, bound: where it is worst, in the metric that decides.
        points: at how many of the points it departs.
        pattern: what it looks like at all of these, such as "zero" or "2 x the truth", or "".
    """

    tensor: str
    kind: str
    error: float
    bound: float
    points: int
    pattern: str = ""


@dataclass
class Diagnosis:
    """What is wrong with an implementation, as far as is known.

    Attributes:
        implementation, version, spec, dtype: what it says of itself, and the precision.
        seed: what the points were drawn from.
        place: the options of the command that name the place that was looked at first.
        conforms: whether nothing departs.
        verdict: the finding, in a sentence.
        nearest: the nearest deviations; those that match come first.
        first_departure: the first tensor that departs, in the order of computation.
        departures: all of them, in that order: taps, logits, gradients from the head down.
        specification: the distance from the specification itself.
        points: where it was looked at, in words.
        causes: what makes it depart, a sentence each: each was tried, by changing that alone.
        notes: what else is to be seen, a sentence each.
        seconds: how long it took.
    """

    implementation: str
    version: str
    spec: str
    dtype: str
    seed: int
    place: str = ""
    conforms: bool = False
    verdict: str = ""
    nearest: list[Near] = field(default_factory=list)
    first_departure: Departure | None = None
    departures: list[Departure] = field(default_factory=list)
    specification: float = 0.0
    points: list[str] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def name(self) -> str | None:
        """The name of the nearest deviation, if it matches."""
        return self.nearest[0].name if self.nearest and self.nearest[0].matches else None

    @property
    def pairs(self) -> list[Near]:
        """The pairs of deviations among the nearest."""
        return [near for near in self.nearest if len(near.names) > 1]

    def to_json(self) -> dict[str, Any]:
        """The diagnosis as JSON-serialisable data; what is infinite is the string "inf"."""
        data = {"schema": "vitspec-diagnosis/2", "vitspec": vitspec.__version__} | asdict(self)
        return _finite(data | {"name": self.name})


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
