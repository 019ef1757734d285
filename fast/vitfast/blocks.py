"""The pre-norm blocks of pretrained ViTs as Flax NNX modules, on batches.

As `vitspec.models.block`, `vitspec.layers.self_attention` and `vitspec.layers.mlp`, with the same
parameters, laid out alike. What computes them is `vitfast.ops`; where they lie on a mesh,
`vitfast.sharding`; masks, factors and dropout, `vitfast.conditions`.

Shapes: B images, n rows of width D, F hidden_dim, H heads of width D / H.
"""

from __future__ import annotations

import math
from typing import Any

import jax
from flax import nnx
from jaxtyping import Float

from vitfast.attention import attention_weights
from vitfast.conditions import Setting, draw, drop, drop_branch, keys
from vitfast.layers import Build, LayerTaps, NewParameter, stacked_or_listed, through
from vitfast.sharding import axes_of, gather
from vitspec.vision_transformer_config import VisionTransformerConfig


class SelfAttention(nnx.Module):
    """`vitspec.layers.self_attention`: with biases, a mask, and factors on the weights."""

    def __init__(self, config: VisionTransformerConfig, build: Build, *, new: NewParameter) -> None:
        D, scale = config.embed_dim, 1 / math.sqrt(config.embed_dim)
        self.head_count, self.rate, self.build = config.head_count, config.dropout.attention, build
        self.wq, self.wk, self.wv, self.wo = (
            new(f"mha.w{letter}", D, D, scale=scale) for letter in "qkvo"
        )
        self.bq, self.bk, self.bv = (
            new(f"mha.b{letter}", D) if config.qkv_bias else None for letter in "qkv"
        )
        self.bo = new("mha.bo", D) if config.output_bias else None

    def __call__(
        self, x: Float[jax.Array, "B n D"], mask: Any, factors: Any, key: Any
    ) -> Float[jax.Array, "B n D"]:
        """The heads' (F * A) V side by side, times Wo, plus its bias.

        Args:
            x: one row for each token.
            mask: (#B, #H, #n, #n) Booleans, or None.
            factors: F (#B, #H, #n, #n), or None.
            key: where more factors are drawn from, for dropout, or None.
        """
        query, key_rows, value = self._project(x, "qkv")
        if key is not None and self.rate > 0:
            B, n, H, _ = query.shape
            batch, _, heads, _ = axes_of(query)
            fresh = draw(key, self.rate, (B, H, n, n), (batch, heads), x.dtype)
            factors = fresh if factors is None else fresh * factors.astype(x.dtype)
        masks = () if mask is None else (mask,)
        if factors is None or factors.shape[-1] > 1:
            kind, extra = self._attention(factors)
            attended = kind(query, key_rows, value, *masks, **extra)
        else:
            # One number for each query and head: it may as well multiply what they attend to.
            attended = self.build.attention_fn(query, key_rows, value, *masks)
            attended = attended * factors.astype(x.dtype).transpose(0, 2, 1, 3)
        B, n, H, d = attended.shape
        axis = self.build.sharding.model_axis
        bias = None if self.bo is None else self.bo[...]
        return self.build.ops.linear(attended.reshape(B, n, H * d), self.wo[...], bias, axis)

    def weights(self, x: Float[jax.Array, "B n D"], mask: Any) -> Float[jax.Array, "B H n n"]:
        """The attention weights, before any factor, which `__call__` does not have."""
        query, key = self._project(x, "qk")
        return attention_weights(query, key, mask)

    def _attention(self, factors: Any) -> tuple[Any, dict[str, Any]]:
        if factors is None:
            return self.build.attention_fn, {}
        return self.build.attention_with_factors, {"factors": factors}

    def _project(self, x: jax.Array, letters: str) -> tuple[jax.Array, ...]:
        axis = self.build.sharding.model_axis
        ws = tuple(getattr(self, f"w{letter}")[...] for letter in letters)
        ys = self.build.ops.products(x, ws, axis)
        if self.bq is not None:
            bs = (getattr(self, f"b{letter}")[...] for letter in letters)
            ys = tuple(y + gather(b.astype(y.dtype), axis) for y, b in zip(ys, bs, strict=True))
        B, n, D = ys[0].shape
        return tuple(y.reshape(B, n, self.head_count, D // self.head_count) for y in ys)


class Mlp(nnx.Module):
    """`vitspec.layers.mlp`."""

    def __init__(self, config: VisionTransformerConfig, build: Build, *, new: NewParameter) -> None:
        D, F = config.embed_dim, config.hidden_dim
        self.activation, self.rate = config.activation, config.dropout.activation
        self.build = build
        self.w1, self.b1 = new("ffn.w1", D, F, scale=1 / math.sqrt(D)), new("ffn.b1", F)
        self.w2, self.b2 = new("ffn.w2", F, D, scale=1 / math.sqrt(F)), new("ffn.b2", D)

    def __call__(
        self, x: Float[jax.Array, "B n D"], factors: Any, key: Any
    ) -> Float[jax.Array, "B n D"]:
        """(F * act(x W1 + b1)) W2 + b2."""
        ops, axis = self.build.ops, self.build.sharding.model_axis
        activate = ops.activation(self.activation)
        hidden = activate(ops.linear(x, self.w1[...], self.b1[...], axis))
        hidden = drop(hidden, factors, key, self.rate)
        return ops.linear(hidden, self.w2[...], self.b2[...], axis)


class Block(nnx.Module):
    """`vitspec.models.block`: pre-norm."""

    def __init__(self, config: VisionTransformerConfig, build: Build, *, new: NewParameter) -> None:
        D = config.embed_dim
        self.build, self.epsilon, self.rates = build, config.layer_norm_eps, config.dropout
        self.mha = SelfAttention(config, build, new=new)
        self.ffn = Mlp(config, build, new=new)
        self.norm1_gamma, self.norm1_beta = new("norm1_gamma", D, center=1.0), new("norm1_beta", D)
        self.norm2_gamma, self.norm2_beta = new("norm2_gamma", D, center=1.0), new("norm2_beta", D)
        self.layer_scale1, self.layer_scale2 = (
            new(f"layer_scale{i}", D, center=1.0) if config.layer_scale else None for i in (1, 2)
        )

    def __call__(
        self, x: Float[jax.Array, "B n D"], mask: Any, setting: Setting
    ) -> Float[jax.Array, "B n D"]:
        """y + f2 s2 MLP(LN2(y)) with y = x + f1 s1 MHA(LN1(x))."""
        f, (of_weights, of_attention, of_hidden, of_mlp) = setting.factors, keys(setting.key, 4)
        attended = self.mha(self.normed(x), mask, f.attention_weights, of_weights)
        rate = self.rates.projection
        y = x + self._branch(attended, self.layer_scale1, f.attention, of_attention, rate, setting)
        normed = self._norm(y, self.norm2_gamma, self.norm2_beta)
        fed = self.ffn(normed, f.hidden, of_hidden)
        return y + self._branch(fed, self.layer_scale2, f.mlp, of_mlp, self.rates.output, setting)

    def normed(self, x: Float[jax.Array, "B n D"]) -> Float[jax.Array, "B n D"]:
        """LN1(x), which the attention reads."""
        return self._norm(x, self.norm1_gamma, self.norm1_beta)

    def _branch(
        self, y: jax.Array, scale: Any, factors: Any, key: Any, rate: float, setting: Setting
    ) -> jax.Array:
        """What joins the residual stream: y scaled, with dropout and stochastic depth."""
        if scale is not None:
            y = y * gather(scale[...].astype(y.dtype), None)
        of_entries, of_branch = keys(key, 2)
        return drop_branch(drop(y, factors, of_entries, rate), of_branch, setting.depth_rate)

    def _norm(self, x: jax.Array, gamma: nnx.Param, beta: nnx.Param) -> jax.Array:
        whole = gather(gamma[...], None), gather(beta[...], None)
        return self.build.ops.layer_norm(x, *whole, self.epsilon)


class BlockEncoder(nnx.Module):
    """The blocks, one after the other; stacked or listed as in `vitfast.layers`."""

    def __init__(
        self, config: VisionTransformerConfig, build: Build, *, stacked: bool, new: NewParameter
    ) -> None:
        self.build = build
        self.layers = stacked_or_listed(
            lambda new: Block(config, build, new=new), config.num_layers, stacked=stacked, new=new
        )

    def __call__(
        self,
        x: Float[jax.Array, "B n D"],
        mask: Any,
        settings: Setting,
        *,
        taps: bool = False,
        attention_weights: bool = False,
    ) -> tuple[Float[jax.Array, "B n D"], LayerTaps | None]:
        """Block by block; with no blocks, the identity."""

        def apply(x: jax.Array, block: Block, setting: Setting) -> Any:
            y = block(x, mask, setting)
            if not taps:
                return y, None
            weights = block.mha.weights(block.normed(x), mask) if attention_weights else None
            return y, LayerTaps(y, weights)

        return through(apply, x, self.layers, settings, self.build)
