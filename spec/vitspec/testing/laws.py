"""Laws: how the logits and gradients of one model follow from those of a related one.

Each law is a map of points and a map of results: evaluate the implementation at the mapped point,
map what it returns back, and it must be what it returned before, to rounding. Laws need no truth;
they say what kind of mistake a failure is, where the comparison with the truth says only that there
is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from vitspec.testing.kinds import KINDS, AnyCase
from vitspec.testing.reference import Flat, Point
from vitspec.typing import Array

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
class Law:
    """A related point, and the results there in the order of the first.

    Attributes:
        name: the check's name.
        point: where to evaluate next.
        restore: the results there -> the results here.
    """

    name: str
    point: Point
    restore: Callable[[Flat], Flat]


def law_case(rng: np.random.Generator, spec: str) -> AnyCase:
    """A small random case whose patches tile the image, so that they can be moved."""
    return KINDS[spec].tiled_case(rng)


def laws(point: Point, rng: np.random.Generator) -> Iterator[Law]:
    """The permutations that leave the function alone, drawn at random, at one point."""
    if KINDS[point.spec].patches_can_move(point.config):
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


def _permute(name: str, point: Point, orders: Mapping[str, Array]) -> Law:
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
    return Law(name, moved, restore)


def _take(flat: Mapping[str, Array], orders: Mapping[str, Array]) -> Flat:
    def reorder(name: str, array: Array) -> Array:
        kind = name.split(".", 3)[-1] if name.startswith("encoder.") else name
        for axis, label in enumerate(_AXES[kind]):
            if label in orders:
                array = array.take(_for_all(orders[label], array.shape[axis]), axis=axis)
        return array

    return {name: reorder(name, array) for name, array in flat.items()}


def _for_all(order: Array, size: int) -> Array:
    """The order of an axis that may count the same several times over."""
    return np.concatenate([order + start for start in range(0, size, len(order) or 1)] or [order])


def _permute_patches(point: Point, rng: np.random.Generator) -> Law:
    """The patches in another order, each with its own position."""
    config, (_, C, H, W) = point.config, point.images.shape
    rows, columns = KINDS[point.spec].grid(config, H, W)
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
    return Law("permute-patches", moved, restore)


def _permute_batch(point: Point, rng: np.random.Generator) -> Law:
    order = np.roll(np.arange(len(point.images)), 1 + int(rng.integers(3)))
    inverse = np.argsort(order)
    moved = replace(point, images=point.images[order], cotangent=point.cotangent[order])
    own = ("logits", "image")
    return Law(
        "permute-batch",
        moved,
        lambda found: found | {n: found[n][inverse] for n in own if n in found},
    )
