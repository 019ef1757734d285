"""How many planted mistakes `vitspec diagnose` names first.

    python benchmarks/diagnosis.py [--dtype float32] [--pairs]

Every deviation of the catalogue that a model shows, as it stands and with the derivatives of its
own forward, is planted into the specification and diagnosed; `--pairs` plants two at once instead.
A diagnosis takes some seconds, so all of them take about an hour for each precision.
"""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.progress import track

from vitspec.testing.catalogue import CATALOGUE
from vitspec.testing.diagnosis import diagnosis_table, pairs_table, rows_table
from vitspec.testing.diagnosis.table import PAIRS


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
