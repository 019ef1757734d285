"""What the kit says of the peers: each graded in a process of its own, and the table of it.

A peer's failures that are declared with it (`Peer.deviations`) count as in a file of declared
deviations: they are run and reported, and whatever else fails is a failure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from typing import Any

from vitspec.testing.adapters.peers.peer import Peer
from vitspec.testing.adapters.peers.registry import PEERS
from vitspec.testing.declared import Declaration, Deviation, apply
from vitspec.testing.description import describe
from vitspec.testing.finding import find
from vitspec.testing.implementations import AdapterError
from vitspec.testing.isolation.judges import worker_pool
from vitspec.testing.report.report import Report
from vitspec.testing.report.text import short
from vitspec.testing.results import environment
from vitspec.testing.run import check
from vitspec.testing.settings import Settings

DEFAULT = Settings(cases=8, interpolations=8, laws=1, photograph=False, vectors=False)
"""Well under a minute for a peer."""

BEGIN, END = "<!-- figures: vitspec peers --check -->", "<!-- end of figures -->"
"""Where a page has the tables."""


@dataclass(frozen=True)
class Graded:
    """One peer, graded in each precision that it claims.

    Attributes:
        peer: which.
        reports: with what is declared taken into account.
        problem: why there are none, in a line.
    """

    peer: Peer
    reports: tuple[Report, ...] = ()
    problem: str = ""

    @property
    def exit_code(self) -> int:
        """0 all conform, 1 something departs, 3 it could not be run."""
        codes = {report.exit_code for report in self.reports} or {3}
        return 1 if 1 in codes else max(codes)


def grade_peer(name: str, settings: Settings = DEFAULT, timeout: float = 600.0) -> Graded:
    """Grade one peer in a process of its own, which may crash or hang.

    Args:
        name: of the peer.
        settings: what to check.
        timeout: seconds after which it hangs.
    """
    peer = PEERS[name]
    if peer.missing:
        return Graded(peer, problem=f"needs {', '.join(peer.missing)}")
    with worker_pool(1) as pool:
        future = pool.submit(grade_here, name, settings)
        try:
            return Graded(peer, tuple(future.result(timeout)))
        except AdapterError as error:
            return Graded(peer, problem=str(error))
        except BrokenProcessPool:
            return Graded(peer, problem="ended its process (a crash in native code?)")
        except TimeoutError:
            pool.terminate()
            return Graded(peer, problem=f"gave no result for {timeout:g} s (--timeout)")


def grade_here(name: str, settings: Settings = DEFAULT) -> list[Report]:
    """Grade one peer in this process, in each precision that it claims.

    Raises:
        AdapterError: it does not load, or does not even work on a one-block model.
    """
    implementation = find(name)
    reports = []
    for dtype in describe(implementation).dtypes:
        report = check(implementation, replace(settings, dtype=dtype))
        report.target = name
        reports.append(report)
    declared = PEERS[name].deviations
    return [apply(Declaration(expected(declared, one, reports)), one) for one in reports]


def expected(
    declared: Iterable[Deviation], report: Report, reports: Sequence[Report]
) -> tuple[Deviation, ...]:
    """Those that fail in this precision, or in none.

    What fails in one precision alone is not mended because it passes in another.
    """

    def fails(deviation: Deviation, found: Report) -> bool:
        return any(
            deviation.covers(result.check, tensor)
            for result in found.results
            if result.status == "failed"
            for tensor in [grade.tensor for grade in result.failures] or [""]
        )

    elsewhere = [one for one in reports if one is not report]
    return tuple(
        deviation
        for deviation in declared
        if fails(deviation, report) or not any(fails(deviation, one) for one in elsewhere)
    )


# ---- what is shown -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One line of the table: a peer in one precision."""

    peer: str
    version: str
    dtype: str
    passed: int = 0
    failed: int = 0
    declared: int = 0
    skipped: int = 0
    worst: str = ""
    verdict: str = ""
    seconds: float = field(default=0.0, compare=False)


def rows(graded: Graded) -> list[Row]:
    """The lines of one peer."""
    peer, version = graded.peer, graded.peer.version or "not installed"
    if not graded.reports:
        return [Row(peer.name, version, "", verdict=f"not checked: {graded.problem}")]
    found = []
    for report in graded.reports:
        count = report.count()
        found.append(
            Row(
                peer.name, version, report.dtype, count["passed"],
                count["failed"] + count["errored"] + count["xpassed"] + len(report.unmatched),
                count["xfailed"], count["skipped"], worst(report), verdict(report), report.seconds,
            )
        )  # fmt: skip
    return found


