"""The identities of the architecture, checked at a point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from vitspec.testing.identities.evaluation import Evaluation
from vitspec.testing.identities.naming import Model
from vitspec.testing.identities.place import Place
from vitspec.testing.identities.relations import GLOBAL, PER_LAYER, Identity, patch_positions
from vitspec.testing.identities.results import Comparison, judged, told
from vitspec.testing.reference import Flat
from vitspec.testing.results import Result
from vitspec.typing import Array


def structural(e: Evaluation, model: Model, head_count: int | None) -> Iterator[Result]:
    """Every identity of the architecture, in every layer where it holds.

    One that holds nowhere gives one result, which says why.
    """
    points = _Points(e, model, head_count)
    for identities, layers in ((GLOBAL, [None]), (PER_LAYER, [*range(model.num_layers)])):
        for identity in identities:
            if identity.norm in ("", model.naming.norm):
                yield from _everywhere(identity, points, layers)


def _everywhere(
    identity: Identity, points: _Points, layers: Sequence[int | None]
) -> Iterator[Result]:
    reasons = []
    for layer in layers:
        exact, size, noise = points.places(layer, identity.single)
        if reason := _why_not(identity, exact):
            reasons.append(reason)
            continue
        left, right = identity.sides(exact)
        total = identity.size(size) if identity.size else np.add(*identity.sides(size))
        rounding = np.add(*identity.sides(noise)) + points.u * total
        roles = (*identity.gradients, *filter(exact.has, identity.optional))
        names = dict.fromkeys(exact.name(role) for role in roles)
        comparison = Comparison(left - right, total, rounding)
        yield from judged(identity.name, identity.formula, {(*names, *identity.uses): comparison})
    if reasons and len(reasons) == len(layers):
        yield told(identity.name, identity.formula, status="skipped", reason=reasons[-1])


def _why_not(identity: Identity, p: Place) -> str:
    """Why an identity does not apply at a place; empty if it does."""
    roles = (*identity.gradients, *identity.weights)
    if missing := [role for role in roles if not p.has(role)]:
        return f"no {missing[0]}"
    if present := [role for role in identity.without if p.has(role)]:
        return f"there is a {present[0]}"
    if identity.relu and not p.model.naming.relu:
        return "the activation is not ReLU"
    if identity.heads and (not p.heads or p.d("q.weight").shape[1] % p.heads):
        return "the number of heads is not known, or divides nothing"
    if any(not p.d(role).size for role in roles):
        return "an array is empty"
    if any(role.endswith("gamma") and not p.w(role).all() for role in roles):
        return "a gamma is 0"
    images, kernel = p.weights["images"], p.w("patch.weight")
    if "image" in identity.uses and (images.ndim != 4 or images.shape[1] != kernel.shape[1]):
        return "the images are not (batch, channels, height, width)"
    if identity.single and not _grid_fits(p, images):
        return "the positions do not fill the grid of patches"
    return ""


def _grid_fits(p: Place, images: Array) -> bool:
    (sh, sw), padding = p.geometry
    sizes = zip(images.shape[2:], p.w("patch.weight").shape[2:], (sh, sw), strict=True)
    counts = [
        (n + 2 * padding - k) // s + 1 if s and n + 2 * padding >= k else 0 for n, k, s in sizes
    ]
    return 0 < counts[0] * counts[1] == len(patch_positions(p))


class _Points:
    """The three places at which sides are evaluated: exact, magnitudes, and noise."""

    def __init__(self, e: Evaluation, model: Model, head_count: int | None) -> None:
        self.e, self.model, self.heads, self.u = e, model, head_count, e.precision.u
        kernel = e.point.params[model.roles["patch.weight", None].name]
        config, patch = e.point.config, kernel.shape[2:]
        stride = getattr(config, "stride", None)
        self.geometry = (
            (patch if stride is None else (stride, stride)),
            getattr(config, "padding", 0),
        )
        self.batch = self._triple(e.values, e.noise, slice(None))
        self._single: Triple | None = None

    @property
    def single(self) -> Triple:
        """The same for the first image alone; the batch's noise is no smaller than its own."""
        if self._single is None:
            e, point, first = self.e, self.e.point, slice(0, 1)
            alone = replace(point, images=point.images[first], cotangent=point.cotangent[first])
            values = {name: x.astype(np.float64) for name, x in e.evaluate(alone).items()}
            noise = e.noise | {"image": e.noise["image"][first]}
            self._single = self._triple(values, noise, first)
        return self._single

    def places(self, layer: int | None, single: bool) -> Triple:
        """The three places in a layer."""
        a, b, c = self.single if single else self.batch
        return replace(a, layer=layer), replace(b, layer=layer), replace(c, layer=layer)

    def _triple(self, values: Flat, noise: Flat, batch: slice) -> Triple:
        point = self.e.point
        given = {"images": point.images[batch], "cotangent": point.cotangent[batch]}
        weights = {n: x.astype(np.float64) for n, x in (point.params | given).items()}
        gradients = values | {"cotangent": weights["cotangent"]}
        rounding = noise | {"cotangent": np.zeros_like(weights["cotangent"])}

        def place(weights: Flat, gradients: Flat) -> Place:
            return Place(self.model, None, self.heads, self.geometry, weights, gradients)

        sizes = {name: np.abs(x) for name, x in weights.items()}
        return (
            place(weights, gradients),
            place(sizes, {name: np.abs(x) for name, x in gradients.items()}),
            place(sizes, rounding),
        )


Triple = tuple[Place, Place, Place]
