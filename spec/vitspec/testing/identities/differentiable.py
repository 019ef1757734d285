"""Identities of any differentiable model: its vjp against its own forward, and against itself.

`docs/identities.md` derives them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from vitspec.testing.identities.differences import Slope, slope
from vitspec.testing.identities.evaluation import Evaluation, Flat
from vitspec.testing.identities.results import (
    COARSE,
    FACTOR,
    Comparison,
    IdentityResult,
    Verdict,
    judged,
    skipped,
)
from vitspec.testing.precision import rounded
from vitspec.typing import Array

DIRECTIONS = 3
"""Directions in which all parameters and the images move together."""
REDRAWS = 2
"""How often an undecided direction is drawn again."""
NEGLIGIBLE = 2.0**-20
"""A derivative below this part of the output, per relative change, counts as zero."""

DERIVATIVE = "<vjp(g), dp> = d/dt <g, forward(p + t dp)>"


def laws(e: Evaluation, rng: np.random.Generator) -> Iterator[IdentityResult]:
    """The laws that compare results with each other, cheapest first."""
    yield determinism(e)
    yield unused_parameters(e)
    yield scale(e)
    yield linearity(e, rng)
    yield from batch_split(e)


def directional_derivatives(e: Evaluation, rng: np.random.Generator) -> Iterator[IdentityResult]:
    """The gradients against difference quotients: all together, then tensor by tensor."""
    point = e.params | {"image": e.images}
    everything = tuple(name for name, leaf in point.items() if leaf.size)
    for _ in range(DIRECTIONS):
        yield _along("directional derivative", e, everything, rng)
    for name in everything:
        yield _along("directional derivative of one tensor", e, (name,), rng)


def _along(
    name: str, e: Evaluation, tensors: tuple[str, ...], rng: np.random.Generator
) -> IdentityResult:
    result = skipped(name, tensors, "nothing was drawn", DERIVATIVE)
    for _ in range(1 + REDRAWS):
        result = _along_direction(name, e, _direction(e, tensors, rng))
        if result.verdict != "undecided":
            break
    return result


def _direction(e: Evaluation, tensors: tuple[str, ...], rng: np.random.Generator) -> Flat:
    """Normal numbers, of the size of the tensors' own."""
    point = e.params | {"image": e.images}

    def draw(x: Array) -> Array:
        size = float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))
        return rng.standard_normal(x.shape) * (size or 1.0)

    return {name: draw(point[name]) for name in tensors}


def _along_direction(name: str, e: Evaluation, direction: Flat) -> IdentityResult:
    weights = e.cotangent.astype(np.float64)
    start = e.values["logits"]

    def change(t: float) -> float:
        moved = {n: x + t * direction[n] if n in direction else x for n, x in e.params.items()}
        images = e.images + t * direction["image"] if "image" in direction else e.images
        return float(np.sum(weights * (e.forward(moved, images) - start)))

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
) -> IdentityResult:
    residual = abs(found - expected.value)
    verdict: Verdict = "passed"
    reason = ""
    if not residual <= bound:
        verdict = "failed"
        reason = f"the vjp says {found:.9g}, the forward {expected.value:.9g}"
    elif not bound <= COARSE * size:
        verdict = "undecided"
        reason = (
            f"the forward's derivative is {expected.value:.2g}, give or take {bound:.1g}: "
            "the precision is too coarse, or a ReLU opens or closes here"
        )
    return IdentityResult(name, tensors, residual / size, bound / size, verdict, reason, DERIVATIVE)


def determinism(e: Evaluation) -> IdentityResult:
    """Two runs agree bit by bit."""
    differences = {
        name: float(np.max(np.abs(e.again[name] - leaf)) / np.max(np.abs([e.again[name], leaf])))
        for name, leaf in e.values.items()
        if not np.array_equal(e.raw[name], e.again[name])
    }
    formula = "forward and vjp give the same bits twice"
    reason = "two runs at the same point differ" if differences else ""
    verdict: Verdict = "failed" if differences else "passed"
    residual = max(differences.values(), default=0.0)
    return IdentityResult(
        "determinism", tuple(differences), residual, 0.0, verdict, reason, formula
    )


