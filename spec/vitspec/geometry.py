"""Sliding windows and the patch grid.

Lean: `Shape.slidingWindowOutDim`, `ViTPatchOutH`, `ViTPatchOutW`, `ViTPatchCount`.

A window of extent k moves in steps of s over an axis of extent n with p zeros on either side; it
stands at

    floor((n + 2p - k) / s) + 1        positions,

or at none if k = 0, s = 0 or the window is larger than the padded axis. Position (i, j) of the grid
is token t = i * out_w + j: row-major.
"""

from __future__ import annotations

import numpy as np

from vitspec import scalars
from vitspec.config import ViTConfig
from vitspec.typing import Array, Scalar, typed


def sliding_window_out_dim(in_dim: int, kernel: int, stride: int, padding: int) -> int:
    """Number of positions of a sliding window along one axis (Lean: `slidingWindowOutDim`).

    >>> sliding_window_out_dim(224, kernel=16, stride=16, padding=0)
    14
    >>> sliding_window_out_dim(3, kernel=5, stride=1, padding=0)
    0
    """
    slack = in_dim + 2 * padding - kernel
    return 0 if kernel == 0 or stride == 0 or slack < 0 else slack // stride + 1


def patch_grid(config: ViTConfig, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the patch grid (Lean: `ViTPatchOutH`, `ViTPatchOutW`)."""
    return (
        sliding_window_out_dim(height, config.patch_h, config.stride, config.padding),
        sliding_window_out_dim(width, config.patch_w, config.stride, config.padding),
    )


def patch_count(config: ViTConfig, height: int, width: int) -> int:
    """Number T of patch tokens (Lean: `ViTPatchCount`).

    >>> patch_count(ViTConfig(), 224, 224)
    196
    """
    out_h, out_w = patch_grid(config, height, width)
    return out_h * out_w


@typed
def pad(x: Scalar[Array, "C H W"], padding: int) -> Scalar[Array, "C padded_h padded_w"]:
    """Surround each channel with `padding` zeros on all four sides."""
    C, H, W = x.shape
    padded = scalars.zeros((C, H + 2 * padding, W + 2 * padding), x.dtype)
    padded[:, padding : padding + H, padding : padding + W] = x
    return padded


@typed
def unpad(x: Scalar[Array, "C padded_h padded_w"], padding: int) -> Scalar[Array, "C H W"]:
    """Cut the padding off again: the adjoint of `pad`."""
    return x[:, padding : x.shape[1] - padding, padding : x.shape[2] - padding]


def windows(x: Array, kernel_h: int, kernel_w: int, stride: int) -> Array:
    """All windows of x, as a read-only view.

    Args:
        x: shape (C, H, W), already padded.
        kernel_h: height of a window.
        kernel_w: width of a window.
        stride: step between windows.

    Returns:
        shape (C, out_h, out_w, kernel_h, kernel_w), with entry [c, i, j, di, dj] equal to
        x[c, i * stride + di, j * stride + dj]. Empty along an axis where no window fits.
    """
    C, H, W = x.shape
    out_h = sliding_window_out_dim(H, kernel_h, stride, 0)
    out_w = sliding_window_out_dim(W, kernel_w, stride, 0)
    if out_h * out_w == 0:  # NumPy refuses a window larger than its axis; Lean has no positions
        return np.empty((C, out_h, out_w, kernel_h, kernel_w), x.dtype)
    every = np.lib.stride_tricks.sliding_window_view(x, (kernel_h, kernel_w), axis=(1, 2))
    return every[:, ::stride, ::stride]
