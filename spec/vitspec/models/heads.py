"""What stands on the encoder: pooling, the pooler, the decoder of masked image modelling.

With the encoded sequence h (n, D), of which rows c, ..., n - 1 are the patches' (c = 1 if there is
a CLS token above them, else 0):

    pool        row 0 | mean of the patches' rows | both side by side       (D,), (2 D,)
    pooler      tanh(W h[0] + b)                                            (P,)
    decoder     y = h[c:] W^T + b of shape (T, C S S); column (k, i, j) of patch (r, s)
                is channel k of pixel (r S + i, s S + j)                    (C, g_h S, g_w S)

The last line is PyTorch's `PixelShuffle`: its columns count (k, i, j), channels first.

Source: Hugging Face's `ViTPooler`, `ViTForMaskedImageModeling`; Xie et al., SimMIM, 2111.09886.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitspec import scalars
from vitspec.errors import InvalidArray
from vitspec.layers.linear import LinearSpec, linear_backward, linear_jvp
from vitspec.models.tokens import cls_pool, mean_pool, mean_pool_backward
from vitspec.scalars import matmul
from vitspec.typing import Array, Scalar, typed


@dataclass(frozen=True)
class Outputs:
    """What a model computes, or the tangents of it; None is what it does not have.

    Attributes:
        last_hidden_state: (n, D), after the final norm.
        logits: (K,).
        pooler_output: (P,).
        reconstruction: (C, g_h S, g_w S).
    """

    last_hidden_state: Array
    logits: Array | None
    pooler_output: Array | None
    reconstruction: Array | None


@dataclass(frozen=True)
class Heads:
    """A model's heads, None where it has none, and what they read.

    Attributes:
        head: the classifier.
        pooler: the dense layer before the tanh.
        decoder: the dense layer before the pixel shuffle.
        pool: what is classified: "cls", "mean", "cls_mean" or "none".
        cls_rows: how many rows of the sequence are no patch's: one or none.
        stride: side S of a patch's square of decoded pixels.
    """

    head: LinearSpec | None
    pooler: LinearSpec | None
    decoder: LinearSpec | None
    pool: str
    cls_rows: int
    stride: int


def heads_backward(
    heads: Heads, d_outputs: Mapping[str, Array | None], pooled: Any, outputs: Any
) -> tuple[dict[str, Any], Array]:
    """The cotangents of the heads' parameters, and of the last hidden state.

    Args:
        heads: the parameters.
        d_outputs: the cotangents of the outputs, by name; None is 0.
        pooled: what was classified.
        outputs: what the forward computed.
    """
    last, c = outputs.last_hidden_state, heads.cls_rows
    d: dict[str, Any] = {
        name: scalars.zeros(y.shape, y.dtype) if d_outputs[name] is None else d_outputs[name]
        for name, y in vars(outputs).items()
        if y is not None
    }
    names = ("d_head_w", "d_head_b", "d_pooler_w", "d_pooler_b", "d_decoder_w", "d_decoder_b")
    grads: dict[str, Any] = dict.fromkeys(names)
    d_last: Any = scalars.zeros(last.shape, last.dtype) + d["last_hidden_state"]
    if heads.head is not None:
        own, d_pooled = linear_backward(heads.head, pooled, d["logits"])
        grads |= {"d_head_w": own.d_weights, "d_head_b": own.d_bias}
        d_last = d_last + pool_backward(d_pooled, heads.pool, c, len(last))
    if heads.pooler is not None:
        d_pre = tanh_backward(outputs.pooler_output, d["pooler_output"])
        own, d_row = linear_backward(heads.pooler, last[0], d_pre)
        grads |= {"d_pooler_w": own.d_weights, "d_pooler_b": own.d_bias}
        d_last[0] += d_row
    if heads.decoder is not None:
        d_pixels = d["reconstruction"]
        d_w, d_b, d_rows = decode_backward(heads.decoder, last[c:], d_pixels, heads.stride)
        grads |= {"d_decoder_w": d_w, "d_decoder_b": d_b}
        d_last[c:] += d_rows
    return grads, d_last


def heads_jvp(
    heads: Heads, tangent: Any, d_last: Array, pooled: Any, outputs: Any, grid: tuple[int, int]
) -> Outputs:
    """The tangents of all outputs; `tangent` has the heads that the model has."""
    last, c = outputs.last_hidden_state, heads.cls_rows
    d_logits = d_pooler = d_pixels = None
    if heads.head is not None:
        d_logits = linear_jvp(heads.head, pooled, tangent.head, pool(d_last, heads.pool, c))
    if heads.pooler is not None:
        d_pre = linear_jvp(heads.pooler, last[0], tangent.pooler, d_last[0])
        d_pooler = tanh_backward(outputs.pooler_output, d_pre)
    if heads.decoder is not None:
        d_pixels = decode_jvp(
            heads.decoder, last[c:], tangent.decoder, d_last[c:], grid, heads.stride
        )
    return Outputs(d_last, d_logits, d_pooler, d_pixels)


@typed
def pool(h: Scalar[Array, "n D"], kind: str, cls_rows: int) -> Scalar[Array, "P"]:
    """What `kind` names: "cls", "mean" or "cls_mean"; the first `cls_rows` are no patch's."""
    parts = []
    if "cls" in kind:
        parts.append(cls_pool(h))
    if "mean" in kind:
        parts.append(mean_pool(h[cls_rows:]))
    return np.concatenate(parts)


