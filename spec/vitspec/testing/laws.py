"""Laws: how the logits and gradients of one model follow from its own elsewhere.

Laws need no truth; they say what kind of mistake a failure is, where the comparison with the truth
says only that there is one. Each stands here once, as two sides that must be equal to rounding. How
much rounding explains is decided by whoever asks: `vitspec.testing.suites.laws` by the price of the
precision, `vitspec.testing.identities` by the implementation's own noise.

The first laws hold of any differentiable function. The permutations are of a Vision Transformer:
each is a map of points and a map of results. Evaluate the implementation at the mapped point, map
what it returns back, and it must be what it returned before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vitspec.testing.families import FAMILIES
from vitspec.testing.reference import Flat, Point
from vitspec.testing.trial import Trial
from vitspec.typing import Array

# ---- of any differentiable function --------------------------------------------------------------


@dataclass(frozen=True)
class Sides:
    """Two values of one tensor, which a law makes equal.

    Attributes:
        left: the value, in float64.
        right: what it must be.
        size: the sum of the magnitudes of all that both sides add up.
        noises: by how many times the noise of one result the two may differ.
    """

    left: Array
    right: Array
    size: Array
    noises: int = 1


def changed_between_runs(found: Flat, again: Flat) -> list[str]:
    """Determinism: the names of the tensors whose bits differ between two runs at one point."""
    return [n for n, x in found.items() if n not in again or not _same_bits(x, again[n])]


def scale_sides(trial: Trial, factor: float) -> dict[str, Sides]:
    """vjp(a g) / a = vjp(g), for a power of two; a stray constant, or a clipped gradient, shows."""
    larger = trial.gradients(factor * _wide(trial.point.cotangent))
    return {name: _pair(_wide(value) / factor, trial.found[name]) for name, value in larger.items()}


def linearity_sides(first: Flat, second: Flat, both: Flat) -> dict[str, Sides]:
    """Linearity: vjp(g + h) = vjp(g) + vjp(h), of the gradients for g, h and g + h."""
    sides = {}
    for name in both:
        a, b, c = (_wide(flat[name]) for flat in (first, second, both))
        sides[name] = Sides(c, a + b, np.abs(a) + np.abs(b) + np.abs(c), noises=3)
    return sides


def split_sides(trial: Trial) -> dict[str, Sides]:
    """A batch gives what its images give one by one; parameters' gradients add up."""
    point, found = trial.point, trial.found
    singles = [
        trial.evaluate(replace(point, images=point.images[b], cotangent=point.cotangent[b]))
        for b in (slice(i, i + 1) for i in range(len(point.images)))
    ]
    sides = {}
    for name in [name for name in ("logits", "image", *point.params) if name in found]:
        parts, whole = [_wide(one[name]) for one in singles], _wide(found[name])
        if name in ("logits", "image"):
            sides[name] = _pair(whole, np.concatenate(parts))
        else:
            terms = np.stack(parts)
            sides[name] = Sides(whole, terms.sum(0), np.abs(terms).sum(0) + np.abs(whole), 2)
    return sides


def _pair(left: Any, right: Any) -> Sides:
    left, right = _wide(left), _wide(right)
    return Sides(left, right, np.abs(left) + np.abs(right))


def _wide(value: Any) -> Array:
    return np.asarray(value, np.float64)


def _same_bits(a: Array, b: Array) -> bool:
    return bool(a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes())


# ---- permutations of a Vision Transformer --------------------------------------------------------

PERMUTATIONS = (
    "permute-patches", "permute-heads", "permute-head-columns", "permute-features",
    "permute-hidden", "permute-classes", "permute-batch",
)  # fmt: skip

_AXES = {
    "patch_embed.kernel": "D...", "patch_embed.bias": "D", "cls_token": "D", "pos_enc.pos": ".D",
    "mha.wq": "DQ", "mha.wk": "DQ", "mha.wv": "DV", "mha.wo": "VD",
    "mha.bq": "Q", "mha.bk": "Q", "mha.bv": "V", "mha.bo": "D",
    "ffn.w1": "DF", "ffn.w2": "FD", "ffn.b1": "F", "ffn.b2": "D",
    "norm1_gamma": "D", "norm1_beta": "D", "norm2_gamma": "D", "norm2_beta": "D",
    "layer_scale1": "D", "layer_scale2": "D", "final_norm_gamma": "D", "final_norm_beta": "D",
    "head.weights": "KD", "head.bias": "K",
}  # fmt: skip
"""Which axes of a parameter count features (D), hidden features (F), classes (K), or the columns of
all heads for queries and keys (Q) or values (V); a dot is any other axis. An axis may count the
features twice, as that of a head on two pooled rows side by side does."""


