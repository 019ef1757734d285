"""The pre-norm ViT made of Flax NNX's own modules; JAX differentiates it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vitfast.bench.cases import PRE_NORM_EPSILON, Case


class Layer(nnx.Module):
    """One pre-norm encoder layer."""

    def __init__(self, case: Case, rngs: nnx.Rngs) -> None:
        c, D = case.config, case.config.embed_dim
        self.attention = nnx.MultiHeadAttention(
            c.head_count, D, c.inner_dim, decode=False, rngs=rngs
        )
        self.norm1, self.norm2 = (
            nnx.LayerNorm(D, epsilon=PRE_NORM_EPSILON, rngs=rngs) for _ in range(2)
        )
        self.linear1 = nnx.Linear(D, c.hidden_dim, rngs=rngs)
        self.linear2 = nnx.Linear(c.hidden_dim, D, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, n, D) to (B, n, D)."""
        x = x + self.attention(self.norm1(x))
        hidden = nnx.gelu(self.linear1(self.norm2(x)), approximate=False)
        return x + self.linear2(hidden)


class PreNormViT(nnx.Module):
    """The module, on images (B, H, W, C)."""

    def __init__(self, case: Case, rngs: nnx.Rngs) -> None:
        c, D = case.config, case.config.embed_dim
        channels, height, width = case.image_shape
        patch, tokens = (c.patch_h, c.patch_w), (height // c.patch_h) * (width // c.patch_w)
        self.patch_embed = nnx.Conv(channels, D, patch, strides=patch, padding="VALID", rngs=rngs)
        self.cls_token = nnx.Param(jnp.zeros((1, 1, D)))
        self.pos_embed = nnx.Param(jnp.zeros((1, tokens + 1, D)))
        self.layers = nnx.List([Layer(case, rngs) for _ in range(c.num_layers)])
        self.norm = nnx.LayerNorm(D, epsilon=PRE_NORM_EPSILON, rngs=rngs)
        self.head = nnx.Linear(D, c.num_classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """The logits (B, K)."""
        x = self.patch_embed(images)
        x = x.reshape(len(x), -1, x.shape[-1])
        cls = jnp.broadcast_to(self.cls_token[...], (len(x), 1, x.shape[-1]))
        x = jnp.concatenate([cls, x], axis=1) + self.pos_embed[...]
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)[:, 0])


def to_theirs(case: Case, flat: dict[str, np.ndarray]) -> dict[str, Any]:
    """Our parameters by the module's names, and laid out as it has them."""
    c = case.config
    D, heads = c.embed_dim, (c.head_count, c.head_dim)
    theirs = {
        "patch_embed.kernel": flat["patch_embed.kernel"].transpose(2, 3, 1, 0),
        "patch_embed.bias": flat["patch_embed.bias"],
        "cls_token": flat["cls_token"].reshape(1, 1, D),
        "pos_embed": flat["pos_enc.pos"][None],
        "norm.scale": flat["final_norm_gamma"],
        "norm.bias": flat["final_norm_beta"],
        "head.kernel": flat["head.weights"].T,
        "head.bias": flat["head.bias"],
    }
    for i in range(c.num_layers):
        ours, them = f"encoder.layers.{i}.", f"layers.{i}."
        for letter, name in zip("qkv", ("query", "key", "value"), strict=True):
            weights, bias = flat[f"{ours}mha.w{letter}"], flat[f"{ours}mha.b{letter}"]
            theirs[f"{them}attention.{name}.kernel"] = weights.reshape(D, *heads)
            theirs[f"{them}attention.{name}.bias"] = bias.reshape(heads)
        theirs[f"{them}attention.out.kernel"] = flat[f"{ours}mha.wo"].reshape(*heads, D)
        theirs[f"{them}attention.out.bias"] = flat[f"{ours}mha.bo"]
        for j in "12":
            theirs[f"{them}linear{j}.kernel"] = flat[f"{ours}ffn.w{j}"]
            theirs[f"{them}linear{j}.bias"] = flat[f"{ours}ffn.b{j}"]
            theirs[f"{them}norm{j}.scale"] = flat[f"{ours}norm{j}_gamma"]
            theirs[f"{them}norm{j}.bias"] = flat[f"{ours}norm{j}_beta"]
    return theirs
