"""How many planted mistakes `vitspec diagnose` names first: the table of docs/diagnose.md.

    python tools/diagnosis_table.py [--dtype float32] [--pairs]

Every deviation of the catalogue that a model shows, as it stands and with the derivatives of its
own forward, is planted into the specification and diagnosed; `--pairs` plants two at once instead.
A diagnosis takes some seconds, so all of them take about an hour for each precision.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from vitspec.testing.catalogue import CATALOGUE, Deviation, deviation
from vitspec.testing.diagnosis import diagnose
from vitspec.testing.reference import SpecImplementation


@dataclass(frozen=True)
class DiagnosisRow:
    """What was planted, and what was diagnosed.

    Attributes:
        name: what was planted; two at once are joined by " + ".
        automatic: whether with the derivatives of the mistaken forward.
        spec, dtype: in which model, in which precision.
        named: what the diagnosis named first, or None.
        equal: what is the same function as that, wherever it was looked at.
        distance: from the deviation that was named.
        seconds: how long it took.
    """

    name: str
    automatic: bool
    spec: str
    dtype: str
    named: str | None
    equal: tuple[str, ...]
    distance: float
    seconds: float

    @property
    def right(self) -> bool:
        """Whether the planted deviation was named first, or is the same function as that."""
        names = {frozenset(one.split(" + ")) for one in (self.named or "", *self.equal)}
        return frozenset(self.name.split(" + ")) in names


def diagnosis_table(
    dtypes: Sequence[str] = ("float32", "float64"),
    names: Iterable[str] | None = None,
    both_models: bool = False,
) -> list[DiagnosisRow]:
    """Plant every deviation that shows in a model, in each precision, and diagnose it.

    A mistaken forward is planted twice: with the derivatives of the right one, and with its own.

    Args:
        dtypes: the precisions.
        names: the deviations; None for all.
        both_models: plant what shows in both models in each of them, not in one by turns.
    """
    chosen = [d for d in CATALOGUE if d.specs and d.kind != "jvp"]
    if names is not None:
        wanted = set(names)
        chosen = [d for d in chosen if d.name in wanted]
    rows = []
    for dtype in dtypes:
        for i, d in enumerate(chosen):
            specs = d.specs if both_models else (d.specs[i % len(d.specs)],)
            rows += [row for spec in specs for row in _rows(d, spec, dtype)]
    return rows


PAIRS = (
    ("image-gradient-stopped", "weight-gradient-of-the-pre-activation"),
    ("value-weight-gets-key-gradient", "positions-gradient-stopped"),
    ("activation-gelu", "value-weight-gets-key-gradient"),
    ("attention-scale-missing", "activation-gelu"),
    ("positions-missing", "batch-last-image-only"),
    ("kernel-flipped", "encoder-gradients-reversed"),
    ("gamma-and-beta-gradients-swapped", "bias-gradient-averaged"),
    ("mean-pool-sums", "layer-norm-eps-1e-5"),
    ("batch-gradients-averaged", "gamma-gradient-not-normalised"),
    ("attention-residual-gradient-dropped", "layer-norm-gradient-without-gamma"),
    ("softmax-gradient-without-row-dot", "image-gradient-kernel-flipped"),
    ("patches-column-major", "pre-norm"),
    ("layer-norm-eps-1e-5", "patch-bias-gradient-averaged"),
    ("heads-interleaved", "channels-reversed"),
)
"""Two mistakes at once: both in the backward, one in each pass, both in the forward."""


def pairs_table(
    dtypes: Sequence[str] = ("float32", "float64"),
    pairs: Iterable[tuple[str, str]] = PAIRS,
) -> list[DiagnosisRow]:
    """Plant two deviations at once, in `vit`, and diagnose them; as in `diagnosis_table`.

    Two mistakes of the forward are planted with the derivatives of their own too.
    """
    rows = []
    for dtype in dtypes:
        for names in pairs:
            by_hand = tuple(deviation(name) for name in names)
            automatic = tuple(d.differentiated() or d for d in by_hand)
            rows.append(_row(by_hand, False, "vit", dtype))
            if automatic != by_hand:
                rows.append(_row(automatic, True, "vit", dtype))
    return rows


def _rows(planted: Deviation, spec: str, dtype: str) -> list[DiagnosisRow]:
    rows = [_row((planted,), False, spec, dtype)]
    own = planted.differentiated() if planted.derivatives else None
    return rows if own is None else [*rows, _row((own,), True, spec, dtype)]


def _row(planted: tuple[Deviation, ...], automatic: bool, spec: str, dtype: str) -> DiagnosisRow:
    found = diagnose(SpecImplementation(spec, dtype, planted), dtype=dtype)
    first = found.nearest[0] if found.name else None
    return DiagnosisRow(
        name=" + ".join(d.name for d in planted),
        automatic=automatic,
        spec=spec,
        dtype=dtype,
        named=found.name,
        equal=first.equal if first else (),
        distance=first.distance if first else math.nan,
        seconds=found.seconds,
    )


def rows_table(rows: Sequence[DiagnosisRow]) -> Table:
    """How many are named first in each precision, and each that is not."""
    table = Table(box=box.SIMPLE_HEAD, width=80, pad_edge=False)
    headings = ("dtype", "planted", "named first", "largest distance", "s each")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "dtype" else "right")
    for dtype in dict.fromkeys(row.dtype for row in rows):
        own = [row for row in rows if row.dtype == dtype]
        right = [row for row in own if row.right]
        table.add_row(
            dtype, str(len(own)), f"{len(right)} ({len(right) / len(own):.1%})",
            f"{max((r.distance for r in right), default=0):.2f}",
            f"{sum(r.seconds for r in own) / len(own):.1f}",
        )  # fmt: skip
        for row in own:
            if not row.right:
                how = ", automatic" if row.automatic else ""
                table.add_row("", f"{row.name}{how}, {row.spec}", row.named or "not named")
    return table


def main() -> None:
    """Diagnose, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", action="append", help="float32 and float64 by default")
    parser.add_argument("--pairs", action="store_true", help="two mistakes at once")
    arguments = parser.parse_args()
    dtypes = arguments.dtype or ["float32", "float64"]
    progress = Console(stderr=True)
    rows = []
    if arguments.pairs:
        for pair in track(PAIRS, "pairs", console=progress, transient=True):
            rows += pairs_table(dtypes, [pair])
    else:
        for one in track(CATALOGUE, "deviations", console=progress, transient=True):
            rows += diagnosis_table(dtypes, [one.name], both_models=True)
    Console().print(rows_table(rows))


if __name__ == "__main__":
    main()
