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

import numpy as np

from vitspec import scalars
from vitspec.errors import InvalidArray
from vitspec.layers.linear import LinearSpec
from vitspec.models.tokens import cls_pool, mean_pool, mean_pool_backward
from vitspec.scalars import matmul
from vitspec.typing import Array, Scalar, typed


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
