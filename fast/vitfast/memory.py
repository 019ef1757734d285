"""What one training step keeps on every device of a mesh, in bytes: nothing is allocated.

Initialising, differentiating and `optimizer.init` are *evaluated for shapes* (`jax.eval_shape`)
under an abstract mesh of explicit axes. Each resulting array then carries its own sharding, which
JAX derived operation by operation, and what is counted is the shard of that sharding. So the
figures are not of the layout that was wished for: a gradient or a moment that came out replicated
would be counted whole. The mesh may be of any size, whatever devices there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from vitfast.sharding import NoSharding, ShardingSpec, ViTTensorParallelSharding
from vitfast.vit import Pool, ViT
from vitspec.config import ViTConfig, vit_large_patch16_config

AXES = ("data", "fsdp", "model")
"""The axes of a mesh, as `vitfast.sharding.make_mesh` has them."""

SIZES: dict[str, ViTConfig] = {
    "tiny": ViTConfig(embed_dim=192, hidden_dim=768, head_count=3),
    "small": ViTConfig(embed_dim=384, hidden_dim=1536, head_count=6),
    "base": ViTConfig(),
    "large": vit_large_patch16_config,
    "1b": ViTConfig(
        patch_h=14,
        patch_w=14,
        stride=14,
        embed_dim=1408,
        hidden_dim=6144,
        head_count=16,
        num_layers=40,
    ),
}
"""ViT-Ti, S, B and L of 16 x 16 patches; "1b" is ViT-g/14 (Zhai et al., Scaling Vision
Transformers, 2022), of 10^9 parameters."""

OPTIMIZERS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "adamw": optax.adamw,
    "lion": optax.lion,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "sgd": optax.sgd,
}
"""By name; they differ in how many arrays they keep for each parameter: 2, 1, 1, 0."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of what lasts for a whole training step.

    Attributes:
        parameters: the model.
        gradients: of the loss by the parameters.
        optimizer_state: moments and counters.
        activations: what the forward keeps for the backward; None if that was not asked for.
    """

    parameters: int
    gradients: int
    optimizer_state: int
    activations: int | None = None

    @property
    def total(self) -> int:
        """All together."""
        return self.parameters + self.gradients + self.optimizer_state + (self.activations or 0)


@dataclass(frozen=True)
class Memory:
    """The footprint of one model on one mesh.

    Attributes:
        mesh: the sizes of its axes.
        parameter_count: how many numbers the model has.
        unsharded: the bytes on one device that holds everything.
        per_device: the bytes on each device of the mesh; all hold equally many.
    """

    mesh: Mapping[str, int]
    parameter_count: int
    unsharded: Footprint
    per_device: Footprint

    @property
    def devices(self) -> int:
        """How many devices the mesh has."""
        return math.prod(self.mesh.values())


@dataclass(frozen=True)
class Training:
    """What is trained, and how: all that decides the bytes but the mesh.

    Attributes:
        config: the architecture.
        height, width, in_channels: of the images.
        pool: "cls" or "mean".
        optimizer: a name of `OPTIMIZERS`.
        param_dtype: type of parameters, gradients and optimiser state.
        dtype: type of the computation; None is `param_dtype`.
        batch: images in a step, over all devices; None leaves the activations out.
        remat: whether the backward computes each layer's activations anew.
    """

    config: ViTConfig
    height: int = 224
    width: int = 224
    in_channels: int = 3
    pool: Pool = "cls"
    optimizer: str = "adamw"
    param_dtype: str = "float32"
    dtype: str | None = None
    batch: int | None = None
    remat: bool = False

    def model(self, sharding: ShardingSpec) -> ViT:
        """A new model; only to be called where shapes are evaluated."""
        return ViT(
            self.config,
            in_channels=self.in_channels,
            height=self.height,
            width=self.width,
            pool=self.pool,
            param_dtype=jnp.dtype(self.param_dtype),
            dtype=None if self.dtype is None else jnp.dtype(self.dtype),
            sharding=sharding,
            use_gradient_checkpointing=self.remat,
            rngs=nnx.Rngs(0),
        )


def measure(training: Training, mesh: Mapping[str, int]) -> Memory:
    """The bytes of everything that lasts, on one device alone and on each of a mesh.

    Args:
        training: what is trained, and how.
        mesh: the sizes of the axes "data", "fsdp" and "model"; those left out are 1. Weights are
            over "fsdp", heads and hidden_dim over "model", the batch over "data" and "fsdp".

    Raises:
        MeshDoesNotDivide: the mesh does not divide a dimension.

    >>> tiny = Training(SIZES["tiny"])
    >>> memory = measure(tiny, {"fsdp": 4})
    >>> memory.parameter_count, memory.unsharded.parameters, memory.per_device.parameters
    (5707816, 22831264, 5710816)
    """
    axes = {name: mesh.get(name, 1) for name in AXES}
    abstract = AbstractMesh(
        tuple(axes.values()), tuple(axes), axis_types=(AxisType.Explicit,) * len(axes)
    )
    sharding = ViTTensorParallelSharding()
    with jax.sharding.use_abstract_mesh(abstract):
        model, per_device = _evaluate(training, sharding, NamedSharding(abstract, sharding.images))
    _, unsharded = _evaluate(training, NoSharding(), None)
    count = sum(leaf.size for leaf in jax.tree.leaves(model))
    return Memory(axes, count, unsharded, per_device)


def _evaluate(
    training: Training, sharding: ShardingSpec, images_sharding: NamedSharding | None
) -> tuple[ViT, Footprint]:
    """The model as shapes, and the bytes on a device of the mesh that is set."""
    model = jax.eval_shape(lambda: training.model(sharding))
    batch = training.batch or (1 if images_sharding is None else images_sharding.mesh.size)
    images = jax.ShapeDtypeStruct(
        (batch, training.height, training.width, training.in_channels),
        jnp.dtype(training.dtype or training.param_dtype),
        sharding=images_sharding,
    )
    optimizer = OPTIMIZERS[training.optimizer](1e-3)
    gradients = jax.eval_shape(jax.grad(lambda model, images: model(images).sum()), model, images)
    return model, Footprint(
        parameters=bytes_per_device(model),
        gradients=bytes_per_device(gradients),
        optimizer_state=bytes_per_device(jax.eval_shape(optimizer.init, model)),
        activations=(
            None
            if training.batch is None
            else bytes_per_device(jax.eval_shape(kept_for_backward, model, images))
        ),
    )


def kept_for_backward(model: nnx.Module, images: jax.Array) -> list[jax.Array]:
    """What the forward keeps for the backward, besides its own arguments."""
    _, backward = jax.vjp(lambda model, images: model(images), model, images)
    arguments = {id(leaf) for leaf in jax.tree.leaves((model, images))}
    return [leaf for leaf in jax.tree.leaves(backward) if id(leaf) not in arguments]


def bytes_per_device(tree: Any) -> int:
    """The bytes of one shard of every array, or of its shape, by the sharding that it has."""
    return sum(math.prod(shard_shape(leaf)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def shard_shape(leaf: jax.Array | jax.ShapeDtypeStruct) -> tuple[int, ...]:
    """The shape of each shard; without a sharding, of the whole."""
    return leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
