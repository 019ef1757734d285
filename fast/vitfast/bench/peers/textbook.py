"""The pre-norm ViT as a good engineer writes it in jax.numpy; JAX differentiates it.

Apart from the images, everything is an einsum or a function of `jax.nn`. Written apart from
`vitfast`: nothing of its operations is in here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vitfast.bench.cases import PRE_NORM_EPSILON
from vitspec.config import ViTConfig


def pre_norm(config: ViTConfig, params: Mapping[str, Any], images: jax.Array) -> jax.Array:
    """The logits (B, K) of images (B, C, H, W), with the parameters by flat name."""
    B, C, H, W = images.shape
    ph, pw = config.patch_h, config.patch_w
    patches = images.reshape(B, C, H // ph, ph, W // pw, pw)
    x = jnp.einsum("bcyixj,dcij->byxd", patches, params["patch_embed.kernel"])
    x = x.reshape(B, -1, config.embed_dim) + params["patch_embed.bias"]
    cls = jnp.broadcast_to(params["cls_token"], (B, 1, config.embed_dim))
    x = jnp.concatenate([cls, x], axis=1) + params["pos_enc.pos"]
    for i in range(config.num_layers):
        prefix = f"encoder.layers.{i}."
        layer = {n.removeprefix(prefix): a for n, a in params.items() if n.startswith(prefix)}
        x = x + attention(config, layer, normalize(x, layer["norm1_gamma"], layer["norm1_beta"]))
        x = x + mlp(layer, normalize(x, layer["norm2_gamma"], layer["norm2_beta"]))
    x = normalize(x[:, 0], params["final_norm_gamma"], params["final_norm_beta"])
    return x @ params["head.weights"].T + params["head.bias"]


def attention(config: ViTConfig, layer: Mapping[str, Any], x: jax.Array) -> jax.Array:
    """Attention of all heads and their projection, (B, n, D)."""
    shape = (*x.shape[:2], config.head_count, config.head_dim)
    q, k, v = (
        (x @ layer[f"mha.w{letter}"] + layer[f"mha.b{letter}"]).reshape(shape) for letter in "qkv"
    )
    scores = jnp.einsum("bqhe,bkhe->bhqk", q, k) * config.head_dim**-0.5
    heads = jnp.einsum("bhqk,bkhe->bqhe", jax.nn.softmax(scores, axis=-1), v)
    return heads.reshape(*x.shape[:2], -1) @ layer["mha.wo"] + layer["mha.bo"]


def mlp(layer: Mapping[str, Any], x: jax.Array) -> jax.Array:
    """The feed-forward, with the exact GELU."""
    hidden = jax.nn.gelu(x @ layer["ffn.w1"] + layer["ffn.b1"], approximate=False)
    return hidden @ layer["ffn.w2"] + layer["ffn.b2"]


def normalize(x: jax.Array, gamma: jax.Array, beta: jax.Array) -> jax.Array:
    """Layer normalisation over the last axis."""
    mean = x.mean(axis=-1, keepdims=True)
    variance = x.var(axis=-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + PRE_NORM_EPSILON) * gamma + beta
