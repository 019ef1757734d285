"""One model on many meshes: what the tests of sharding share."""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from support.adapters import point_of
from vitfast import from_flat, to_flat
from vitfast.attention import PlainAttention
from vitfast.implementation import logits_and_vjp, quick_options
from vitfast.sharding import (
    NoSharding,
    ShardingSpec,
    TensorParallelSharding,
    ViTSharding,
    ViTTensorParallelSharding,
    make_mesh,
    shard_images,
)
from vitfast.tokamax_attention import make_tokamax_attention
from vitspec import ViTConfig
from vitspec.testing.families import Case

CONFIG = ViTConfig(
    patch_h=3,
    patch_w=2,
    stride=2,
    embed_dim=64,
    hidden_dim=56,
    head_count=16,
    num_layers=2,
    num_classes=5,
)
"""Eight devices divide embed_dim, hidden_dim and the heads, of which two stay on each; no two sizes
are equal: D 64, F 56, 16 heads of width 4, T 9, B 24, K 5, L 2, C 3."""

SIZE = {"in_channels": 3, "height": 7, "width": 6}

BATCH = 24


class Layout(NamedTuple):
    """A way to lay a model out over devices."""

    axes: dict[str, int]
    sharding: ShardingSpec

    def set(self):
        """The context in which its mesh is set."""
        return jax.set_mesh(make_mesh(**self.axes))


LAYOUTS = {
    "FSDP 1x8": Layout({"fsdp": 8}, ViTSharding()),
    "FSDP 2x4": Layout({"data": 2, "fsdp": 4}, ViTSharding()),
    "tensor parallel 1x8": Layout({"model": 8}, TensorParallelSharding()),
    "tensor parallel 2x4": Layout({"data": 2, "model": 4}, TensorParallelSharding()),
    "both 2x2x2": Layout({"data": 2, "fsdp": 2, "model": 2}, ViTTensorParallelSharding()),
}


@cache
def point(pool):
    """Parameters, images and cotangents, none of them zero, no ReLU near its kink."""
    spec = "vit" if pool == "mean" else "vit-cls"
    return point_of(Case(spec, CONFIG, **SIZE, seed=1, batch=BATCH))


def model_of(pool, sharding=None, **options):
    """The model with the parameters of `point(pool)`, on the mesh that is set."""
    options["sharding"] = NoSharding() if sharding is None else sharding
    return from_flat(CONFIG, point(pool).params, pool=pool, **SIZE, **options)


def images_of(pool, sharding=None):
    """The images of `point(pool)`, channels last, on the mesh that is set."""
    images = jnp.asarray(point(pool).images.transpose(0, 2, 3, 1))
    return images if sharding is None else shard_images(images, sharding)


def attention(name, custom_vjp=True):
    """The attention of that name."""
    return PlainAttention(custom_vjp) if name == "plain" else make_tokamax_attention(name)


class Values(NamedTuple):
    """What a model computes at `point(pool)`: JAX arrays."""

    logits: jax.Array
    d_model: object
    d_images: jax.Array

    def flat(self):
        """The same as NumPy arrays by name."""
        named = {"logits": np.asarray(self.logits), "images": np.asarray(self.d_images)}
        return named | to_flat(self.d_model)


def evaluate(model, pool, sharding=None):
    """Logits, and the gradients of their inner product with the cotangents."""
    cotangent = jnp.asarray(point(pool).cotangent)
    if sharding is not None:
        cotangent = shard_images(cotangent, sharding)
    program = jax.jit(logits_and_vjp, compiler_options=quick_options())
    logits, (d_model, d_images) = program(model, images_of(pool, sharding), cotangent)
    return Values(logits, d_model, d_images)


@cache
def unsharded(pool):
    """What the plainest model computes, on one device: autodiff through a scan."""
    return evaluate(model_of(pool, attention_fn=attention("xla"), custom_vjp=False), pool).flat()
