"""The practical family on the fast path, beside its specification: what its tests share."""

from functools import cache
from typing import NamedTuple

import jax
import numpy as np

from support.compare import assert_close, relative_error
from vitfast import (
    BlockFactors,
    Factors,
    Outputs,
    PlainAttention,
    from_flat,
    make_tokamax_attention,
)
from vitfast.implementation import compiled
from vitspec.models.block import BlockFactors as SpecFactors
from vitspec.models.vision_transformer import Conditions
from vitspec.models.vision_transformer import VisionTransformer as Spec
from vitspec.vision_transformer_config import VisionTransformerConfig

OWN_SIZE, OTHER_SIZE = (7, 9), (10, 7)
"""Neither is a multiple of the patches, 3 x 2: the grids are 2 x 4 and 3 x 3."""


def config_of(**fields):
    """A configuration in which no two sizes are equal."""
    defaults = {
        "image_h": OWN_SIZE[0], "image_w": OWN_SIZE[1], "in_channels": 2, "patch_h": 3,
        "patch_w": 2, "embed_dim": 12, "hidden_dim": 11, "head_count": 3, "num_layers": 2,
        "num_classes": 5, "layer_norm_eps": 1e-5,
    }  # fmt: skip
    return VisionTransformerConfig(**defaults | fields)


class Point(NamedTuple):
    """Everything that a gradient is taken at, in the form that the fast path takes.

    Attributes:
        config: the architecture.
        flat: the parameters.
        images: channels last.
        conditions: arrays, by their name in `VisionTransformer.__call__`.
        cotangents: of all outputs.
        other_size: whether the images are of another size than the configuration's.
    """

    config: VisionTransformerConfig
    flat: dict
    images: np.ndarray
    conditions: dict
    cotangents: Outputs
    other_size: bool = False


def point_of(config, seed, batch=2, *, size=None, weights=True, **wanted):
    """A point of normal numbers.

    Args:
        config: the architecture.
        seed: of everything.
        batch: how many images.
        size: (height, width) of the images, if not the configuration's.
        weights: whether factors multiply single attention weights too.
        wanted: "masked_patches", "attention_mask", "head_mask", "factors": whether there are any.
    """
    rng, c = np.random.default_rng(seed), config
    own = (c.image_h, c.image_w)
    height, width = size or own
    patches = int(np.prod(c.grid_of(height, width)))
    n, L, H = patches + c.cls_token, c.num_layers, c.head_count
    conditions = {}
    if wanted.get("masked_patches"):
        conditions["masked_patches"] = rng.random((batch, patches)) < 0.4
    if wanted.get("attention_mask"):
        mask = rng.random((batch, 1, n, n)) < 0.7
        mask[0, 0, 1] = False  # a query that may attend to nothing
        conditions["attention_mask"] = mask
    if wanted.get("head_mask"):
        conditions["head_mask"] = rng.standard_normal((L, H))
    if wanted.get("factors"):
        conditions["factors"] = Factors(
            rng.standard_normal((batch, n, c.embed_dim)),
            BlockFactors(
                rng.standard_normal((L, batch, H, n, n if weights else 1)),
                rng.standard_normal((L, batch, n, c.embed_dim)),
                rng.standard_normal((L, batch, n, c.hidden_dim)),
                rng.standard_normal((L, batch, 1, 1)),
            ),
        )
    flat = Spec.init(c, rng=rng).to_flat()
    images = rng.standard_normal((batch, height, width, c.in_channels))
    outputs = spec_outputs(Point(c, flat, images, conditions, None, (height, width) != own))
    cotangents = Outputs(*(None if o is None else rng.standard_normal(o.shape) for o in outputs))
    return Point(c, flat, images, conditions, cotangents, (height, width) != own)


# ---- the specification, image by image -----------------------------------------------------------


