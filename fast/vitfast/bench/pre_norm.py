"""The pre-norm ViT made of vitfast's operations, to be measured beside those of others.

    x     = cls | patches W + b;  x = x + pos
    x     = x + attention(LN1(x)),  x = x + gelu(LN2(x) W1 + b1) W2 + b2     in each layer
    logits = head(LN(x)[:, 0])

Every operation has the backward that `vitfast.ops` gives it by hand. This is the function of
`transformers.ViTForImageClassification`, for the benchmark alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vitfast.attention import AttentionFn, PlainAttention
from vitfast.bench.cases import PRE_NORM_EPSILON
from vitfast.ops import BY_HAND
from vitspec.config import ViTConfig

LAYERS = "encoder.layers."
linear, layer_norm, gelu = BY_HAND.linear, BY_HAND.layer_norm, BY_HAND.gelu
Arrays = Mapping[str, Any]


def pre_norm_vit(
    config: ViTConfig,
    params: dict[str, Any],
    images: jax.Array,
    attention_fn: AttentionFn | None = None,
) -> jax.Array:
    """The logits (B, K) of images (B, H, W, C).

    Args:
        config: the architecture.
        params: arrays by name; those of the layers under "layers", each in a dictionary of its own,
            in a list of them, or in one dictionary in which they are stacked on a leading axis.
        images: in the type of the parameters; the patches do not overlap.
        attention_fn: the attention; None is `PlainAttention()`.
    """
    attention_fn = attention_fn or PlainAttention()
    kernel = params["patch_embed.kernel"].transpose(2, 3, 1, 0)  # (ph, pw, C, D)
    rows = patch_rows(images, *kernel.shape[:2])
    x = linear(rows, kernel.reshape(-1, config.embed_dim), params["patch_embed.bias"])
    cls_row = jnp.broadcast_to(params["cls_token"], (len(images), 1, config.embed_dim))
    x = jnp.concatenate([cls_row, x], axis=1) + params["pos_enc.pos"]
    if isinstance(params["layers"], list):
        for layer in params["layers"]:
            x = encoder_layer(config, layer, x, attention_fn)
    else:
        x, _ = jax.lax.scan(
            lambda x, layer: (encoder_layer(config, layer, x, attention_fn), None),
            x,
            params["layers"],
        )
    # Of the last layer norm only the first row is read.
    x = layer_norm(x[:, 0], params["final_norm_gamma"], params["final_norm_beta"], PRE_NORM_EPSILON)
    return linear(x, params["head.weights"].T, params["head.bias"])


def encoder_layer(config: ViTConfig, p: Arrays, x: Any, attention_fn: AttentionFn) -> Any:
    """One pre-norm layer, (B, n, D) to (B, n, D)."""
    heads = (*x.shape[:2], config.head_count, config.head_dim)
    normed = layer_norm(x, p["norm1_gamma"], p["norm1_beta"], PRE_NORM_EPSILON)
    query, key, value = (
        linear(normed, p[f"mha.w{letter}"], p[f"mha.b{letter}"]).reshape(heads) for letter in "qkv"
    )
    attended = attention_fn(query, key, value).reshape(*x.shape[:2], config.inner_dim)
    x = x + linear(attended, p["mha.wo"], p["mha.bo"])
    normed = layer_norm(x, p["norm2_gamma"], p["norm2_beta"], PRE_NORM_EPSILON)
    hidden = gelu(linear(normed, p["ffn.w1"], p["ffn.b1"]))
    return x + linear(hidden, p["ffn.w2"], p["ffn.b2"])


def patch_rows(images: jax.Array, ph: int, pw: int) -> jax.Array:
    """The pixels of each patch: (B, T, ph * pw * C)."""
    B, H, W, C = images.shape
    grid = images.reshape(B, H // ph, ph, W // pw, pw, C).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(B, (H // ph) * (W // pw), ph * pw * C)


def by_layer(config: ViTConfig, flat: Arrays, *, stacked: bool) -> dict[str, Any]:
    """Parameters by flat name as `pre_norm_vit` takes them."""
    layers = [
        {n.removeprefix(f"{LAYERS}{i}."): a for n, a in flat.items() if f"{LAYERS}{i}." in n}
        for i in range(config.num_layers)
    ]
    outside = {name: array for name, array in flat.items() if not name.startswith(LAYERS)}
    if not stacked:
        return outside | {"layers": layers}
    return outside | {"layers": jax.tree.map(lambda *arrays: jnp.stack(arrays), *layers)}


def to_flat(params: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `by_layer`."""
    layers = params["layers"]
    if not isinstance(layers, list):
        depth = len(next(iter(layers.values())))
        layers = [{name: array[i] for name, array in layers.items()} for i in range(depth)]
    flat = {name: array for name, array in params.items() if name != "layers"}
    return flat | {
        f"{LAYERS}{i}.{name}": array
        for i, layer in enumerate(layers)
        for name, array in layer.items()
    }