@dataclass(frozen=True)
class Permutation:
    """A related point, and the results there in the order of the first.

    Attributes:
        name: the check's name.
        point: where to evaluate next.
        restore: the results there -> the results here.
    """

    name: str
    point: Point
    restore: Callable[[Flat], Flat]


def permutations(point: Point, rng: np.random.Generator) -> Iterator[Permutation]:
    """The permutations that leave the function alone, drawn at random, at one point."""
    if FAMILIES[point.spec].patches_can_move(point.config):
        yield _permute_patches(point, rng)
    c = point.config
    heads = rng.permutation(c.head_count)
    columns = heads[:, None] * c.head_dim + np.arange(c.head_dim)[None, :]
    yield _permute("permute-heads", point, {"Q": columns.reshape(-1), "V": columns.reshape(-1)})
    within = [rng.permutation(c.head_dim) + h * c.head_dim for h in range(c.head_count)]
    columns = np.concatenate([np.zeros(0, int), *within])
    yield _permute("permute-head-columns", point, {"Q": columns})
    yield _permute("permute-features", point, {"D": rng.permutation(c.embed_dim)})
    yield _permute("permute-hidden", point, {"F": rng.permutation(c.hidden_dim)})
    yield _permute("permute-classes", point, {"K": rng.permutation(c.num_classes)})
    yield _permute_batch(point, rng)


def _permute(name: str, point: Point, orders: Mapping[str, Array]) -> Permutation:
    inverses = {axis: np.argsort(order) for axis, order in orders.items()}
    cotangent = point.cotangent
    if "K" in orders:
        cotangent = cotangent[:, orders["K"]]

    def restore(found: Flat) -> Flat:
        back = _take({n: found[n] for n in point.params.keys() & found.keys()}, inverses)
        logits = {"logits": found["logits"]}
        if "K" in orders:
            logits = {"logits": found["logits"][:, inverses["K"]]}
        return found | back | logits

    moved = replace(point, params=_take(point.params, orders), cotangent=cotangent)
    return Permutation(name, moved, restore)


def _take(flat: Mapping[str, Array], orders: Mapping[str, Array]) -> Flat:
    def reorder(name: str, array: Array) -> Array:
        kind = name.split(".", 3)[-1] if name.startswith("encoder.") else name
        for axis, label in enumerate(_AXES[kind]):
            if label in orders:
                array = array.take(_for_all(orders[label], array.shape[axis]), axis=axis)
        return array

    return {name: reorder(name, array) for name, array in flat.items()}


def _for_all(order: Array, size: int) -> Array:
    """The order, repeated where an axis is several copies of the dimension side by side."""
    return np.concatenate([order + start for start in range(0, size, len(order) or 1)] or [order])


def _permute_patches(point: Point, rng: np.random.Generator) -> Permutation:
    """The patches in another order, each with its own position."""
    config, (_, C, H, W) = point.config, point.images.shape
    rows, columns = FAMILIES[point.spec].grid(config, H, W)
    order = rng.permutation(rows * columns)
    first = len(point.params["pos_enc.pos"]) - len(order)  # 1 with a CLS token, which stays
    positions = np.concatenate([np.arange(first), first + order])

    def moved_images(images: Array, order: Array) -> Array:
        covered = np.s_[:, :, : rows * config.patch_h, : columns * config.patch_w]
        shape = (len(images), C, rows, config.patch_h, columns, config.patch_w)
        patches = images[covered].reshape(shape).transpose(0, 2, 4, 1, 3, 5)
        patches = patches.reshape(len(images), rows * columns, *patches.shape[3:])[:, order]
        grid = patches.reshape(len(images), rows, columns, C, config.patch_h, config.patch_w)
        moved = images.copy()
        moved[covered] = grid.transpose(0, 3, 1, 4, 2, 5).reshape(images[covered].shape)
        return moved

    def restore(found: Flat) -> Flat:
        back = {"logits": found["logits"]} | {n: found[n] for n in found.keys() & point.params}
        if "image" in found:
            back["image"] = moved_images(found["image"], np.argsort(order))
            back["pos_enc.pos"] = found["pos_enc.pos"][np.argsort(positions)]
        return back

    params = point.params | {"pos_enc.pos": point.params["pos_enc.pos"][positions]}
    moved = replace(point, params=params, images=moved_images(point.images, order))
    return Permutation("permute-patches", moved, restore)


def _permute_batch(point: Point, rng: np.random.Generator) -> Permutation:
    images = len(point.images)
    # By less than a whole turn, which would leave every image where it is.
    order = np.roll(np.arange(images), int(rng.integers(1, max(images, 2))))
    inverse = np.argsort(order)
    moved = replace(point, images=point.images[order], cotangent=point.cotangent[order])
    own = ("logits", "image")
    return Permutation(
        "permute-batch",
        moved,
        lambda found: found | {n: found[n][inverse] for n in own if n in found},
    )
