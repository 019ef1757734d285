"""Points where code breaks: the kinds that the suite `degenerate` checks, and how each is made.

Ordinary random numbers never have a row of equal entries, a score of 120 or an image of zeros. Real
models have: a CLS token that starts as zero at a position of zero, a padded image, a branch whose
last weights start as zero. There a division by a variance becomes 0 / 0, and an exponential
overflows. The specification is finite at all of these points, and so must be an implementation: a
value that is not finite is a departure.

Each kind takes an ordinary point and changes what it must. Rows are made constant by zeros alone:
their mean and variance are then exact in whatever order they are summed. With any other constant
they would be so only nearly, and 1 / sqrt(epsilon) would multiply the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from vitspec.testing.families import FAMILIES, MODELS
from vitspec.testing.layouts import OTHER_ORDER
from vitspec.testing.reference import Flat, Point
from vitspec.typing import Array

SCORE = 120.0
"""exp overflows above 88.7 and gives zero below -103.9 in float32. Near this number, and near its
negative, it does so even where scores differ by some units from token to token."""
LARGE, VERY_LARGE = 12.0, 64.0
"""Inputs of activations. The first are over 6, where ReLU6 ends, and so large that a tanh made of
exponentials overflows in float32; the second so that the sigmoid of the quick GELU, exp(1.702 x) /
(1 + exp(1.702 x)), does."""
SPREAD = 2.0
"""How far the tokens' inputs may be from the first one's."""
ALWAYS = {"activation": "relu"}
"""What a configuration without such a field has: the Lean mirror's."""
SMALL = 2.0**-20
"""What the output weights of one layer are multiplied by, and so the gradients before them."""


@dataclass(frozen=True)
class Kind:
    """A kind of degenerate point.

    Attributes:
        words: what is degenerate about it.
        change: from an ordinary point and random numbers to this kind's.
        wants: fields of the configuration, where it has them, without which the kind is not itself.
        prefers: likewise, but without them there is still something to see.
    """

    words: str
    change: Callable[[Point, np.random.Generator], Point]
    wants: Mapping[str, Any] = field(default_factory=dict)
    prefers: Mapping[str, Any] = field(default_factory=dict)

    def is_of(self, config_type: type[Any]) -> bool:
        """Whether any configuration of a type can be what the kind wants."""
        known = {one.name for one in fields(config_type)}
        return all(n in known or ALWAYS.get(n) == value for n, value in self.wants.items())

    def why_not(self, config: Any, prefers: bool = False) -> str | None:
        """Which field of a configuration is not what the kind wants; None if all are."""
        for name, value in {**self.wants, **(self.prefers if prefers else {})}.items():
            own = getattr(config, name, ALWAYS.get(name, value))
            if own != value:
                return f"its {name} is {own!r}, not {value!r}"
        return None


def _layer(i: int, *names: str) -> list[str]:
    return [f"encoder.layers.{i}.{name}" for name in names]


def _zero(params: Mapping[str, Array], names: list[str]) -> Flat:
    """The parameters with those of these names zero, as far as there are any."""
    return {n: np.zeros_like(p) if n in names else p for n, p in params.items()}


def _is_post_norm(point: Point) -> bool:
    """Whether layers normalise after they have added, as the Lean mirror's do."""
    return point.spec in MODELS


# ---- rows and images -----------------------------------------------------------------------------


def _with_zero_token(point: Point) -> Point:
    """The first token is zero at a position of zero: the CLS token, or that of the first patch."""
    zero, images = ["cls_token"], point.images
    if "cls_token" not in point.params:
        zero, images = ["patch_embed.bias"], images.copy()
        images[:, :, : point.config.patch_h, : point.config.patch_w] = 0
    params = _zero(point.params, zero)
    positions = params["pos_enc.pos"].copy()
    positions[0] = 0
    return replace(point, params=params | {"pos_enc.pos": positions}, images=images)


def constant_rows(point: Point, rng: np.random.Generator) -> Point:
    """The first normalisation has a row of equal entries, whose variance is exactly 0."""
    point = _with_zero_token(point)
    onto_the_row = _layer(0, "mha.wo", "mha.bo") if _is_post_norm(point) else []
    return replace(point, params=_zero(point.params, onto_the_row))


def zero_branches(point: Point, rng: np.random.Generator) -> Point:
    """Likewise every normalisation before the head, or the two of the first layer of post-norm.

    More of them after each other would multiply gradients by 1 / sqrt(epsilon) each time.
    """
    point, layers = _with_zero_token(point), range(point.config.num_layers)
    branches = ("mha.wo", "mha.bo", "ffn.w2", "ffn.b2")
    if _is_post_norm(point):
        zero = _layer(0, *branches, "norm1_beta")
    else:
        zero = [name for i in layers for name in _layer(i, *branches)]
    return replace(point, params=_zero(point.params, zero))


def zero_images(point: Point, rng: np.random.Generator) -> Point:
    """Every image is zero."""
    return replace(point, images=np.zeros_like(point.images))


def blank_images(point: Point, rng: np.random.Generator) -> Point:
    """Three images: of zeros, of one number, and an ordinary one."""
    one = point.images[0]
    images = np.stack([0 * one, np.full_like(one, rng.uniform(0.5, 2)), one])
    cotangent = rng.standard_normal((3, point.cotangent.shape[1]))
    return replace(point, images=images, cotangent=cotangent)


# ---- scores, activations, gradients --------------------------------------------------------------


def equal_scores(point: Point, rng: np.random.Generator) -> Point:
    """In each layer either every query or every key is zero, and so is every score."""
    first, layers = int(rng.integers(2)), range(point.config.num_layers)
    letter = {i: "qk"[(first + i) % 2] for i in layers}
    zero = [n for i in layers for n in _layer(i, f"mha.w{letter[i]}", f"mha.b{letter[i]}")]
    return replace(point, params=_zero(point.params, zero))


