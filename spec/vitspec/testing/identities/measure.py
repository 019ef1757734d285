"""How far from their bounds the identities of correct models stay: the table of the docs.

python -m vitspec.testing.identities.measure --points 200
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np

from vitspec.testing.cases import MODELS, random_case
from vitspec.testing.identities import IdentityResult, identities
from vitspec.testing.precision import PRECISIONS
from vitspec.testing.reference import Point, SpecImplementation


def points(count: int, seed: int = 0) -> Iterator[Point]:
    """Random points of both models, small variances and one-image batches among them."""
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        yield Point.of(random_case(rng, sorted(MODELS)[i % len(MODELS)]))


def results(point: Point, dtype: str, seed: int = 0) -> list[IdentityResult]:
    """The identities of the specification in a precision."""
    implementation = SpecImplementation(point.spec, dtype)
    at = point.rounded(PRECISIONS[dtype])
    given = (at.config, at.params, at.images, at.cotangent)
    return identities(implementation, *given, dtype=dtype, rng=np.random.default_rng(seed))


def table(dtypes: Iterable[str], count: int) -> Iterator[str]:
    """Rows of Markdown; residual and bound are medians."""
    yield "| identity | precision | results | residual | bound | worst ratio | undecided |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    found: dict[tuple[str, str], list[IdentityResult]] = defaultdict(list)
    for dtype in dtypes:
        for point in points(count):
            for result in results(point, dtype):
                if result.verdict != "skipped":
                    found[result.name, dtype].append(result)
    for (name, dtype), group in sorted(found.items()):
        if any(r.bound for r in group):
            residual = np.median([r.residual for r in group])
            bound = np.median([r.bound for r in group])
            worst = max(r.ratio for r in group)
            undecided = sum(r.verdict == "undecided" for r in group)
            yield (
                f"| {name} | {dtype} | {len(group)} | {residual:.0e} | {bound:.0e} "
                f"| {worst:.2g} | {undecided} |"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--dtype", action="append", choices=["float64", "float32"])
    options = parser.parse_args()
    for line in table(options.dtype or ["float64", "float32"], options.points):
        print(line)
