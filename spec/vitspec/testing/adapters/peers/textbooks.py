"""Textbooks' ViTs in plain Flax modules: the NNX tutorial's (NNX), and D2L's (Linen).

Written after the texts, with their modules' names; `vitfast.textbooks` has the same functions on
the fast path, and shares nothing with these.

Sources: "NNX Vision Transformer" and "NNX Transformer Encoder Block" of the Flax NNX track on
crackedaicode.com; "Transformers for Vision" and "Multi-Head Attention" of d2l-ai/d2l-en.
"""

# mypy: disable-error-code="untyped-decorator"
# Linen's `compact` is known when the module runs, and not before.
from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from vitspec.testing.adapters.frameworks import framework
from vitspec.testing.adapters.jax_flax import JaxAdapter, from_nnx
from vitspec.testing.adapters.peers.abilities import Abilities
from vitspec.testing.adapters.peers.linen import from_linen
from vitspec.testing.adapters.peers.maps_jax import D2L, NNX_TUTORIAL
from vitspec.vision_transformer_config import VisionTransformerConfig

FLAX_EPSILON = 1e-6

TUTORIAL_ABILITIES = Abilities(
    only={
        "activation": ("relu",), "layer_norm_eps": (FLAX_EPSILON,), "qkv_bias": (True,),
        "output_bias": (True,), "layer_scale": (False,), "cls_token": (False,), "pool": ("mean",),
    },
    square_patches=True,
)  # fmt: skip

D2L_ABILITIES = Abilities(
    only={
        "activation": ("gelu_tanh",), "layer_norm_eps": (FLAX_EPSILON,), "layer_scale": (False,),
        "cls_token": (True,), "pool": ("cls",),
    },
    whole_patches=True,
    also=lambda config: replace(config, output_bias=config.qkv_bias),  # one switch is for both
)  # fmt: skip


def nnx_tutorial() -> JaxAdapter:
    """The tutorial's mean-pool ViT."""
    return from_nnx(
        nnx_tutorial_module,
        NNX_TUTORIAL,
        name="nnx-tutorial",
        channels_last=True,
        **TUTORIAL_ABILITIES.identity("flax"),
    )


def d2l() -> JaxAdapter:
    """D2L's `ViT`, in its edition for JAX."""
    return from_linen(d2l_module, D2L, name="d2l", **D2L_ABILITIES.identity("flax"))


