"""The layers of the Vision Transformer as Flax NNX modules, on batches.

Each computes what the layer of the same name in `vitspec.layers` or `vitspec.models.transformer`
computes, has the same parameters, laid out alike, and leaves its derivatives to automatic
differentiation: the two are independent witnesses of each other's gradients.

Shapes: B images, n rows of width D, F hidden_dim, I = head_count * head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from vitfast.attention import AttentionFn
from vitspec.config import ViTConfig
from vitspec.geometry import windows
from vitspec.scalars import EPSILON


@runtime_checkable
class NewParameter(Protocol):
    """Makes the parameters of a module, which says only what they should be like."""

    def __call__(self, *shape: int, scale: float = 0.0, center: float = 0.0) -> nnx.Param:
        """A parameter around `center`, with standard deviation `scale`."""


class Conv2D(nnx.Module):
    """The patch embedding, `vitspec.layers.conv2d`: a cross-correlation, channels last here."""

    def __init__(self, config: ViTConfig, in_channels: int, *, new: NewParameter) -> None:
        self.stride, self.padding = config.stride, config.padding
        D, window = config.embed_dim, (in_channels, config.patch_h, config.patch_w)
        self.kernel = new(D, *window, scale=1 / math.sqrt(math.prod(window)))
        self.bias = new(D)

    def __call__(self, x: Float[jax.Array, "B H W C"]) -> Float[jax.Array, "B T D"]:
        """y[o,t] = sum of x_pad[c, i s + di, j s + dj] kernel[o,c,di,dj] over c, di, dj; + bias.

        Token t = i * out_w + j. The windows are read by index and multiplied as a matrix. XLA's own
        convolution is the same map, but its compiler for the CPU (jaxlib 0.10.2 and 0.12.0) aborts
        on some of the gradients.
        """
        D, *window = self.kernel.shape
        p = self.padding
        x_pad = jnp.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
        pixels = window_pixels(x_pad.shape[1:], window, self.stride)
        rows = x_pad.reshape(len(x_pad), -1)[:, pixels]
        return rows @ self.kernel[...].reshape(D, -1).T + self.bias[...]


def window_pixels(shape: Sequence[int], window: Sequence[int], stride: int) -> np.ndarray:
    """Which entries of a flattened (H, W, C) image each window reads: (T, C * ph * pw)."""
    _, ph, pw = window
    pixels = np.arange(math.prod(shape)).reshape(shape).transpose(2, 0, 1)
    view = windows(pixels, ph, pw, stride).transpose(1, 2, 0, 3, 4)
    return view.reshape(math.prod(view.shape[:2]), math.prod(window))


class PositionalEncoding(nnx.Module):
    """`vitspec.layers.positional_encoding`: adds one learned row to each row of the sequence."""

    def __init__(self, n: int, embed_dim: int, *, new: NewParameter) -> None:
        self.pos = new(n, embed_dim, scale=0.02)

    def __call__(self, x: Float[jax.Array, "B n D"]) -> Float[jax.Array, "B n D"]:
        """x + pos."""
        return x + self.pos[...]


class MultiHeadAttention(nnx.Module):
    """`vitspec.layers.multi_head_attention`: no biases; head h owns columns h*head_dim onwards."""

    def __init__(self, config: ViTConfig, attention_fn: AttentionFn, *, new: NewParameter) -> None:
        D, I = config.embed_dim, config.inner_dim  # noqa: E741
        self.head_count, self.attention_fn = config.head_count, attention_fn
        self.wq, self.wk, self.wv = (new(D, I, scale=1 / math.sqrt(D)) for _ in range(3))
        self.wo = new(I, D, scale=1 / math.sqrt(max(I, 1)))

    def __call__(self, x: Float[jax.Array, "B n D"]) -> Float[jax.Array, "B n D"]:
        """The attention of x Wq, x Wk, x Wv by head, the heads side by side, times Wo."""
        B, n, _ = x.shape
        inner_dim = self.wq.shape[1]
        if inner_dim == 0:  # more heads than columns: no head has any width
            return jnp.zeros_like(x)
        heads = (B, n, self.head_count, inner_dim // self.head_count)
        query, key, value = ((x @ w[...]).reshape(heads) for w in (self.wq, self.wk, self.wv))
        return self.attention_fn(query, key, value).reshape(B, n, inner_dim) @ self.wo[...]


class FeedForward(nnx.Module):
    """`vitspec.layers.feed_forward`."""

    def __init__(self, config: ViTConfig, *, new: NewParameter) -> None:
        D, F = config.embed_dim, config.hidden_dim
        self.w1, self.b1 = new(D, F, scale=1 / math.sqrt(D)), new(F)
        self.w2, self.b2 = new(F, D, scale=1 / math.sqrt(F)), new(D)

    def __call__(self, x: Float[jax.Array, "B n D"]) -> Float[jax.Array, "B n D"]:
        """relu(x W1 + b1) W2 + b2."""
        # Not jnp.maximum, whose derivative at 0 is 1/2: that of jax.nn.relu is 0, as in Lean.
        return jax.nn.relu(x @ self.w1[...] + self.b1[...]) @ self.w2[...] + self.b2[...]


def layer_norm(
    x: Float[jax.Array, "B n D"], gamma: Float[jax.Array, " D"], beta: Float[jax.Array, " D"]
) -> Float[jax.Array, "B n D"]:
    """`vitspec.layers.normalization`: each row normalised, scaled by gamma, shifted by beta."""
    centred = x - x.mean(axis=-1, keepdims=True)
    # jnp.var centres once more, as Lean does: it matters when a row is all but constant.
    std = jnp.sqrt(centred.var(axis=-1, keepdims=True) + float(EPSILON))
    return centred / std * gamma + beta


class TransformerEncoderLayer(nnx.Module):
    """`vitspec.models.transformer.encoder_layer`: post-norm."""

    def __init__(self, config: ViTConfig, attention_fn: AttentionFn, *, new: NewParameter) -> None:
        D = config.embed_dim
        self.mha = MultiHeadAttention(config, attention_fn, new=new)
        self.ffn = FeedForward(config, new=new)
        self.norm1_gamma, self.norm1_beta = new(D, center=1.0), new(D)
        self.norm2_gamma, self.norm2_beta = new(D, center=1.0), new(D)

    def __call__(self, x: Float[jax.Array, "B n D"]) -> Float[jax.Array, "B n D"]:
        """LN2(n1 + FFN(n1)) with n1 = LN1(x + MHA(x))."""
        n1 = layer_norm(x + self.mha(x), self.norm1_gamma[...], self.norm1_beta[...])
        return layer_norm(n1 + self.ffn(n1), self.norm2_gamma[...], self.norm2_beta[...])


class TransformerEncoder(nnx.Module):
    """`vitspec.models.transformer.encoder`: the layers, one after the other.

    All layers have the same shapes, so they are one module whose every parameter has a leading axis
    of `num_layers`. `scan` walks along it: the program does not grow with depth, nor does the time
    to compile it.
    """

    def __init__(self, config: ViTConfig, attention_fn: AttentionFn, *, new: NewParameter) -> None:
        def stacked(*shape: int, **kind: Any) -> nnx.Param:
            return new(config.num_layers, *shape, **kind)

        self.layers = TransformerEncoderLayer(config, attention_fn, new=stacked)

    def __call__(self, x: Float[jax.Array, "B n D"]) -> Float[jax.Array, "B n D"]:
        """Layer by layer; with no layers, the identity."""
        return jax.lax.scan(lambda x, layer: (layer(x), None), x, self.layers)[0]


class Linear(nnx.Module):
    """`vitspec.layers.linear`: the classification head; weights stored (out, in)."""

    def __init__(self, in_dim: int, out_dim: int, *, new: NewParameter) -> None:
        self.weights = new(out_dim, in_dim, scale=1 / math.sqrt(in_dim))
        self.bias = new(out_dim)

    def __call__(self, x: Float[jax.Array, "B D"]) -> Float[jax.Array, "B K"]:
        """Each row x becomes W x + b."""
        return x @ self.weights[...].T + self.bias[...]
