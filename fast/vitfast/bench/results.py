"""Figures from times: ratios, images per second, fractions of the ceiling; JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import vitspec
from vitfast.bench.cases import SQUARE, Case
from vitfast.bench.measure import Outcome, square_side
from vitspec.testing.results import environment

SCHEMA = "vitfast-bench/1"


@dataclass(frozen=True)
class Ceiling:
    """Operations per second that matrix products alone reach, and whose products they were."""

    per_second: float
    by: str


@dataclass(frozen=True)
class CaseResult:
    """A table: the outcomes of its rows, and of the matrix products alone."""

    case: Case
    outcomes: Sequence[Outcome]
    ceilings: Sequence[Outcome]
    side: int

    def ceiling(self, name: str) -> Ceiling | None:
        """The fastest products: those of a pass, or the square one."""
        work = 2 * self.side**3 if name == SQUARE else self.case.work(name)
        found = [
            Ceiling(work / one.seconds[name], one.row.name.removeprefix("ceiling-"))
            for one in self.ceilings
            if name in one.seconds
        ]
        return max(found, key=lambda c: c.per_second, default=None)

    def fastest(self, name: str, outcomes: Iterable[Outcome]) -> Outcome | None:
        """Who is fastest in a pass."""
        measured = [one for one in outcomes if name in one.seconds]
        return min(measured, key=lambda one: one.seconds[name], default=None)

    @property
    def ours(self) -> list[Outcome]:
        """vitfast's rows."""
        return [one for one in self.outcomes if one.row.ours]

    @property
    def peers(self) -> list[Outcome]:
        """The other rows."""
        return [one for one in self.outcomes if not one.row.ours]

    @property
    def jax_peers(self) -> list[Outcome]:
        """Those of the other rows that run on JAX."""
        return [one for one in self.peers if "jax" in one.row.packages]

    def times_fastest_peer(self, name: str, seconds: float) -> float | None:
        """A time as a multiple of the fastest peer's: below 1 is faster than all of them."""
        peer = self.fastest(name, self.peers)
        return None if peer is None else seconds / peer.seconds[name]

    def of_ceiling(self, name: str, seconds: float, ceiling: str) -> float | None:
        """Useful operations per second in a pass, as a fraction of a ceiling's."""
        best = self.ceiling(ceiling)
        return None if best is None else self.case.work(name) / seconds / best.per_second


def result_of(
    case: Case, measured: tuple[Sequence[Outcome], Sequence[Outcome]], device: str
) -> CaseResult:
    """The table of what `measure` returned."""
    return CaseResult(case, *measured, side=square_side(device))


def to_json(
    results: Sequence[CaseResult], attention: Sequence[dict[str, Any]], device: dict[str, Any]
) -> dict[str, Any]:
    """Everything, as JSON-serialisable data; docs/bench.md says what each key is."""
    return {
        "schema": SCHEMA,
        "vitspec": vitspec.__version__,
        "environment": environment(),
        "device": device,
        "cases": [_case_json(result) for result in results],
        "attention": list(attention),
    }


def _case_json(result: CaseResult) -> dict[str, Any]:
    ceilings = {name: result.ceiling(name) for name in (*result.case.passes, SQUARE)}
    return result.case.to_json() | {
        "gflop": {name: result.case.work(name) / 1e9 for name in result.case.passes},
        "square_side": result.side,
        "ceiling": {
            name: {"gflop_per_second": best.per_second / 1e9, "by": best.by}
            for name, best in ceilings.items()
            if best is not None
        },
        "rows": [_row_json(result, outcome) for outcome in result.outcomes],
    }


def _row_json(result: CaseResult, outcome: Outcome) -> dict[str, Any]:
    row = {"name": outcome.row.name, "what": outcome.row.what, "status": outcome.status}
    if outcome.status != "measured":
        return row | {"detail": outcome.detail}
    return row | {
        "passes": {
            name: {
                "ms": seconds * 1e3,
                "images_per_second": result.case.batch / seconds,
                "of_own_products": result.of_ceiling(name, seconds, name),
                "of_square_product": result.of_ceiling(name, seconds, SQUARE),
                "times_fastest_peer": result.times_fastest_peer(name, seconds),
                "first_call_s": outcome.first_call[name],
            }
            for name, seconds in outcome.seconds.items()
        },
        "memory": outcome.memory,
        "visits": outcome.visits,
        "disturbed_visits": outcome.disturbed,
    }
