"""Identities of any differentiable model: its vjp against its own forward, and against itself.

`docs/identities.md` derives them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from vitspec.testing.description import TO_ROUNDING
from vitspec.testing.identities.differences import Slope, slope
from vitspec.testing.identities.evaluation import Evaluation
from vitspec.testing.identities.results import COARSE, FACTOR, Comparison, judged, told
from vitspec.testing.laws import (
    Sides,
    changed_between_runs,
    linearity_sides,
    scale_sides,
    split_sides,
)
from vitspec.testing.precision import rounded
from vitspec.testing.reference import Flat
from vitspec.testing.results import Result
from vitspec.typing import Array

DIRECTIONS = 3
"""Directions in which all parameters and the images move together."""
REDRAWS = 2
"""How often an undecided direction is drawn again."""
NEGLIGIBLE = 2.0**-20
"""A derivative below this part of the output, per relative change, counts as zero."""

DERIVATIVE = "<vjp(g), dp> = d/dt <g, forward(p + t dp)>"


def laws(e: Evaluation, rng: np.random.Generator) -> Iterator[Result]:
    """The laws that compare results with each other, cheapest first."""
    yield determinism(e)
    yield unused_parameters(e)
    yield from scale(e)
    yield from linearity(e, rng)
    yield from batch_split(e)


def determinism(e: Evaluation) -> Result:
    """Two runs agree bit by bit."""
    formula = "forward and vjp give the same bits twice"
    names = changed_between_runs(e.found, e.again)
    if not names:
        return told("determinism", formula)
    runs = [(e.values[name], e.again[name].astype(np.float64)) for name in names]
    residual = max(_difference(*run) for run in runs)
    if e.subject.repeats == TO_ROUNDING and all(e.repeats_to_rounding(name) for name in names):
        return told("determinism", formula, names, residual, residual)
    reason = "two runs at the same point differ"
    return told("determinism", formula, names, residual, 0.0, "failed", reason)


def _difference(a: Array, b: Array) -> float:
    """The largest relative to the largest value; 0 where only the sign of a zero differs."""
    return float(np.max(np.abs(b - a)) / max(np.max(np.abs([a, b])), np.finfo(float).tiny))


def unused_parameters(e: Evaluation) -> Result:
    """No gradient is exactly zero everywhere; one that is may be right, so this never fails."""
    zero = [n for n in e.point.params if e.values[n].size and not e.values[n].any()]
    name, formula = "unused parameters", "no parameter's gradient is zero everywhere"
    if not zero:
        return told(name, formula)
    reason = "exactly zero everywhere: does the model use them?"
    if e.point.cotangent.any():
        return told(name, formula, zero, status="undecided", reason=reason)
    return told(name, formula, zero, reason=reason)


def scale(e: Evaluation) -> Iterator[Result]:
    """A cotangent times a power of two, which rounds nothing, gives the gradients times it."""
    factor = 8.0 if e.precision.name == "float16" else 2.0**20
    both = [_compared(e, scale_sides(e, a)) for a in (factor, 1 / factor)]
    worst: Compared = {k: max((one[k] for one in both), key=lambda c: c.worst) for k in both[0]}
    return judged("scale of the cotangent", "vjp(a g) = a vjp(g), a = 2^k", worst)


def linearity(e: Evaluation, rng: np.random.Generator) -> Iterator[Result]:
    """The gradients of two cotangents add up."""
    g = e.point.cotangent.astype(np.float64)
    size = float(np.sqrt(np.mean(g**2))) or 1.0
    other = rounded(size * rng.standard_normal(g.shape), e.precision)
    sides = linearity_sides(e.values, e.gradients(other), e.gradients(g + other))
    formula = "vjp(g) + vjp(g') = vjp(g + g')"
    return judged("linearity in the cotangent", formula, _compared(e, sides))


def batch_split(e: Evaluation) -> Iterator[Result]:
    """Images do not see each other: neither in the output nor in the gradients."""
    names = "batch split of the forward", "batch split of the vjp"
    formulas = "forward(images)[b] = forward(images[b])", "vjp(batch) = sum of vjp(image)"
    if len(e.point.images) < 2:
        for name, formula in zip(names, formulas, strict=True):
            yield told(name, formula, status="skipped", reason="the batch has one image")
        return
    found = _compared(e, split_sides(e))
    logits: Compared = {("logits",): found.pop(("logits",))}
    yield from judged(names[0], formulas[0], logits)
    yield from judged(names[1], formulas[1], found)


Compared = dict[tuple[str, ...], Comparison]


def _compared(e: Evaluation, sides: Mapping[str, Sides]) -> Compared:
    """Each tensor's two sides, by its noise."""
    u = e.precision.u
    return {(name,): Comparison.of(one, e.noise[name], u) for name, one in sides.items()}


