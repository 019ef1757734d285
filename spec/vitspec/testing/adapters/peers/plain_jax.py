"""Both models in bare `jax.numpy`, every layer an einsum; written apart from `vitfast`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vitspec.config import ViTConfig
from vitspec.models.parameters import check_model
from vitspec.testing.adapters.frameworks import framework


def plain_jax_vit(
    config: ViTConfig, params: Mapping[str, Any], images: Any, *, cls: bool
) -> dict[str, Any]:
    """The logits of images (B, C, H, W), and some of the intermediate values.

    Raises:
        NotWellFormed: there is no such model.
    """
    check_model(config, *images.shape[1:], cls=cls)
    jnp = framework("jax.numpy")
    x = patches(config, images)
    x = jnp.einsum("btcij,dcij->btd", x, params["patch_embed.kernel"]) + params["patch_embed.bias"]
    if cls:
        token = jnp.broadcast_to(params["cls_token"], (len(images), 1, config.embed_dim))
        x = jnp.concatenate([token, x], axis=1)
    taps = {"embedded": (x := x + params["pos_enc.pos"])}
    for i in range(config.num_layers):
        prefix = f"encoder.layers.{i}."
        layer = {n.removeprefix(prefix): a for n, a in params.items() if n.startswith(prefix)}
        x = x + attention(layer, x, config.head_count)
        x = taps[prefix + "normed1"] = normalize(x, layer["norm1_gamma"], layer["norm1_beta"])
        hidden = jnp.einsum("btd,df->btf", x, layer["ffn.w1"]) + layer["ffn.b1"]
        hidden = jnp.where(hidden > 0, hidden, 0)
        x = x + jnp.einsum("btf,fd->btd", hidden, layer["ffn.w2"]) + layer["ffn.b2"]
        x = taps[prefix + "output"] = normalize(x, layer["norm2_gamma"], layer["norm2_beta"])
    pooled = x[:, 0] if cls else jnp.einsum("btd->bd", x) / x.shape[1]
    logits = jnp.einsum("bd,kd->bk", pooled, params["head.weights"]) + params["head.bias"]
    return {"logits": logits, "pooled": pooled, **taps}


def patches(config: ViTConfig, images: Any) -> Any:
    """The patches (B, T, C, ph, pw) of images (B, C, H, W)."""
    jnp = framework("jax.numpy")
    batch, channels, height, width = images.shape
    p, extents = config.padding, (config.patch_h, config.patch_w)
    padded = jnp.pad(images, ((0, 0), (0, 0), (p, p), (p, p)))
    starts = [
        np.arange(0, length + 2 * p - extent + 1, config.stride) if config.stride else np.arange(0)
        for length, extent in zip((height, width), extents, strict=True)
    ]
    rows, columns = (
        start[:, None] + np.arange(extent) for start, extent in zip(starts, extents, strict=True)
    )
    # (B, C, out_h, ph, W) and then (B, C, out_h, ph, out_w, pw)
    found = padded[:, :, rows, :][:, :, :, :, columns]
    found = found.transpose(0, 2, 4, 1, 3, 5)
    return found.reshape(batch, len(rows) * len(columns), channels, *extents)


def attention(layer: Mapping[str, Any], x: Any, head_count: int) -> Any:
    """Attention of all heads and their projection, (B, n, D)."""
    jnp = framework("jax.numpy")
    q, k, v = (
        jnp.einsum("btd,dhe->bhte", x, _by_head(layer[f"mha.w{letter}"], head_count))
        for letter in "qkv"
    )
    scores = jnp.einsum("bhqe,bhke->bhqk", q, k) / np.sqrt(max(q.shape[-1], 1)).astype(x.dtype)
    unnormalized = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = unnormalized / unnormalized.sum(axis=-1, keepdims=True)
    heads = jnp.einsum("bhqk,bhke->bqhe", weights, v)
    return jnp.einsum("bqm,md->bqd", heads.reshape(*x.shape[:2], -1), layer["mha.wo"])


def normalize(x: Any, gamma: Any, beta: Any) -> Any:
    """Layer normalisation over the last axis."""
    jnp = framework("jax.numpy")
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.einsum("btd,btd->bt", centred, centred)[..., None] / x.shape[-1]
    return centred / jnp.sqrt(variance + np.asarray(1e-6, x.dtype)) * gamma + beta


def _by_head(weights: Any, head_count: int) -> Any:
    """(D, H * d) as (D, H, d)."""
    rows, columns = weights.shape
    return weights.reshape(rows, head_count, columns // head_count)
