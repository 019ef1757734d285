"""Where parameters and activations lie on a mesh of devices: as data.

A mesh has three axes, each a number of devices, of which some may be 1:

    data    each group of devices has other images, and all parameters
    fsdp    each device has other images, and its part of the parameters: it gathers a weight when
            it needs it and keeps only its part of the gradient and of the optimiser's state
            (fully sharded data parallelism; Zhao et al., arXiv:2304.11277; ZeRO stage 3)
    model   each device has some of the heads and some of the hidden units, of all images (tensor
            parallelism; Shoeybi et al., arXiv:1909.08053)

`PARAMETER_AXES` says along which dimension a parameter is cut, and a `ShardingSpec` over which mesh
axes. Activations carry the batch axes only, but for the heads and the hidden units between two
products, which are where `model` has them.

    with jax.set_mesh(make_mesh(data=2, fsdp=4)):
        model = ViT(config, ..., sharding=ViTSharding(), rngs=nnx.Rngs(0))
        logits = model(shard_images(images, model.sharding))

Meshes are JAX's explicit ones: the sharding is part of an array's type, so that a gradient has the
sharding of its parameter by construction, and a program that would move data unasked is an error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, get_abstract_mesh, reshard

from vitspec.config import ViTConfig
from vitspec.vision_transformer_config import VisionTransformerConfig

FSDP, MODEL = "fsdp", "model"

PARAMETER_AXES: dict[str, tuple[tuple[str, ...], ...]] = {
    # (D, C, patch_h, patch_w): along D, since C and the patch are small and odd
    "patch_embed.kernel": ((FSDP,), (), (), ()),
    "patch_embed.bias": ((FSDP,),),
    "cls_token": ((FSDP,),),
    "mask_token": ((FSDP,),),
    "pos_enc.pos": ((), (FSDP,)),
    # Weights x W: model along heads and hidden units, fsdp along D. Both along D would make their
    # product divide it, which 256 does not do to the 1408 of ViT-g; hence bq, bk, bv too
    "mha.wq": ((FSDP,), (MODEL,)),
    "mha.wk": ((FSDP,), (MODEL,)),
    "mha.wv": ((FSDP,), (MODEL,)),
    "mha.wo": ((MODEL,), (FSDP,)),
    "mha.bq": ((MODEL,),),
    "mha.bk": ((MODEL,),),
    "mha.bv": ((MODEL,),),
    "mha.bo": ((FSDP,),),
    "ffn.w1": ((FSDP,), (MODEL,)),
    "ffn.b1": ((MODEL, FSDP),),
    "ffn.w2": ((MODEL,), (FSDP,)),
    "ffn.b2": ((FSDP,),),
    "norm1_gamma": ((FSDP,),),
    "norm1_beta": ((FSDP,),),
    "norm2_gamma": ((FSDP,),),
    "norm2_beta": ((FSDP,),),
    "layer_scale1": ((FSDP,),),
    "layer_scale2": ((FSDP,),),
    "final_norm_gamma": ((FSDP,),),
    "final_norm_beta": ((FSDP,),),
    # (K, D): along D, which it contracts; K, often 10, divides over nothing
    "head.weights": ((), (FSDP,)),
    "head.bias": ((),),
    "pooler.weights": ((), (FSDP,)),
    "pooler.bias": ((),),
    "decoder.weights": ((), (FSDP,)),
    "decoder.bias": ((),),
}
"""For each dimension of each parameter: by which kinds of parallelism it is cut, major first."""


class MeshDoesNotDivide(ValueError):  # noqa: N818
    """A dimension is no multiple of the number of devices that it is to be cut over."""


@dataclass(frozen=True)
class ShardingSpec:
    """Over which axes of the mesh what is cut.

    Attributes:
        batch_axes: the images, and all activations.
        fsdp_axis: all parameters but the biases of heads and of queries, keys and values; None: not
            cut.
        model_axis: the heads and the hidden units; None: not cut.
    """

    batch_axes: tuple[str, ...] = ()
    fsdp_axis: str | None = None
    model_axis: str | None = None

    @property
    def images(self) -> PartitionSpec:
        """Where images (batch, height, width, channels) lie, and all else that begins with B."""
        return PartitionSpec(self.batch_axes or None)

    def parameter(self, name: str, *, stacked: bool = False) -> PartitionSpec:
        """Where a parameter lies.

        Args:
            name: its flat name, `encoder.layers.0.mha.wq`, or the part of it that is a key of
                `PARAMETER_AXES`.
            stacked: whether it has a leading dimension of layers, which is never cut.
        """
        return PartitionSpec(*[None] * stacked, *[axes or None for axes in self._cuts(name)])

    def _cuts(self, name: str) -> list[tuple[str, ...]]:
        """The mesh axes over which each dimension of a parameter is cut."""
        _, in_a_layer, rest = name.partition("encoder.layers.")
        key = rest.split(".", maxsplit=1)[1] if in_a_layer and rest[0].isdigit() else rest or name
        mesh_axis = {FSDP: self.fsdp_axis, MODEL: self.model_axis}
        return [
            tuple(axis for kind in kinds if (axis := mesh_axis[kind]) is not None)
            for kinds in PARAMETER_AXES[key]
        ]

    def check(
        self, config: ViTConfig | VisionTransformerConfig, shapes: Mapping[str, Sequence[int]]
    ) -> None:
        """Refuse a mesh that does not divide what it is to cut; without a mesh, nothing is cut.

        Args:
            config: the architecture.
            shapes: the parameters' shapes, by flat name.

        Raises:
            MeshDoesNotDivide: naming every parameter, dimension and number of devices.
            ValueError: the mesh that is set lacks an axis, or its axes are not explicit.
        """
        mesh = get_abstract_mesh()
        if mesh.empty:
            return
        self._check_axes(mesh)
        problems = {}
        for name, shape in shapes.items():
            for dim, (size, axes) in enumerate(zip(shape, self._cuts(name), strict=True)):
                devices = math.prod(mesh.shape[axis] for axis in axes)
                if size % devices:
                    kind = _without_number(name)
                    problems[kind, dim] = (
                        f"{kind}: dimension {dim} of {size} does not divide over {devices} devices "
                        f"({', '.join(axes)})"
                    )
        parts = mesh.shape[self.model_axis] if self.model_axis else 1
        if config.head_count % parts:
            problems["heads", 0] = (
                f"encoder.layers.*.mha.wq: {config.head_count} heads do not divide over {parts} "
                f"devices ({self.model_axis})"
            )
        if problems:
            raise MeshDoesNotDivide(
                f"the mesh {dict(mesh.shape)} does not divide the parameters of {config!r}: "
                + "; ".join(problems.values())
                + "; choose other sizes, or a sharding that leaves these whole"
            )

    def _check_axes(self, mesh: Any) -> None:
        axes = {*self.batch_axes, *filter(None, (self.fsdp_axis, self.model_axis))}
        if missing := axes - set(mesh.axis_names):
            raise ValueError(
                f"{self} needs the mesh axes {', '.join(sorted(missing))}, but the mesh that is "
                f"set has {mesh.axis_names}; see vitfast.make_mesh"
            )
        if any(kind != AxisType.Explicit for kind in mesh.axis_types):
            raise ValueError(
                "the mesh that is set has axes that are not explicit; make it with "
                "vitfast.make_mesh, or jax.make_mesh(..., axis_types=(AxisType.Explicit, ...))"
            )


class NoSharding(ShardingSpec):
    """Every device has everything."""

    def __init__(self) -> None:
        super().__init__()


class ViTSharding(ShardingSpec):
    """FSDP: images over data and fsdp, parameters over fsdp."""

    def __init__(self) -> None:
        super().__init__(batch_axes=("data", "fsdp"), fsdp_axis="fsdp")


class TensorParallelSharding(ShardingSpec):
    """Tensor parallelism: images over data, heads and hidden units over model."""

    def __init__(self) -> None:
        super().__init__(batch_axes=("data",), model_axis="model")


class ViTTensorParallelSharding(ShardingSpec):
    """Both: images over data and fsdp, parameters over fsdp, heads and hidden units over model."""

    def __init__(self) -> None:
        super().__init__(batch_axes=("data", "fsdp"), fsdp_axis="fsdp", model_axis="model")


def make_mesh(
    *, data: int = 1, fsdp: int = 1, model: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh of the devices that there are, with explicit axes data, fsdp and model.

    Args:
        data: groups of devices that differ only in their images.
        fsdp: devices over which the parameters are spread.
        model: devices over which heads and hidden units are spread.
        devices: the devices; None is all of them, of all processes. One of the three sizes may be
            -1: as many as are left.

    Raises:
        ValueError: the sizes are not those of the devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {"data": data, "fsdp": fsdp, "model": model}
    free = [name for name, size in sizes.items() if size == -1]
    given = math.prod(size for size in sizes.values() if size != -1)
    wrong = len(free) > 1 or any(size < 1 for size in sizes.values() if size != -1)
    if not wrong and free and len(devices) % given == 0:
        sizes[free[0]] = len(devices) // given
    if wrong or math.prod(sizes.values()) != len(devices):
        raise ValueError(
            f"make_mesh: expected sizes whose product is the number of devices, {len(devices)}, of "
            f"which one may be -1; got data={data}, fsdp={fsdp}, model={model}"
        )
    return jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Explicit,) * 3, devices=devices
    )


def on_mesh() -> bool:
    """Whether a mesh is set (`jax.set_mesh`)."""
    return not get_abstract_mesh().empty


def shard_images(images: Any, sharding: ShardingSpec) -> jax.Array:
    """Images, or labels, on the mesh that is set.

    With several processes, each gives what its own devices need: processes whose devices differ
    only along the model axis give the same images.

    Raises:
        MeshDoesNotDivide: the batch is no multiple of the devices that it is to be cut over.
    """
    mesh = get_abstract_mesh()
    if mesh.empty:
        return jax.numpy.asarray(images)
    target = NamedSharding(jax.sharding.get_mesh(), sharding.images)
    parts = math.prod(mesh.shape[axis] for axis in sharding.batch_axes)
    own = target.addressable_devices_indices_map((parts,)).values()
    batch = len(images) * parts // len({rows.start for (rows,) in own})
    check_batch(batch, sharding)
    return jax.make_array_from_process_local_data(target, images, (batch, *images.shape[1:]))


def check_batch(batch: int, sharding: ShardingSpec) -> None:
    """Refuse a batch that the mesh does not divide.

    Raises:
        MeshDoesNotDivide: with both numbers.
    """
    mesh = get_abstract_mesh()
    devices = math.prod(mesh.shape[axis] for axis in sharding.batch_axes)
    if batch % devices:
        raise MeshDoesNotDivide(
            f"images: a batch of {batch} does not divide over {devices} devices "
            f"({', '.join(sharding.batch_axes)})"
        )


# ---- what layers do with it: without a mesh, nothing --------------------------------------------


def axes_of(x: jax.Array) -> tuple[Any, ...]:
    """The mesh axes of each dimension of an array, which are part of its type."""
    spec = tuple(jax.typeof(x).sharding.spec)
    return spec + (None,) * (x.ndim - len(spec))


def place(x: jax.Array, *axes: Any) -> jax.Array:
    """The array with these mesh axes, moved if need be; the dimensions that are left have none."""
    return reshard(x, PartitionSpec(*axes)) if on_mesh() else x


def gather(w: jax.Array, model_axis: str | None) -> jax.Array:
    """A parameter whole, but for what the model axis cuts."""
    return place(w, *(_only(axes, model_axis) for axes in axes_of(w)))


def reshape(x: jax.Array, *shape: int) -> jax.Array:
    """An array (B, ...) with another shape (B, ...), its batch where it was.

    JAX cannot know by itself which part of a dimension that is split would carry the mesh axes.
    """
    if not on_mesh():
        return x.reshape(shape)
    return jax.lax.reshape(x, shape, out_sharding=PartitionSpec(axes_of(x)[0]))


def _only(axes: Any, model_axis: str | None) -> str | None:
    named = axes if isinstance(axes, tuple) else (axes,)
    return model_axis if model_axis is not None and model_axis in named else None


def _without_number(name: str) -> str:
    parts = name.split(".")
    return ".".join("*" if part.isdigit() else part for part in parts)
