"""Parameters to and from the specification's flat form {dotted name: NumPy array}.

A model's parameters already have the names and layouts of `vitspec`: the name is the path through
the modules. The one difference is that the parameters of the encoder's layers are stacked, so

    encoder.layers.mha.wq (num_layers, D, I)    holds    encoder.layers.{i}.mha.wq (D, I)

Nothing is rounded, transposed or reordered: the conversion loses no bit in either direction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from vitfast.attention import AttentionFn
from vitfast.model import Pool, VisionTransformer
from vitspec.config import ViTConfig
from vitspec.errors import InvalidParameters
from vitspec.models.parameters import parameter_shapes
from vitspec.records import check_flat

Flat = dict[str, Float[np.ndarray, "..."]]
"""Arrays by dotted name."""

DTYPES = ("bfloat16", "float16", "float32", "float64")
"""The scalar types in which a model can be."""

STACKED = "encoder.layers."
"""What the path of a stacked parameter begins with; in its flat names, a number comes next."""


def to_flat(model: VisionTransformer) -> Flat:
    """The parameters of a model, or its gradients (a model too, as `jax.grad` returns it).

    Returns:
        The arrays by flat name, in the specification's order; read-only views where possible.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(model)
    arrays = {_dotted(path): np.asarray(leaf) for path, leaf in leaves}
    height, width, in_channels = model.image_shape
    names = parameter_shapes(model.config, in_channels, height, width, cls=model.pool == "cls")
    flat = {}
    for name in names:
        if name.startswith(STACKED):
            layer, rest = name.removeprefix(STACKED).split(".", maxsplit=1)
            flat[name] = arrays[STACKED + rest][int(layer)]
        else:
            flat[name] = arrays[name]
    return flat


def from_flat(
    config: ViTConfig,
    flat: Mapping[str, Any],
    *,
    in_channels: int,
    height: int,
    width: int,
    pool: Pool = "mean",
    attention_fn: AttentionFn | None = None,
) -> VisionTransformer:
    """The model with these parameters, in their scalar type.

    Args:
        config: the architecture.
        flat: NumPy arrays with the names and shapes of `vitspec.parameter_shapes`.
        in_channels: channels of the images.
        height: height of the images, in pixels.
        width: width of the images, in pixels.
        pool: "mean" or "cls".
        attention_fn: the attention; None is `make_tokamax_attention()`.

    Raises:
        NotWellFormed: there is no such model (see `VisionTransformer`).
        InvalidParameters: names are missing or unexpected, shapes are wrong, scalar types are mixed
            or not among `DTYPES`; everything that is wrong is listed.
    """
    model = VisionTransformer(
        config,
        in_channels=in_channels,
        height=height,
        width=width,
        pool=pool,
        attention_fn=attention_fn,
        rngs=None,
    )
    model = fill(model, flat)
    with jax.enable_x64(True):  # else JAX would round float64 to float32
        return jax.tree.map(jnp.asarray, model)


def fill(model: VisionTransformer, flat: Mapping[str, Any]) -> VisionTransformer:
    """A model like the given one, whose leaves are the NumPy arrays in `flat`.

    For callers that compile: a NumPy leaf becomes a JAX array on entering a jitted function.

    Raises:
        InvalidParameters: as `from_flat`.
    """
    height, width, in_channels = model.image_shape
    cls = model.pool == "cls"
    subject = f"parameters of {model.config!r} for {in_channels} x {height} x {width} images"
    check_flat(flat, parameter_shapes(model.config, in_channels, height, width, cls=cls), subject)
    dtype = flat["head.bias"].dtype
    if dtype.name not in DTYPES:
        raise InvalidParameters(subject, [f"scalar type {dtype}: expected {', '.join(DTYPES)}"])

    def leaf(path: Any, shape: Any) -> np.ndarray:
        name = _dotted(path)
        if not name.startswith(STACKED):
            return flat[name]
        rest = name.removeprefix(STACKED)
        layers = [flat[f"{STACKED}{i}.{rest}"] for i in range(model.config.num_layers)]
        return np.array(layers, dtype).reshape(shape.shape)  # reshaped for the case of no layers

    return jax.tree_util.tree_map_with_path(leaf, model)


def _dotted(path: tuple[Any, ...]) -> str:
    """The path of a leaf through the modules; the last step, into the Variable, has no name."""
    return ".".join(key.name for key in path[:-1])
