"""The layers of the Vision Transformer as Flax NNX modules, on batches.

Each computes what the layer of the same name in `vitspec.layers` or `vitspec.models.transformer`
computes, and has the same parameters, laid out alike. What computes them is `vitfast.ops`; where
they lie on a mesh, `vitfast.sharding`.

Shapes: B images, n rows of width D, F hidden_dim, I = head_count * head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Float

from vitfast.attention import AttentionFn, attention_weights
from vitfast.ops import Operations
from vitfast.sharding import ShardingSpec, axes_of, gather, on_mesh, reshape
from vitspec.config import ViTConfig
from vitspec.geometry import windows


@dataclass(frozen=True)
class Build:
    """How layers are built and compute: what a model hands down to all of them.

    Attributes:
        attention_fn: the attention.
        ops: the other operations, with their derivatives.
        sharding: where things lie on a mesh.
        checkpoint: whether a layer's intermediate values are computed again in the backward.
        attention_with_factors: one that can multiply its weights, called with `factors`; None if
            there is none.
    """

    attention_fn: AttentionFn
    ops: Operations
    sharding: ShardingSpec
    checkpoint: bool
    attention_with_factors: AttentionFn | None = None


@runtime_checkable
class NewParameter(Protocol):
    """Makes the parameters of a module, which says only what they should be like."""

    def __call__(
        self, name: str, *shape: int, scale: float = 0.0, center: float = 0.0
    ) -> nnx.Param:
        """A parameter around `center`, with standard deviation `scale`.

        Its name is the key of `vitfast.sharding.PARAMETER_AXES`.
        """


class Conv2D(nnx.Module):
    """The patch embedding, `vitspec.layers.conv2d`: a cross-correlation, channels last here."""

    def __init__(
        self, config: ViTConfig, in_channels: int, build: Build, *, new: NewParameter
    ) -> None:
        self.stride, self.padding, self.build = config.stride, config.padding, build
        D, window = config.embed_dim, (in_channels, config.patch_h, config.patch_w)
        scale = 1 / math.sqrt(math.prod(window))
        self.kernel = new("patch_embed.kernel", D, *window, scale=scale)
        self.bias = new("patch_embed.bias", D)

    def __call__(self, x: Float[jax.Array, "B H W C"]) -> Float[jax.Array, "B T D"]:
        """y[o,t] = sum of x_pad[c, i s + di, j s + dj] kernel[o,c,di,dj] over c, di, dj; + bias.

        Token t = i * out_w + j. The windows are cut out and multiplied as a matrix. XLA's own
        convolution is the same map, but its compiler for the CPU (jaxlib 0.10.2 and 0.12.0) aborts
        on some of the gradients.
        """
        D, C, ph, pw = self.kernel.shape
        p, s = self.padding, self.stride
        x_pad = jnp.pad(x, ((0, 0), (p, p), (p, p), (0, 0))) if p else x
        B, H, W, _ = x_pad.shape
        if (ph, pw) == (s, s) and H % s == W % s == 0:
            tiles = reshape(x_pad, B, H // s, s, W // s, s, C).transpose(0, 1, 3, 5, 2, 4)
            patches = reshape(tiles, B, (H // s) * (W // s), C * s * s)
        else:
            pixels = window_pixels(x_pad.shape[1:], (C, ph, pw), s)
            patches = jax.vmap(lambda row: row[pixels])(reshape(x_pad, B, H * W * C))
        weight = self.kernel[...].reshape(D, C * ph * pw).T
        return self.build.ops.linear(patches, weight, self.bias[...])


def window_pixels(shape: Sequence[int], window: Sequence[int], stride: int) -> np.ndarray:
    """Which entries of a flattened (H, W, C) image each window reads: (T, C * ph * pw)."""
    _, ph, pw = window
    pixels = np.arange(math.prod(shape)).reshape(shape).transpose(2, 0, 1)
    view = windows(pixels, ph, pw, stride).transpose(1, 2, 0, 3, 4)
    return view.reshape(math.prod(view.shape[:2]), math.prod(window))


class PositionalEncoding(nnx.Module):
    """`vitspec.layers.positional_encoding`: adds one learned row to each row of the sequence."""

    def __init__(self, n: int, embed_dim: int, *, new: NewParameter) -> None:
        self.pos = new("pos_enc.pos", n, embed_dim, scale=0.02)

    def __call__(self, x: Float[jax.Array, "B n D"]) -> Float[jax.Array, "B n D"]:
        """x + pos."""
        return x + gather(self.pos[...].astype(x.dtype), None)


class MultiHeadAttention(nnx.Module):
    """`vitspec.layers.multi_head_attention`: no biases; head h owns columns h*head_dim onwards."""

    def __init__(self, config: ViTConfig, build: Build, *, new: NewParameter) -> None:
        D, I = config.embed_dim, config.inner_dim  # noqa: E741
        self.head_count, self.build = config.head_count, build
        self.wq, self.wk, self.wv = (
            new(f"mha.{name}", D, I, scale=1 / math.sqrt(D)) for name in ("wq", "wk", "wv")
        )
        self.wo = new("mha.wo", I, D, scale=1 / math.sqrt(max(I, 1)))

    def __call__(self, x: Float[jax.Array, "B n D"]) -> Float[jax.Array, "B n D"]:
        """The attention of x Wq, x Wk, x Wv by head, the heads side by side, times Wo."""
        if self.wq.shape[1] == 0:  # more heads than columns: no head has any width
            return jnp.zeros_like(x)
        heads = self.build.attention_fn(*self._project(x, self.wq, self.wk, self.wv))
        B, n, H, d = heads.shape
        return self._linear(heads.reshape(B, n, H * d), self.wo)

    def weights(self, x: Float[jax.Array, "B n D"]) -> Float[jax.Array, "B H n n"]:
        """The attention weights, which `__call__` does not have."""
        if self.wq.shape[1] == 0:
            B, n, _ = x.shape
            return jnp.full((B, self.head_count, n, n), 1 / n, x.dtype)
        return attention_weights(*self._project(x, self.wq, self.wk))

    def _project(self, x: jax.Array, *weights: nnx.Param) -> tuple[jax.Array, ...]:
        ws = tuple(w[...] for w in weights)
        ys = self.build.ops.products(x, ws, self.build.sharding.model_axis)
        B, n, I = ys[0].shape  # noqa: E741
        return tuple(y.reshape(B, n, self.head_count, I // self.head_count) for y in ys)

    def _linear(self, x: jax.Array, w: nnx.Param) -> jax.Array:
        return self.build.ops.linear(x, w[...], model_axis=self.build.sharding.model_axis)


class FeedForward(nnx.Module):
    """`vitspec.layers.feed_forward`."""

    def __init__(self, config: ViTConfig, build: Build, *, new: NewParameter) -> None:
        D, F = config.embed_dim, config.hidden_dim
        self.build = build
        self.w1, self.b1 = new("ffn.w1", D, F, scale=1 / math.sqrt(D)), new("ffn.b1", F)
        self.w2, self.b2 = new("ffn.w2", F, D, scale=1 / math.sqrt(F)), new("ffn.b2", D)

    def __call__(self, x: Float[jax.Array, "B n D"]) -> Float[jax.Array, "B n D"]:
        """relu(x W1 + b1) W2 + b2."""
        ops, axis = self.build.ops, self.build.sharding.model_axis
        hidden = ops.relu(ops.linear(x, self.w1[...], self.b1[...], axis))
        return ops.linear(hidden, self.w2[...], self.b2[...], axis)


class TransformerEncoderLayer(nnx.Module):
    """`vitspec.models.transformer.encoder_layer`: post-norm."""

    def __init__(self, config: ViTConfig, build: Build, *, new: NewParameter) -> None:
        D = config.embed_dim
        self.build = build
        self.mha = MultiHeadAttention(config, build, new=new)
        self.ffn = FeedForward(config, build, new=new)
        self.norm1_gamma, self.norm1_beta = new("norm1_gamma", D, center=1.0), new("norm1_beta", D)
        self.norm2_gamma, self.norm2_beta = new("norm2_gamma", D, center=1.0), new("norm2_beta", D)

    def __call__(self, x: Float[jax.Array, "B n D"]) -> Float[jax.Array, "B n D"]:
        """LN2(n1 + FFN(n1)) with n1 = LN1(x + MHA(x))."""
        n1 = self._norm(x + self.mha(x), self.norm1_gamma, self.norm1_beta)
        return self._norm(n1 + self.ffn(n1), self.norm2_gamma, self.norm2_beta)

    def _norm(self, x: jax.Array, gamma: nnx.Param, beta: nnx.Param) -> jax.Array:
        return self.build.ops.layer_norm(x, gather(gamma[...], None), gather(beta[...], None))


class LayerTaps(NamedTuple):
    """What was computed on the way, of one layer or, with a leading axis, of all.

    Attributes:
        output: the layer's output (B, n, D).
        attention_weights: (B, heads, n, n), or None if they were not asked for.
    """

    output: jax.Array
    attention_weights: jax.Array | None


class TransformerEncoder(nnx.Module):
    """`vitspec.models.transformer.encoder`: the layers, one after the other.

    All layers have the same shapes. Stacked, they are one module whose every parameter has a
    leading axis of `num_layers`, along which `scan` walks: the program does not grow with depth,
    nor does the time to compile it. As a list, each is a module of its own, and the program a
    straight line: it saves the copies into and out of the stacks.
    """

    def __init__(
        self, config: ViTConfig, build: Build, *, stacked: bool, new: NewParameter
    ) -> None:
        self.build = build
        self.layers = stacked_or_listed(
            lambda new: TransformerEncoderLayer(config, build, new=new),
            config.num_layers,
            stacked=stacked,
            new=new,
        )

    def __call__(
        self, x: Float[jax.Array, "B n D"], *, taps: bool = False, attention_weights: bool = False
    ) -> tuple[Float[jax.Array, "B n D"], LayerTaps | None]:
        """Layer by layer; with no layers, the identity."""

        def apply(x: jax.Array, layer: TransformerEncoderLayer, _: None) -> Any:
            y = layer(x)
            if not taps:
                return y, None
            return y, LayerTaps(y, layer.mha.weights(x) if attention_weights else None)

        return through(apply, x, self.layers, None, self.build)


def stacked_or_listed(
    new_layer: Callable[[NewParameter], nnx.Module], count: int, *, stacked: bool, new: NewParameter
) -> Any:
    """So many layers: one whose parameters have a leading axis of `count`, or a list."""
    if not stacked:
        return nnx.List(new_layer(new) for _ in range(count))

    def stack(name: str, *shape: int, **kind: Any) -> nnx.Param:
        return new(name, count, *shape, **kind)

    return new_layer(stack)


def through(
    apply: Callable[[jax.Array, Any, Any], tuple[jax.Array, LayerTaps | None]],
    x: jax.Array,
    layers: Any,
    settings: Any,
    build: Build,
) -> tuple[jax.Array, LayerTaps | None]:
    """The last layer's output, and what all have tapped, with a leading axis.

    Args:
        apply: called with x, a layer and its setting; returns the next x, and taps or None.
        x: what the first layer reads.
        layers: as `stacked_or_listed` makes them.
        settings: a pytree whose leaves have a leading axis of layers.
        build: whether intermediate values are kept.
    """
    if build.checkpoint:
        apply = jax.checkpoint(apply)
    elif on_mesh():
        apply = jax.checkpoint(apply, policy=_all_but_gathered)
    if not isinstance(layers, nnx.List):
        return jax.lax.scan(lambda x, both: apply(x, *both), x, (layers, settings))
    found = []
    for i, layer in enumerate(layers):
        x, tapped = apply(x, layer, jax.tree.map(lambda leaf, i=i: leaf[i], settings))
        found.append(tapped)
    if not found or found[0] is None:
        return x, None
    return x, jax.tree.map(lambda *one: jnp.stack(one), *found)


def _all_but_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
    """What the forward keeps for the backward: whatever it computes, but no gathered parameter.

    Kept, these would be the whole model on every device. Automatic differentiation would keep them,
    and in a straight line XLA would, seeing that the backward gathers what the forward did.
    """
    return primitive.name != "reshard"


class Linear(nnx.Module):
    """`vitspec.layers.linear`: a head, of this name; weights stored (out, in)."""

    def __init__(
        self, in_dim: int, out_dim: int, build: Build, *, name: str = "head", new: NewParameter
    ) -> None:
        self.build = build
        self.weights = new(f"{name}.weights", out_dim, in_dim, scale=1 / math.sqrt(in_dim))
        self.bias = new(f"{name}.bias", out_dim)

    def __call__(self, x: Float[jax.Array, "*B D"]) -> Float[jax.Array, "*B K"]:
        """Each row x becomes W x + b."""
        return self.build.ops.linear(x, self.weights[...].T, self.bias[...])


def prepend(row: Float[jax.Array, " D"], x: Float[jax.Array, "B n D"]) -> jax.Array:
    """A row (the class token) above each sequence: (B, n + 1, D)."""
    whole = gather(row.astype(x.dtype), None)
    where = {"out_sharding": PartitionSpec(axes_of(x)[0])} if on_mesh() else {}
    above = jnp.broadcast_to(whole, (x.shape[0], 1, whole.shape[0]), **where)
    return jnp.concatenate([above, x], axis=1)