def unused_parameters(e: Evaluation) -> IdentityResult:
    """No gradient is exactly zero everywhere; one that is may be right, so this never fails."""
    zero = tuple(n for n in e.params if e.raw[n].size and not e.raw[n].any())
    formula = "no parameter's gradient is zero everywhere"
    reason = "exactly zero everywhere: does the model use them?" if zero else ""
    verdict: Verdict = "undecided" if zero and e.cotangent.any() else "passed"
    return IdentityResult("unused parameters", zero, 0.0, 0.0, verdict, reason, formula)


def scale(e: Evaluation) -> IdentityResult:
    """A cotangent times a power of two, which rounds nothing, gives the gradients times it."""
    factor = 8.0 if e.precision.name == "float16" else 2.0**20
    found = {}
    for a in (factor, 1 / factor):
        scaled = e.vjp(e.params, e.images, a * e.cotangent.astype(np.float64))
        found[a] = {name: leaf.astype(np.float64) / a for name, leaf in scaled.items()}
    worst = {
        name: max((_against(e, name, found[a][name]) for a in found), key=lambda c: c.worst)
        for name in found[factor]
    }
    return judged("scale of the cotangent", "vjp(a g) = a vjp(g), a = 2^k", _each(worst))


def linearity(e: Evaluation, rng: np.random.Generator) -> IdentityResult:
    """The gradients of two cotangents add up."""
    g = e.cotangent.astype(np.float64)
    size = float(np.sqrt(np.mean(g**2))) or 1.0
    other = rounded(size * rng.standard_normal(g.shape), e.precision)
    parts = [e.vjp(e.params, e.images, c) for c in (other, g + other)]
    found = {}
    for name in parts[0]:
        a, b, c = (np.asarray(flat[name], np.float64) for flat in (e.values, *parts))
        total = np.abs(a) + np.abs(b) + np.abs(c)
        noise = 3 * e.noise[name] + e.precision.u * total
        found[name] = Comparison(a + b - c, total, noise)
    return judged("linearity in the cotangent", "vjp(g) + vjp(g') = vjp(g + g')", _each(found))


def batch_split(e: Evaluation) -> Iterator[IdentityResult]:
    """Images do not see each other: neither in the output nor in the gradients."""
    names = "batch split of the forward", "batch split of the vjp"
    formulas = "forward(images)[b] = forward(images[b])", "vjp(batch) = sum of vjp(image)"
    if len(e.images) < 2:
        for name, formula in zip(names, formulas, strict=True):
            yield skipped(name, (), "the batch has one image", formula)
        return
    single = [slice(b, b + 1) for b in range(len(e.images))]
    logits = np.concatenate([e.forward(e.params, e.images[b]) for b in single])
    yield judged(names[0], formulas[0], _each({"logits": _against(e, "logits", logits)}))
    flats = [e.vjp(e.params, e.images[b], e.cotangent[b]) for b in single]
    found = {"image": _against(e, "image", np.concatenate([flat["image"] for flat in flats]))}
    for name in e.params:
        terms = np.stack([flat[name] for flat in flats]).astype(np.float64)
        size = np.abs(terms).sum(0) + np.abs(e.values[name])
        difference = terms.sum(0) - e.values[name]
        noise = 2 * e.noise[name] + e.precision.u * size
        found[name] = Comparison(difference, size, noise)
    yield judged(names[1], formulas[1], _each(found))


def _against(e: Evaluation, name: str, other: Array) -> Comparison:
    """Another value of a result against the one at hand."""
    value = e.values[name]
    size = np.abs(value) + np.abs(other)
    return Comparison(other - value, size, e.noise[name] + e.precision.u * size)


def _each(found: Mapping[str, Comparison]) -> dict[tuple[str, ...], Comparison]:
    return {(name,): comparison for name, comparison in found.items()}