def verdict(report: Report) -> str:
    """In a few words, and whether what is declared is the function itself."""
    declared = [result.check for result in report.results if result.status == "xfailed"]
    if not report.conforms:
        return report.verdict
    if {"forward", "vjp"} & {*declared}:
        return "departs, as declared"
    if {"interpolation.forward", "interpolation.vjp"} & {*declared}:
        return "conforms; departs at other sizes, as declared"
    if {"degenerate.forward", "degenerate.vjp"} & {*declared}:
        return "conforms; departs at degenerate points, as declared"
    return f"conforms, {len(declared)} declared" if declared else "conforms"


def worst(report: Report) -> str:
    """The largest error in units of its bound, and of which tensor it is."""
    every = [
        (g.error / g.bound, short(g.tensor))
        for r in report.results
        for g in r.grades
        if g.bound > 0
    ]
    if not every:
        return ""
    largest, where = max(every)
    return f"{largest:.2g} ({where})"


HEADINGS = (
    "peer", "version", "precision", "passed / failed / declared", "worst error / bound", "verdict",
)  # fmt: skip


def cells(row: Row) -> list[str]:
    """A line of the table."""
    figures = f"{row.passed} / {row.failed} / {row.declared}" if row.dtype else ""
    return [row.peer, row.version, row.dtype, figures, row.worst, row.verdict]


def to_json(graded: Iterable[Graded]) -> dict[str, Any]:
    """Everything, for a file."""
    return {
        "schema": 1,
        "environment": environment(),
        "peers": [
            {
                "name": g.peer.name,
                "version": g.peer.version,
                "what": g.peer.what,
                "limits": list(g.peer.limits),
                "declared": [_declared(d) for d in g.peer.deviations],
                "problem": g.problem,
                "rows": [vars(row) for row in rows(g)],
                "failures": [
                    {"dtype": r.dtype, "check": f.check, "place": str(f.place), "status": f.status,
                     "reason": f.reason, "tensors": [t.tensor for t in f.failures]}
                    for r in g.reports for f in r.results
                    if f.status in ("failed", "xfailed", "xpassed", "errored")
                ],
            }
            for g in graded
        ],
    }  # fmt: skip


def _declared(deviation: Any) -> dict[str, Any]:
    return {"checks": list(deviation.checks), "kind": deviation.kind, "reason": deviation.reason}


# ---- the page ----------------------------------------------------------------------------------


def renewed(page: str, graded: Sequence[Graded] = ()) -> str:
    """The page with the lines of these peers in place of the earlier ones, and the list below.

    Lines of other peers stay: no environment has every library. A page without the markers gets
    the table at its end.
    """
    before, _, rest = page.partition(BEGIN)
    old, _, after = rest.partition(END)
    lines = {**_lines_of(old), **{g.peer.name: _lines(g) for g in graded}}
    order = [name for name in PEERS if name in lines]
    head = ["| " + " | ".join(HEADINGS) + " |", "| --- " * len(HEADINGS) + "|"]
    table = "\n".join([*head, *(line for name in order for line in lines[name])])
    known = "\n".join(described(PEERS[name]) for name in PEERS)
    return f"{before}{BEGIN}\n\n{table}\n\n{known}\n\n{END}{after or chr(10)}"


def described(peer: Peer) -> str:
    """What is known of a peer, an entry of a list."""
    lines = [f"- **{peer.name}**: {peer.what}.", *(f"  - {limit}" for limit in peer.limits)]
    for one in peer.deviations:
        checks = ", ".join(f"`{glob}`" for glob in one.checks)
        lines.append(f"  - declared, {checks}: {one}")
    return "\n".join(lines)


def _lines(graded: Graded) -> list[str]:
    every = [[cell.replace("|", "\\|") for cell in cells(row)] for row in rows(graded)]
    return [f"| `{name}` | " + " | ".join(rest) + " |" for name, *rest in every]


def _lines_of(table: str) -> Mapping[str, list[str]]:
    """The lines of a table by the name of the peer."""
    found: dict[str, list[str]] = {}
    for line in table.splitlines():
        if match := re.match(r"\| `([^`]+)` \|", line):
            found.setdefault(match[1], []).append(line)
    return found