def nnx_tutorial_module(
    config: VisionTransformerConfig,
    in_channels: int,
    height: int,
    width: int,
    *,
    seed: int | None = None,
    param_dtype: Any = np.float32,
) -> Any:
    """The tutorial's module, on images (B, H, W, C).

    Its parameters are as `nnx.Rngs(seed)` draws them; without a seed they are 0, to be replaced.

    Raises:
        NotWellFormed: there is no such model.
    """
    config.check_well_formed()
    jnp, nnx, c = framework("jax.numpy"), framework("flax.nnx"), config
    jax, D, P = framework("jax"), c.embed_dim, c.patch_h
    rows, given = (height // P) * (width // P), {"param_dtype": param_dtype}
    zeros = {"kernel_init": nnx.initializers.zeros_init()} if seed is None else {}
    linear, norm = partial(nnx.Linear, **given, **zeros), partial(nnx.LayerNorm, D, **given)

    class MHA(nnx.Module):  # type: ignore[misc, name-defined]
        def __init__(self, rngs: Any) -> None:
            self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
                linear(D, D, rngs=rngs) for _ in range(4)
            )

        def __call__(self, x: Any) -> Any:
            q, k, v = (
                project(x).reshape(*x.shape[:2], c.head_count, -1).swapaxes(1, 2)
                for project in (self.q_proj, self.k_proj, self.v_proj)
            )
            weights = jax.nn.softmax(q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1]).astype(x.dtype))
            return self.out_proj((weights @ v).swapaxes(1, 2).reshape(x.shape))

    class EncoderBlock(nnx.Module):  # type: ignore[misc, name-defined]
        def __init__(self, rngs: Any) -> None:
            self.ln1 = norm(rngs=rngs)
            self.attn = MHA(rngs)
            self.ln2 = norm(rngs=rngs)
            self.ff1 = linear(D, c.hidden_dim, rngs=rngs)
            self.ff2 = linear(c.hidden_dim, D, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = x + self.attn(self.ln1(x))
            return x + self.ff2(nnx.relu(self.ff1(self.ln2(x))))

    class ViT(nnx.Module):  # type: ignore[misc, name-defined]
        def __init__(self, rngs: Any) -> None:
            self.patch_embed = nnx.Conv(
                in_channels, D, (P, P), strides=P, padding="VALID", rngs=rngs, **given, **zeros
            )
            self.pos_embed = nnx.Param(jnp.zeros((rows, D), param_dtype))
            self.blocks = nnx.List([EncoderBlock(rngs) for _ in range(c.num_layers)])
            self.ln = norm(rngs=rngs)
            self.head = linear(D, c.num_classes, rngs=rngs)

        def __call__(self, images: Any) -> Any:
            x = self.patch_embed(images).reshape(len(images), rows, D) + self.pos_embed[...]
            for block in self.blocks:
                x = block(x)
            return self.head(self.ln(x).mean(axis=1))

    return ViT(nnx.Rngs(seed or 0))


def d2l_module(config: VisionTransformerConfig) -> Any:
    """The book's module, on images (B, H, W, C); dropout is left out, as when it is evaluated.

    Raises:
        NotWellFormed: there is no such model.
    """
    config.check_well_formed()
    jnp, nn, jax, c = framework("jax.numpy"), framework("flax.linen"), framework("jax"), config
    D, patch = c.embed_dim, (c.patch_h, c.patch_w)
    projection = partial(nn.Dense, D, use_bias=c.qkv_bias)

    class PatchEmbedding(nn.Module):  # type: ignore[misc, name-defined]
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Conv(D, patch, strides=patch, padding="SAME", name="conv")(x)
            return x.reshape(len(x), -1, D)

    class MultiHeadAttention(nn.Module):  # type: ignore[misc, name-defined]
        @nn.compact
        def __call__(self, x: Any) -> Any:
            q, k, v = (
                projection(name=f"W_{letter}")(x)
                .reshape(*x.shape[:2], c.head_count, -1)
                .swapaxes(1, 2)
                for letter in "qkv"
            )
            scores = q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1]).astype(x.dtype)
            heads = jax.nn.softmax(scores) @ v
            return projection(name="W_o")(heads.swapaxes(1, 2).reshape(x.shape))

    class ViTMLP(nn.Module):  # type: ignore[misc, name-defined]
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.gelu(nn.Dense(c.hidden_dim)(x))  # modules are numbered as they are made
            return nn.Dense(D)(x)

    class ViTBlock(nn.Module):  # type: ignore[misc, name-defined]
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = x + MultiHeadAttention(name="attention")(nn.LayerNorm()(x))
            return x + ViTMLP(name="mlp")(nn.LayerNorm()(x))

    class Head(nn.Module):  # type: ignore[misc, name-defined]
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.Dense(c.num_classes, name="layers_1")(nn.LayerNorm(name="layers_0")(x))

    class ViT(nn.Module):  # type: ignore[misc, name-defined]
        @nn.compact
        def __call__(self, images: Any) -> Any:
            x = PatchEmbedding(name="patch_embedding")(images)
            zeros = nn.initializers.zeros
            token = self.param("cls_token", zeros, (1, 1, D))
            x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], axis=1)
            x = x + self.param("pos_embed", zeros, (1, c.token_count, D))
            for i in range(c.num_layers):
                x = ViTBlock(name=f"blks_{i}")(x)
            return Head(name="head")(x[:, 0])

    return ViT()