def extreme_scores(point: Point, rng: np.random.Generator) -> Point:
    """In the first layer some queries have all scores near 120, others all near -120.

    One entry of every token is made 1, whose rows of wq and wk then act as biases. All keys have a
    large entry in common, which moves all scores of a query alike: the softmax does not change,
    but only if the largest score *of that query* is subtracted before the exponential.
    """
    point = replace(point, images=point.images[:1], cotangent=point.cotangent[:1])
    config, params = point.config, dict(point.params)
    one = int(rng.integers(config.embed_dim))
    params |= _constant_entry(point, one)
    point = replace(point, params=params)
    tokens = _attention_input(point)
    (wq,), (wk,) = (_layer(0, f"mha.{w}") for w in ("wq", "wk"))
    params[wq], params[wk] = params[wq].copy(), params[wk].copy()
    bias = params.get(_layer(0, "mha.bq")[0], np.zeros(params[wq].shape[1]))
    queries = tokens @ params[wq] + bias
    for head in range(config.head_count):
        columns = np.arange(config.head_dim) + head * config.head_dim
        low, high = (np.take(f(queries, axis=0), columns) for f in (np.min, np.max))
        widest = int(np.argmax(high - low))
        column, middle = columns[widest], (low[widest] + high[widest]) / 2
        reach = high[widest] - middle
        params[wq][one, column] -= middle
        params[wk][one, column] = SCORE * np.sqrt(config.head_dim) / reach
    return replace(point, params=params)


def _constant_entry(point: Point, one: int) -> Flat:
    """The parameters with which this entry of every token is 1 where the first attention reads."""
    params = point.params
    if not _is_post_norm(point):
        names = dict(zip(_layer(0, "norm1_gamma", "norm1_beta"), (0.0, 1.0), strict=True))
    else:
        names = {"patch_embed.kernel": 0.0, "patch_embed.bias": 1.0, "cls_token": 1.0}
    changed = {name: params[name].copy() for name in names if name in params}
    for name, array in changed.items():
        array[one] = names[name]
    if _is_post_norm(point):
        changed["pos_enc.pos"] = params["pos_enc.pos"].copy()
        changed["pos_enc.pos"][:, one] = 0
    return changed


def _attention_input(point: Point) -> Array:
    """What the first layer makes queries of, for the first image."""
    family, model = FAMILIES[point.spec], point.model(point.params)
    trace = family.layer_trace(model.encoder.layers[0], family.embed(model, point.images[0]))
    found: Array = trace.input if _is_post_norm(point) else trace.normed1
    return found


def large_inputs(point: Point, rng: np.random.Generator) -> Point:
    """Hidden features are over 6 for every token, or under -6, in turns; in every layer.

    None is in between, where a GELU has few digits: for all of its tokens it would have no others.
    """
    family, params = FAMILIES[point.spec], dict(point.params)
    activation = getattr(point.config, "activation", ALWAYS["activation"])
    largest = VERY_LARGE if activation == "quick_gelu" else LARGE
    sequences = [family.embed(point.model(params), image) for image in point.images]
    for i in range(point.config.num_layers):
        layer = point.model(params).encoder.layers[i]
        hidden = np.concatenate([family.layer_trace(layer, x).ffn.hidden for x in sequences])
        spread = np.abs(hidden - hidden[0]).max(axis=0)
        factor = SPREAD / np.maximum(spread, SPREAD)
        sign = np.where(np.arange(len(factor)) % 2, -1.0, 1.0)
        target = sign * rng.uniform(0.95, 1, len(factor)) * largest
        w1, b1, w2 = _layer(i, "ffn.w1", "ffn.b1", "ffn.w2")
        params[w1] = params[w1] * factor
        params[b1] = target - factor * (hidden[0] - params[b1])
        params[w2] = params[w2] / np.abs(target)[:, None]
        layer = point.model(params).encoder.layers[i]
        sequences = [family.layer_trace(layer, x).output for x in sequences]
    return replace(point, params=params)


def small_gradients(point: Point, rng: np.random.Generator) -> Point:
    """The output weights of both branches of one layer are tiny, so gradients before them are."""
    i = int(rng.integers(point.config.num_layers))
    tiny = _layer(i, "mha.wo", "ffn.w2")
    params = {n: p * SMALL if n in tiny else p for n, p in point.params.items()}
    return replace(point, params=params)


def other_order(point: Point, rng: np.random.Generator) -> Point:
    """The same numbers, in arrays that are not contiguous."""
    return replace(point, layout=OTHER_ORDER)


_CLS = {"cls_token": True}
_ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "quick_gelu")

KINDS: dict[str, Kind] = {
    "constant-rows": Kind(
        "a zero token at a zero position: a row whose variance is 0", constant_rows, prefers=_CLS
    ),
    "zero-branches": Kind(
        "a zero token, and branches that add zero: variances of 0 up to the head",
        zero_branches,
        prefers=_CLS,
    ),
    "zero-images": Kind("images of zeros", zero_images),
    "blank-images": Kind("an image of zeros, one of equal pixels, and another", blank_images),
    "equal-scores": Kind("all scores equal", equal_scores),
    "extreme-scores": Kind("scores over 88 and under -104", extreme_scores),
    **{
        f"large-{name.replace('_', '-')}": Kind(
            "inputs of the activation over 6 and under -6", large_inputs, {"activation": name}
        )
        for name in _ACTIVATIONS
    },
    "small-gradients": Kind(
        "gradients that are small in one layer", small_gradients, prefers={"num_layers": 2}
    ),
    "other-order": Kind("arrays that are not contiguous", other_order),
}
"""Every kind by its permanent name."""