def spec_conditions(point, b):
    """What the specification is given for image b."""
    given, L = point.conditions, point.config.num_layers
    factors, heads = given.get("factors", Factors()), given.get("head_mask")

    def block(i):
        own = [None if f is None else f[i, b] for f in factors.blocks]
        if heads is not None:
            head = heads[i][:, None, None]
            own[0] = head if own[0] is None else own[0] * head
        return SpecFactors(*own)

    masked, mask = given.get("masked_patches"), given.get("attention_mask")
    return Conditions(
        masked_patches=None if masked is None else masked[b],
        attention_mask=None if mask is None else mask[b, 0],
        embedding_factors=None if factors.embedding is None else factors.embedding[b],
        block_factors=tuple(block(i) for i in range(L)),
        interpolate_positions=point.other_size,
    )


def spec_outputs(point):
    """The specification's outputs, as the fast path has them."""
    model = Spec.from_flat(point.config, point.flat)
    found = [
        model.forward(image.transpose(2, 0, 1).copy(), spec_conditions(point, b))
        for b, image in enumerate(point.images)
    ]
    return stack_outputs(found)


def stack_outputs(found):
    """The outputs of several images, channels last."""

    def stack(name):
        parts = [getattr(one, name) for one in found]
        return None if parts[0] is None else np.stack(parts)

    outputs = Outputs(*(stack(name) for name in Outputs._fields))
    if outputs.reconstruction is None:
        return outputs
    return outputs._replace(reconstruction=outputs.reconstruction.transpose(0, 2, 3, 1))


def spec_gradients(point):
    """The cotangents of the parameters, summed over the batch, and of the images."""
    model = Spec.from_flat(point.config, point.flat)
    flats, d_images = [], []
    for b, image in enumerate(point.images):
        d = {f"d_{k}": v[b] for k, v in point.cotangents._asdict().items() if v is not None}
        if "d_reconstruction" in d:
            d["d_reconstruction"] = d["d_reconstruction"].transpose(2, 0, 1).copy()
        grads, d_image = model.backward(
            image.transpose(2, 0, 1).copy(), **d, conditions=spec_conditions(point, b)
        )
        flats.append(grads.to_flat())
        d_images.append(d_image.transpose(1, 2, 0))
    return {name: sum(flat[name] for flat in flats) for name in flats[0]}, np.stack(d_images)


# ---- the fast path -------------------------------------------------------------------------------


def attention(name, custom_vjp=True):
    """The attention of that name."""
    return PlainAttention(custom_vjp) if name == "plain" else make_tokamax_attention(name)


def model_of(point, **options):
    """The fast path's model with the point's parameters."""
    return from_flat(point.config, point.flat, **options)


def outputs_of(model, images, conditions, *, other_size):
    """All outputs."""
    return model(images, interpolate_positions=other_size, **conditions)


def outputs_and_vjp(model, images, conditions, cotangents, *, other_size):
    """All outputs, and the cotangents of model and images."""
    outputs, pullback = jax.vjp(
        lambda model, images: outputs_of(model, images, conditions, other_size=other_size),
        model,
        images,
    )
    return outputs, pullback(cotangents)


@cache
def program(function, other_size):
    """One of the two above, compiled quickly, which serves all points of one kind."""

    def fixed(*arguments):
        return function(*arguments, other_size=other_size)

    return compiled(fixed, True)


def assert_outputs_close(outputs, truth, tolerance):
    """Require the same outputs to be there, and each to be close."""
    for name, expected in truth._asdict().items():
        found = getattr(outputs, name)
        assert (found is None) == (expected is None), name
        if expected is not None:
            assert_close(np.asarray(found), expected, tolerance, name)


def assert_gradients_close(found, truth, tolerance):
    """Require the same names, and each gradient to be close.

    That of a key's bias is 0, and rounding is all there is of it: it is measured by the size of
    the query's bias's.
    """
    assert found.keys() == truth.keys()
    for name, expected in truth.items():
        if name.endswith("mha.bk"):
            scale = np.abs(truth[name.removesuffix("bk") + "bq"]).max()
            assert np.abs(found[name]).max() <= tolerance * scale, name
        else:
            error = relative_error(found[name], expected)
            assert error <= tolerance, f"{name}: relative error {error:.2e}"
