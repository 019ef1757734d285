"""How far from their bounds the identities of correct models stay: the table of the docs.

python tools/identities_table.py --points 200
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from itertools import islice
from typing import Any

import numpy as np

from vitspec.config import ViTConfig
from vitspec.testing.catalogue import CATALOGUE, Deviation
from vitspec.testing.families import FAMILIES, MODELS, Case
from vitspec.testing.identities import identities
from vitspec.testing.identities.differentiable import DIRECTIONS, directional_derivatives, laws
from vitspec.testing.identities.evaluation import Evaluation
from vitspec.testing.identities.naming import Model, recognise
from vitspec.testing.identities.schemes import NAMINGS
from vitspec.testing.identities.structural import structural
from vitspec.testing.implementations import Subject
from vitspec.testing.reference import Point, SpecImplementation
from vitspec.testing.results import Result
from vitspec.testing.tolerance import Grade

SEEN_KINDS = ("backward", "forward", "batch", "both")
QUOTIENT = "directional-derivative"


def name_of(result: Result) -> str:
    """An identity's name, without that it is one."""
    return result.check.removeprefix("identity.")


def points(count: int, seed: int = 0) -> Iterator[Point]:
    """Random points of both models, small variances and one-image batches among them."""
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        yield Point.of(FAMILIES[sorted(MODELS)[i % len(MODELS)]].random_case(rng))


def results(point: Point, dtype: str, seed: int = 0) -> list[Result]:
    """The identities of the specification in a precision."""
    subject = Subject(SpecImplementation(point.spec, dtype))
    return identities(subject, point, np.random.default_rng(seed))


CONFIG = ViTConfig(
    patch_h=2, patch_w=3, stride=2, padding=1, embed_dim=8, hidden_dim=7, head_count=2,
    num_layers=2, num_classes=4,
)  # fmt: skip


@cache
def small_points() -> dict[str, Point]:
    """A point of each model at which mistakes are visible: two images, overlapping patches."""
    return {spec: Point.of(Case(spec, CONFIG, 2, 5, 6, seed=11, batch=2)) for spec in MODELS}


def evaluation(point: Point, implementation: Any, dtype: str = "float64") -> Evaluation:
    """An implementation at a point."""
    return Evaluation(Subject(implementation, dtype), point, np.random.default_rng(0))


def laws_and_structure(e: Evaluation) -> Iterator[Result]:
    """All but the difference quotients."""
    yield from laws(e, np.random.default_rng(1))
    model = recognise(e.point.params, NAMINGS)
    if isinstance(model, Model):
        yield from structural(e, model, e.point.config.head_count)


def quotients(e: Evaluation) -> Iterator[Result]:
    """The difference quotients along all tensors together."""
    return islice(directional_derivatives(e, np.random.default_rng(1)), DIRECTIONS)


@cache
def broken_by(mistake: Deviation, dtype: str = "float64") -> tuple[str, ...]:
    """The laws and identities that a mistake breaks at the small points.

    Difference quotients are taken only if it breaks none.
    """
    broken: list[str] = []
    for part in (laws_and_structure, quotients):
        for spec, point in small_points().items() if not broken else ():
            e = evaluation(point, SpecImplementation(spec, dtype, [mistake]), dtype)
            broken += [name_of(r) for r in part(e) if r.status == "failed"]
    return tuple(dict.fromkeys(broken))


def catalogue_table(kinds: Collection[str]) -> Iterator[str]:
    """Rows of Markdown: how many mistakes are seen, and what each breaks."""
    yield "| kind | mistakes | by laws and structure alone | with difference quotients |"
    yield "| --- | --- | --- | --- |"
    for kind in kinds:
        broken = [broken_by(d) for d in CATALOGUE if d.kind == kind]
        alone = sum(bool(set(names) - {QUOTIENT}) for names in broken)
        yield f"| {kind} | {len(broken)} | {alone} | {sum(map(bool, broken))} |"
    yield ""
    yield "| mistake | breaks |"
    yield "| --- | --- |"
    for mistake in CATALOGUE:
        if mistake.kind in kinds:
            yield catalogue_row(mistake)


def catalogue_row(mistake: Deviation) -> str:
    """What a mistake breaks."""
    return f"| `{mistake.name}` | {', '.join(broken_by(mistake)) or 'nothing'} |"


def table(dtypes: Iterable[str], count: int) -> Iterator[str]:
    """Rows of Markdown; residual and bound are medians."""
    yield "| identity | precision | results | residual | bound | worst ratio | undecided |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    found: dict[tuple[str, str], list[Grade]] = defaultdict(list)
    undecided: dict[tuple[str, str], int] = defaultdict(int)
    for dtype in dtypes:
        for point in points(count):
            for result in results(point, dtype):
                if grade := result.worst or result.undecided:
                    found[name_of(result), dtype].append(grade)
                    undecided[name_of(result), dtype] += result.undecided is not None
    for (name, dtype), group in sorted(found.items()):
        if any(g.bound for g in group):
            residual = np.median([g.error for g in group])
            bound = np.median([g.bound for g in group])
            worst = max(g.ratio for g in group)
            yield (
                f"| {name} | {dtype} | {len(group)} | {residual:.0e} | {bound:.0e} "
                f"| {worst:.2g} | {undecided[name, dtype]} |"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--dtype", action="append", choices=["float64", "float32"])
    parser.add_argument("--catalogue", action="store_true")
    options = parser.parse_args()
    rows = table(options.dtype or ["float64", "float32"], options.points)
    for row in catalogue_table(SEEN_KINDS) if options.catalogue else rows:
        print(row)