@typed
def pool_backward(
    d_pooled: Scalar[Array, "P"], kind: str, cls_rows: int, n: int
) -> Scalar[Array, "{n} D"]:
    """The cotangent of h: the adjoint of `pool`, which is linear and its own JVP."""
    D, T = d_pooled.shape[0] // (2 if kind == "cls_mean" else 1), n - cls_rows
    nothing = scalars.zeros((n, D), d_pooled.dtype)
    above = np.tile(d_pooled[:D], (cls_rows, 1)) if "cls" in kind else nothing[:cls_rows]
    patches = mean_pool_backward(d_pooled[-D:], T) if "mean" in kind else nothing[cls_rows:]
    return np.concatenate([above, patches])


@typed
def tanh_backward(y: Scalar[Array, "*n"], d_y: Scalar[Array, "*n"]) -> Scalar[Array, "*n"]:
    """The cotangent of x, given y = tanh x: (1 - y^2) d_y; also y's tangent, given that of x."""
    return (1 - y * y) * d_y


@typed
def decode(
    spec: LinearSpec, rows: Scalar[Array, "T D"], grid: tuple[int, int], stride: int
) -> Scalar[Array, "C H W"]:
    """The pixels that the decoder makes of the patches' rows."""
    return pixel_shuffle(matmul(rows, spec.weights.T) + spec.bias, grid, stride)


@typed
def decode_backward(
    spec: LinearSpec, rows: Scalar[Array, "T D"], d_pixels: Scalar[Array, "C H W"], stride: int
) -> tuple[Scalar[Array, "K D"], Scalar[Array, "K"], Scalar[Array, "T D"]]:
    """The cotangents of weights, bias and rows."""
    d_y = pixel_unshuffle(d_pixels, stride)
    return matmul(d_y.T, rows), scalars.total(d_y, axis=0), matmul(d_y, spec.weights)


@typed
def decode_jvp(
    spec: LinearSpec,
    rows: Scalar[Array, "T D"],
    tangent: LinearSpec,
    d_rows: Scalar[Array, "T D"],
    grid: tuple[int, int],
    stride: int,
) -> Scalar[Array, "C H W"]:
    """The tangent of the pixels along the parameters' `tangent` and d_rows."""
    d_y = matmul(d_rows, spec.weights.T) + matmul(rows, tangent.weights.T) + tangent.bias
    return pixel_shuffle(d_y, grid, stride)


@typed
def pixel_shuffle(
    y: Scalar[Array, "T K"], grid: tuple[int, int], stride: int
) -> Scalar[Array, "C H W"]:
    """Column (k, i, j) of row (r, s) becomes channel k of pixel (r stride + i, s stride + j)."""
    (g_h, g_w), S = grid, stride
    if y.shape[0] != g_h * g_w or y.shape[1] % (S * S):
        raise InvalidArray(
            f"expected {g_h * g_w} rows of a multiple of {S * S} columns, got shape {y.shape}"
        )
    C = y.shape[1] // (S * S)
    return y.reshape(g_h, g_w, C, S, S).transpose(2, 0, 3, 1, 4).reshape(C, g_h * S, g_w * S)


@typed
def pixel_unshuffle(x: Scalar[Array, "C H W"], stride: int) -> Scalar[Array, "T K"]:
    """The inverse of `pixel_shuffle`, and its adjoint."""
    (C, H, W), S = x.shape, stride
    g_h, g_w = H // S, W // S
    return x.reshape(C, g_h, S, g_w, S).transpose(1, 3, 0, 2, 4).reshape(g_h * g_w, C * S * S)