# ---- against difference quotients ----------------------------------------------------------------


def directional_derivatives(e: Evaluation, rng: np.random.Generator) -> Iterator[Result]:
    """The gradients against difference quotients: all together, then tensor by tensor."""
    point = e.point.params | {"image": e.point.images}
    everything = tuple(name for name, leaf in point.items() if leaf.size)
    for _ in range(DIRECTIONS):
        yield _along("directional derivative", e, everything, rng)
    for name in everything:
        yield _along("directional derivative of one tensor", e, (name,), rng)


def _along(name: str, e: Evaluation, tensors: tuple[str, ...], rng: np.random.Generator) -> Result:
    for _ in range(1 + REDRAWS):
        result = _along_direction(name, e, _direction(e, tensors, rng))
        if result.undecided is None:
            break
    return result


def _direction(e: Evaluation, tensors: tuple[str, ...], rng: np.random.Generator) -> Flat:
    """Normal numbers, of the size of the tensors' own."""
    point = e.point.params | {"image": e.point.images}

    def draw(x: Array) -> Array:
        size = float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))
        return rng.standard_normal(x.shape) * (size or 1.0)

    return {name: draw(point[name]) for name in tensors}


def _along_direction(name: str, e: Evaluation, direction: Flat) -> Result:
    weights, point = e.point.cotangent.astype(np.float64), e.point
    start = e.values["logits"]

    def change(t: float) -> float:
        params = {n: x + t * direction[n] if n in direction else x for n, x in point.params.items()}
        images = point.images + t * direction["image"] if "image" in direction else point.images
        logits = e.forward(replace(point, params=params, images=images))
        return float(np.sum(weights * (logits - start)))

    output = float(np.sum(np.abs(weights * start)))
    noise = float(np.sum(np.abs(weights) * (e.noise["logits"] + e.precision.u * np.abs(start))))
    expected = slope(change, noise)
    parts = {n: e.values[n] * d for n, d in direction.items()}
    found = sum(float(part.sum()) for part in parts.values())
    own = np.sqrt(sum(float(np.sum(part**2)) for part in parts.values()))
    spread = np.sqrt(sum(float(np.sum((e.noise[n] * d) ** 2)) for n, d in direction.items()))
    size = max(float(own), abs(expected.value), NEGLIGIBLE * output, np.finfo(np.float64).tiny)
    explained = FACTOR * (expected.error + float(spread) + e.precision.u * float(own))
    return _decided(name, tuple(direction), found, expected, explained, size)


def _decided(
    name: str, tensors: tuple[str, ...], found: float, expected: Slope, bound: float, size: float
) -> Result:
    residual = abs(found - expected.value)
    figures = name, DERIVATIVE, tensors, residual / size, bound / size
    if not residual <= bound:
        reason = f"the vjp says {found:.9g}, the forward {expected.value:.9g}"
        return told(*figures, "failed", reason)
    if not bound <= COARSE * size:
        reason = (
            f"the forward's derivative is {expected.value:.2g}, give or take {bound:.1g}: "
            "the precision is too coarse, or a ReLU opens or closes here"
        )
        return told(*figures, "undecided", reason)
    return told(*figures)
