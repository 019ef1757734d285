"""The patch embedding without overlap: each patch of pixels times one matrix.

With an image x (C, H, W) and patches of ph x pw pixels, the grid has g_h = floor(H / ph) rows and
g_w = floor(W / pw) columns; the H - g_h ph rows of pixels below and the W - g_w pw columns on the
right are not read, and their gradient is 0. With patch t = i g_w + j as one row of a matrix,

    P[t, (c, di, dj)] = x[c, i ph + di, j pw + dj]            (T, C ph pw)
    y = P K^T + bias                                          (T, D),   K = kernel as (D, C ph pw)

It is `vitspec.layers.conv2d` without padding, whose stride is the patch's own size on each axis.

Source: Dosovitskiy et al., 2010.11929, equation 1.
"""

from __future__ import annotations

from vitspec import scalars
from vitspec.layers.conv2d import kernel_as_matrix
from vitspec.records import Record, named, record
from vitspec.scalars import matmul
from vitspec.typing import Array, Scalar, typed


@record
class PatchEmbedding(Record):
    """Kernel and bias."""

    kernel: Scalar[Array, "D C ph pw"]
    bias: Scalar[Array, "D"]


@record
class PatchEmbeddingGrads(Record):
    """Cotangents of the parameters of `PatchEmbedding`."""

    d_kernel: Scalar[Array, "D C ph pw"] = named("kernel")
    d_bias: Scalar[Array, "D"] = named("bias")


def patch_rows(spec: PatchEmbedding, x: Array) -> Array:
    """P: the patches as rows, (T, C ph pw)."""
    C, H, W = x.shape
    ph, pw = spec.kernel.shape[2:]
    g_h, g_w = H // ph, W // pw
    whole = x[:, : g_h * ph, : g_w * pw].reshape(C, g_h, ph, g_w, pw)
    return whole.transpose(1, 3, 0, 2, 4).reshape(g_h * g_w, C * ph * pw)


def pixels(spec: PatchEmbedding, rows: Array, H: int, W: int) -> Array:
    """The adjoint of `patch_rows`: rows put back in their places, (C, H, W), the rest 0."""
    C, ph, pw = spec.kernel.shape[1:]
    g_h, g_w = H // ph, W // pw
    whole = rows.reshape(g_h, g_w, C, ph, pw).transpose(2, 0, 3, 1, 4)
    x = scalars.zeros((C, H, W), rows.dtype)
    x[:, : g_h * ph, : g_w * pw] = whole.reshape(C, g_h * ph, g_w * pw)
    return x


@typed
def patch_embedding(spec: PatchEmbedding, x: Scalar[Array, "C H W"]) -> Scalar[Array, "T D"]:
    """P K^T + bias."""
    return matmul(patch_rows(spec, x), kernel_as_matrix(spec.kernel).T) + spec.bias


@typed
def patch_embedding_backward(
    spec: PatchEmbedding, x: Scalar[Array, "C H W"], d_out: Scalar[Array, "T D"]
) -> tuple[PatchEmbeddingGrads, Scalar[Array, "C H W"]]:
    """The cotangents of kernel and bias, and of x."""
    d_kernel = matmul(d_out.T, patch_rows(spec, x)).reshape(spec.kernel.shape)
    grads = PatchEmbeddingGrads(d_kernel=d_kernel, d_bias=scalars.total(d_out, axis=0))
    d_rows = matmul(d_out, kernel_as_matrix(spec.kernel))
    return grads, pixels(spec, d_rows, *x.shape[1:])


@typed
def patch_embedding_jvp(
    spec: PatchEmbedding,
    x: Scalar[Array, "C H W"],
    tangent: PatchEmbedding,
    dx: Scalar[Array, "C H W"],
) -> Scalar[Array, "T D"]:
    """The tangent of the output along the parameters' `tangent` and dx."""
    d_y = matmul(patch_rows(spec, dx), kernel_as_matrix(spec.kernel).T)
    return d_y + matmul(patch_rows(spec, x), kernel_as_matrix(tangent.kernel).T) + tangent.bias
