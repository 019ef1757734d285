"""Hypothesis strategies: well-formed and ill-formed configurations, image sizes, arrays, points.

Every size is drawn by itself and shrinks to the smallest that still fails. The numbers in an array
are never drawn: they are normal, from one drawn seed that shrinks to 0. So an example is small to
print, it is the same on every machine, and nothing hides in entries that happen to be 0 or alike.

Where numbers matter, `values` chooses them (of the Lean mirror, see `numbers`; of the practical
family, `vitspec.testing.families.practical`); None draws the kind as well.

`degenerate=True` adds what Lean's definitions allow and few programs do: stride 0, images without
rows or columns, and (in `cases`) an encoder whose input is exactly zero.
"""

from vitspec.testing.strategies.edges import EDGE_CASES, EDGES, Edge, edge_cases, edges_of
from vitspec.testing.strategies.ill_formed import NOT_NATURAL, RULES, IllFormed, ill_formed_configs
from vitspec.testing.strategies.numbers import (
    VALUES,
    arrays,
    cotangents,
    images,
    parameters,
    points,
)  # fmt: skip
from vitspec.testing.strategies.practical import (
    vision_transformer_cases,
    vision_transformer_configs,
    vision_transformer_points,
)  # fmt: skip
from vitspec.testing.strategies.sizes import Size, cases, configs, image_sizes, seeds, specs

__all__ = [
    "EDGES", "EDGE_CASES", "NOT_NATURAL", "RULES", "VALUES", "Edge", "IllFormed", "Size",
    "arrays", "cases", "configs", "cotangents", "edge_cases", "edges_of", "ill_formed_configs",
    "image_sizes", "images", "parameters", "points", "seeds", "specs", "vision_transformer_cases",
    "vision_transformer_configs", "vision_transformer_points",
]  # fmt: skip
