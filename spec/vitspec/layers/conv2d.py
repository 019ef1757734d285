"""The patch embedding: a 2-D cross-correlation (the kernel is not flipped).

With x_pad the image surrounded by p zeros, stride s, and (i, j) a position of the output grid:

    y[o,i,j] = sum_{c,di,dj} x_pad[c, i s + di, j s + dj] kernel[o,c,di,dj] + bias[o]

Read the window at token t = (i, j) as one row of a matrix of T rows and C * ph * pw columns; then
this is one matrix product, and its derivatives are two more. Reading a pixel through a window is
linear, and its adjoint adds what arrives through each window to the pixel that it read. Pixels that
no window covers get gradient 0; a window wholly in the padding gives the bias.

Shapes: x (C, H, W), kernel (D, C, ph, pw), bias (D,), y (D, out_h, out_w).

Lean: `Conv2DSpec`, `conv2dSpec`, `conv2dKernelDerivSpec`, `conv2dBiasDerivSpec`,
`conv2dInputDerivSpec`, `conv2dBackwardSpec` (`Layers/Conv.lean`).
"""

from __future__ import annotations

import numpy as np

from vitspec import geometry, scalars
from vitspec.config import natural_problem
from vitspec.errors import InvalidArray, NotWellFormed
from vitspec.records import Record, named, record
from vitspec.scalars import matmul
from vitspec.typing import Array, Scalar, typed


@record
class Conv2DSpec(Record):
    """Kernel and bias, with the static stride and padding."""

    stride: int
    padding: int
    kernel: Scalar[Array, "D C ph pw"]
    bias: Scalar[Array, "D"]

    def __post_init__(self) -> None:
        """Check that stride and padding are natural numbers."""
        super().__post_init__()
        given = {"stride": self.stride, "padding": self.padding}
        problems = {name: natural_problem(value) for name, value in given.items()}
        if any(problems.values()):
            raise NotWellFormed("Conv2DSpec", [f"nat: {n} {p}" for n, p in problems.items() if p])


@record
class Conv2DGrads(Record):
    """Cotangents of the parameters of `Conv2DSpec`."""

    d_kernel: Scalar[Array, "D C ph pw"] = named("kernel")
    d_bias: Scalar[Array, "D"] = named("bias")


def window_rows(spec: Conv2DSpec, x_pad: Array) -> Array:
    """The windows of the padded image, one row each: (C, H', W') -> (T, C * ph * pw)."""
    ph, pw = spec.kernel.shape[2:]
    view = geometry.windows(x_pad, ph, pw, spec.stride)
    C, out_h, out_w, _, _ = view.shape
    return view.transpose(1, 2, 0, 3, 4).reshape(out_h * out_w, C * ph * pw)


def output_grid(spec: Conv2DSpec, x: Array) -> tuple[int, int]:
    """Rows and columns (out_h, out_w) of the output."""
    (H, W), (ph, pw) = x.shape[1:], spec.kernel.shape[2:]
    return (
        geometry.sliding_window_out_dim(H, ph, spec.stride, spec.padding),
        geometry.sliding_window_out_dim(W, pw, spec.stride, spec.padding),
    )


def cotangent_rows(spec: Conv2DSpec, x: Array, d_out: Array) -> Array:
    """The output's cotangent with the grid in one axis: (D, out_h, out_w) -> (D, T).

    Raises:
        InvalidArray: its grid is not that of the output.
    """
    out_h, out_w = output_grid(spec, x)
    if d_out.shape[1:] != (out_h, out_w):
        raise InvalidArray(
            f"d_out: expected the output's grid {(out_h, out_w)}, got {d_out.shape[1:]}"
        )
    return d_out.reshape(d_out.shape[0], out_h * out_w)


def kernel_as_matrix(kernel: Array) -> Array:
    """(D, C, ph, pw) -> (D, C * ph * pw)."""
    return kernel.reshape(kernel.shape[0], int(np.prod(kernel.shape[1:])))


@typed
def conv2d(spec: Conv2DSpec, x: Scalar[Array, "C H W"]) -> Scalar[Array, "D out_h out_w"]:
    """The cross-correlation of the padded x with the kernel, plus the bias."""
    D = spec.kernel.shape[0]
    rows = window_rows(spec, geometry.pad(x, spec.padding))
    y = matmul(kernel_as_matrix(spec.kernel), rows.T)
    return (y + spec.bias[:, None]).reshape(D, *output_grid(spec, x))


@typed
def conv2d_kernel_deriv(
    spec: Conv2DSpec, x: Scalar[Array, "C H W"], d_out: Scalar[Array, "D out_h out_w"]
) -> Scalar[Array, "D C ph pw"]:
    """d_kernel[o,c,di,dj] = sum_{i,j} x_pad[c, i s + di, j s + dj] d_out[o,i,j]."""
    rows = window_rows(spec, geometry.pad(x, spec.padding))
    return matmul(cotangent_rows(spec, x, d_out), rows).reshape(spec.kernel.shape)


@typed
def conv2d_bias_deriv(d_out: Scalar[Array, "D out_h out_w"]) -> Scalar[Array, "D"]:
    """d_bias[o] = sum_{i,j} d_out[o,i,j]."""
    D, out_h, out_w = d_out.shape
    return scalars.total(d_out.reshape(D, out_h * out_w), axis=1)


@typed
def conv2d_input_deriv(
    spec: Conv2DSpec, x: Scalar[Array, "C H W"], d_out: Scalar[Array, "D out_h out_w"]
) -> Scalar[Array, "C H W"]:
    """d_x[c,i,j]: the sum over all windows and taps that read pixel (i, j) of channel c."""
    d_rows = matmul(cotangent_rows(spec, x, d_out).T, kernel_as_matrix(spec.kernel))
    d_x_pad = scalars.zeros(geometry.pad(x, spec.padding).shape, x.dtype)
    # The number of the padded pixel that each tap of each window reads: add its cotangent there.
    pixels = np.arange(d_x_pad.size).reshape(d_x_pad.shape)
    np.add.at(d_x_pad.reshape(-1), window_rows(spec, pixels), d_rows)
    return geometry.unpad(d_x_pad, spec.padding)


@typed
def conv2d_backward(
    spec: Conv2DSpec, x: Scalar[Array, "C H W"], d_out: Scalar[Array, "D out_h out_w"]
) -> tuple[Conv2DGrads, Scalar[Array, "C H W"]]:
    """The cotangents of kernel and bias, and of x."""
    grads = Conv2DGrads(
        d_kernel=conv2d_kernel_deriv(spec, x, d_out), d_bias=conv2d_bias_deriv(d_out)
    )
    return grads, conv2d_input_deriv(spec, x, d_out)


@typed
def conv2d_jvp(
    spec: Conv2DSpec, x: Scalar[Array, "C H W"], tangent: Conv2DSpec, dx: Scalar[Array, "C H W"]
) -> Scalar[Array, "D out_h out_w"]:
    """The tangent conv_{d_kernel, d_bias}(x) + conv_{kernel, 0}(dx) of the output.

    Of `tangent` only the arrays count: stride and padding have no tangent.
    """
    D = spec.kernel.shape[0]
    rows = window_rows(spec, geometry.pad(x, spec.padding))
    d_rows = window_rows(spec, geometry.pad(dx, spec.padding))
    y = matmul(kernel_as_matrix(tangent.kernel), rows.T)
    y = y + matmul(kernel_as_matrix(spec.kernel), d_rows.T)
    return (y + tangent.bias[:, None]).reshape(D, *output_grid(spec, x))
