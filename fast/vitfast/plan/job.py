"""What is planned: a model, how it is trained, and the mesh; and its parameters' parts.

Letters, here and in the modules beside: B images on one device, n rows of a sequence, T patches,
D embed_dim, F hidden_dim, H heads, P numbers in a patch, K classes, L layers; d, f and m the sizes
of the mesh's axes data, fsdp and model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, use_abstract_mesh

from vitfast.memory import AXES
from vitfast.sharding import ViTTensorParallelSharding
from vitspec.models.vision_transformer_parameters import parameter_shapes
from vitspec.presets import PRESETS
from vitspec.vision_transformer_config import VisionTransformerConfig

SHARDING = ViTTensorParallelSharding()
"""What is planned for; with axes of size 1, it is each of the others."""

_PATCH_14 = replace(PRESETS["hf-vit-base"], patch_h=14, patch_w=14)

SIZES: Mapping[str, VisionTransformerConfig] = {
    "vit-ti": PRESETS["deit-tiny"],
    "vit-s": PRESETS["deit-small"],
    "vit-b": PRESETS["hf-vit-base"],
    "vit-l": PRESETS["hf-vit-large"],
    "vit-h": replace(
        _PATCH_14, embed_dim=1280, hidden_dim=5120, head_count=16, num_layers=32
    ),
    "vit-g": replace(
        _PATCH_14, embed_dim=1408, hidden_dim=6144, head_count=16, num_layers=40
    ),
    "vit-22b": replace(
        _PATCH_14, embed_dim=6144, hidden_dim=24576, head_count=48, num_layers=48
    ),
}  # fmt: skip
"""Classifiers of 1000 classes at 224 x 224. Ti to H: Dosovitskiy et al., 2010.11929, and Touvron
et al., 2012.12877; g: Zhai et al., 2106.04560; 22B: Dehghani et al., 2302.05442, of that size only:
its parallel blocks and its normalisation of queries and keys are not in this family."""

LAYER = "encoder.layers.0."


@dataclass(frozen=True)
class Job:
    """A training step on a mesh.

    Attributes:
        config: the model, a classifier.
        batch: images in a step, over all devices.
        data, fsdp, model: the sizes of the mesh's axes.
        dtype: type of the computation.
        param_dtype: type of parameters, gradients and moments.
        optimizer: a name of `vitfast.memory.OPTIMIZERS`.
        remat: whether the backward computes each layer's activations anew.
        fused_attention: whether attention weights are never written to memory, as Tokamax's kernels
            for GPUs and TPUs do it; `PlainAttention`, for CPUs, writes them.
    """

    config: VisionTransformerConfig
    batch: int
    data: int = 1
    fsdp: int = 1
    model: int = 1
    dtype: str = "bfloat16"
    param_dtype: str = "float32"
    optimizer: str = "adamw"
    remat: bool = False
    fused_attention: bool = True

    def check(self) -> None:
        """Refuse what cannot be trained so.

        Raises:
            MeshDoesNotDivide: a parameter does not divide over the mesh; all are listed.
            ValueError: the batch does not divide.
        """
        if self.batch % self.batch_parts:
            raise ValueError(
                f"a batch of {self.batch} does not divide over {self.batch_parts} devices "
                f"(data {self.data} x fsdp {self.fsdp}); give a multiple"
            )
        one_layer = replace(self.config, num_layers=min(1, self.config.num_layers))
        mesh = AbstractMesh(tuple(self.mesh.values()), AXES, axis_types=(AxisType.Explicit,) * 3)
        with use_abstract_mesh(mesh):
            SHARDING.check(self.config, parameter_shapes(one_layer))

    def check_model(self) -> None:
        """Refuse a model of which this is no plan, on any mesh.

        Raises:
            ValueError: it has no classifier.
        """
        if not self.config.num_classes:
            raise ValueError(
                "the plan is of training a classifier, and this configuration has none "
                "(num_classes is 0); add --set num_classes=1000"
            )

    @property
    def mesh(self) -> dict[str, int]:
        """The sizes of its axes."""
        return {"data": self.data, "fsdp": self.fsdp, "model": self.model}

    @property
    def devices(self) -> int:
        """How many the mesh has."""
        return math.prod(self.mesh.values())

    @property
    def batch_parts(self) -> int:
        """Over how many devices the batch is cut."""
        return self.data * self.fsdp

    @property
    def images(self) -> int:
        """B: the images on one device."""
        return self.batch // self.batch_parts

    @property
    def bytes_each(self) -> tuple[int, int]:
        """Of a number that is computed, and of one that is kept: parameter, gradient, moment."""
        return jnp.dtype(self.dtype).itemsize, jnp.dtype(self.param_dtype).itemsize


class Parameter(NamedTuple):
    """A parameter, or those of the same place in all layers.

    Attributes:
        name: within its layer, or the whole.
        shape: whole.
        layers: how many there are; 0 if it is not one of a layer's.
        by_fsdp, by_model: whether that axis cuts it.
    """

    name: str
    shape: tuple[int, ...]
    layers: int
    by_fsdp: bool
    by_model: bool

    @property
    def arrays(self) -> int:
        """How many of this shape the model has."""
        return self.layers or 1

    @property
    def is_weight(self) -> bool:
        """Whether activations are multiplied by it as a matrix."""
        return len(self.shape) > 1 and self.name != "pos_enc.pos"

    def gathered(self, job: Job) -> int:
        """Its numbers on a device that uses it: all but what the model axis cuts off."""
        return math.prod(self.shape) // (job.model if self.by_model else 1)

    def held(self, job: Job) -> int:
        """Its numbers on a device between uses."""
        return self.gathered(job) // (job.fsdp if self.by_fsdp else 1)


def parameters(job: Job) -> tuple[Parameter, ...]:
    """Every parameter, by the axes that `vitfast.sharding.PARAMETER_AXES` gives it."""
    return _parameters(job.config)


@lru_cache(maxsize=8)
def _parameters(config: VisionTransformerConfig) -> tuple[Parameter, ...]:
    return tuple(_each(config))


def _each(config: VisionTransformerConfig) -> Iterator[Parameter]:
    layers = config.num_layers
    for name, shape in parameter_shapes(replace(config, num_layers=min(1, layers))).items():
        axes: set[str | None] = set()
        for cut in SHARDING.parameter(name):
            axes.update(cut if isinstance(cut, tuple) else (cut,))
        in_layer = name.startswith(LAYER)
        yield Parameter(
            name.removeprefix(LAYER), shape, layers * in_layer, "fsdp" in axes, "model" in axes
        )
