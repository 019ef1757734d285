"""Parameters to and from the specification's flat form {dotted name: NumPy array}.

A model's parameters already have the names and layouts of `vitspec`: the name is the path through
the modules. The one difference is that the parameters of the encoder's layers may be stacked, and
then

    encoder.layers.mha.wq (num_layers, D, I)    holds    encoder.layers.{i}.mha.wq (D, I)

Nothing is rounded, transposed or reordered: the conversion loses no bit in either direction, on one
device or on a mesh.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, overload

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jaxtyping import Float

from vitfast.sharding import on_mesh
from vitfast.vision_transformer import VisionTransformer
from vitfast.vit import Pool, ViT
from vitspec.config import ViTConfig
from vitspec.errors import InvalidParameters
from vitspec.records import check_flat
from vitspec.vision_transformer_config import VisionTransformerConfig

Flat = dict[str, Float[np.ndarray, "..."]]
"""Arrays by dotted name."""

DTYPES = ("bfloat16", "float16", "float32", "float64")
"""The scalar types in which a model can be."""

Model = TypeVar("Model", ViT, VisionTransformer)
"""A model of either family."""

LAYERS = "encoder.layers."
"""What the name of a layer's parameter begins with; in its flat names, a number comes next."""


def to_flat(model: ViT | VisionTransformer) -> Flat:
    """The parameters of a model, or its gradients (a model too, as `jax.grad` returns it).

    With several processes, all must call this, and each gets everything.

    Returns:
        The arrays by flat name, in the specification's order; read-only views where possible.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(model)
    arrays = {dotted(path): _to_numpy(leaf) for path, leaf in leaves}
    flat = {}
    for name in model.parameter_shapes():
        if name in arrays:
            flat[name] = arrays[name]
        else:
            layer, rest = name.removeprefix(LAYERS).split(".", maxsplit=1)
            flat[name] = arrays[LAYERS + rest][int(layer)]
    return flat


@overload
def from_flat(
    config: VisionTransformerConfig, flat: Mapping[str, Any], **options: Any
) -> VisionTransformer: ...


@overload
def from_flat(
    config: ViTConfig,
    flat: Mapping[str, Any],
    *,
    in_channels: int,
    height: int,
    width: int,
    pool: Pool = "mean",
    **options: Any,
) -> ViT: ...


def from_flat(config: Any, flat: Mapping[str, Any], **options: Any) -> Any:
    """The model with these parameters, in their scalar type; on the mesh that is set, if one is.

    Args:
        config: the architecture; its type says which family's.
        flat: NumPy arrays with the names and shapes of `vitspec.parameter_shapes`, or of
            `vitspec.models.vision_transformer_parameters.parameter_shapes`.
        options: what else `ViT`, or `VisionTransformer`, takes, but for `param_dtype` and `rngs`.

    Raises:
        NotWellFormed: there is no such model (see `ViT`, `VisionTransformer`).
        MeshDoesNotDivide: a parameter does not divide over the mesh.
        InvalidParameters: names are missing or unexpected, shapes are wrong, scalar types are mixed
            or not among `DTYPES`; everything that is wrong is listed.
    """
    kind = VisionTransformer if isinstance(config, VisionTransformerConfig) else ViT
    model = kind(config, param_dtype=scalar_type(flat), rngs=None, **options)
    _check(model, flat)
    return load(model, flat)


def load(model: Model, flat: Mapping[str, Any]) -> Model:
    """A model like the given one with these parameters, which are known to fit.

    They are read one after the other, each rounded to the model's type, if it has another, and put
    where it lies: if they come from files, nobody ever holds all of them but the devices.
    """

    def leaf(path: Any, shape: Any) -> jax.Array:
        name = dotted(path)
        return _to_devices(_read(flat, name, shape, model), name, model)

    with jax.enable_x64(True):  # else JAX would round float64 to float32
        return jax.tree_util.tree_map_with_path(leaf, model)


def fill(model: Model, flat: Mapping[str, Any]) -> Model:
    """A model like the given one, whose leaves are the NumPy arrays in `flat`.

    For callers that compile: a NumPy leaf becomes a JAX array on entering a jitted function.

    Raises:
        InvalidParameters: as `from_flat`.
    """
    _check(model, flat)
    if (found := np.dtype(scalar_type(flat))) != model.param_dtype:
        raise InvalidParameters(
            _subject(model), [f"scalar type {found}: expected {model.param_dtype}, the model's"]
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, shape: _read(flat, dotted(path), shape, model), model
    )


def _check(model: Model, flat: Mapping[str, Any]) -> None:
    check_flat(flat, model.parameter_shapes(), _subject(model), DTYPES)


def _subject(model: Model) -> str:
    height, width, in_channels = model.image_shape
    return f"parameters of {model.config!r} for {in_channels} x {height} x {width} images"


def _read(flat: Mapping[str, Any], name: str, shape: Any, model: Model) -> np.ndarray:
    """The array of a leaf, made of those of the layers if it is stacked."""
    if name in flat:
        return flat[name].astype(model.param_dtype, copy=False)
    rest = name.removeprefix(LAYERS)
    stacked = np.empty(shape.shape, model.param_dtype)
    for i in range(len(stacked)):
        stacked[i] = flat[f"{LAYERS}{i}.{rest}"]
    return stacked


def scalar_type(flat: Mapping[str, Any]) -> str:
    """The scalar type of flat parameters, or float32, if `fill` is to find that it is wrong."""
    name = np.dtype(getattr(flat.get("patch_embed.bias"), "dtype", np.float32)).name
    return name if name in DTYPES else "float32"


def _to_devices(leaf: np.ndarray, name: str, model: ViT | VisionTransformer) -> jax.Array:
    if not on_mesh():
        return jax.numpy.asarray(leaf)
    spec = model.sharding.parameter(name, stacked=model.scan_layers and name.startswith(LAYERS))
    # Each process, and each device, takes no more than its own part.
    return jax.make_array_from_callback(
        leaf.shape, NamedSharding(jax.sharding.get_mesh(), spec), lambda part: leaf[part]
    )


def _to_numpy(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


def dotted(path: tuple[Any, ...]) -> str:
    """The path of a leaf through the modules; the last step, into the Variable, has no name."""
    return ".".join(str(getattr(key, "name", getattr(key, "idx", ""))) for key in path[:-1])
