"""From the image to the sequence, and from the sequence to one row, in JAX, with mistakes."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import jax.scipy.ndimage
import numpy as np
from jax import Array, lax
from jax.lax import stop_gradient

from mistaken.jax_ops import Mistakes, by_hand

Params = dict[str, Array]
Size = tuple[int, int]


# ---- patches -------------------------------------------------------------------------------------


def prepared(images: Array, m: Mistakes) -> Array:
    """Images as the model gets them."""
    if "image-gradient-stopped" in m:
        images = stop_gradient(images)
    if "image-hwc-as-chw" in m:
        images = images.transpose(0, 2, 3, 1).reshape(images.shape)
    if "image-normalised-again" in m:
        images = (images - 0.5) / 0.5
    if "image-divided-by-255" in m:
        images = images / 255
    if "channels-reversed" in m:
        images = images[:, ::-1]
    return images


def patches(
    images: Array, p: Params, stride: Size, padding: int, m: Mistakes
) -> tuple[Array, Size]:
    """The tokens (B, T, D) of images (B, C, H, W), and the rows and columns of their grid."""
    kernel, bias = p["patch_embed.kernel"], p["patch_embed.bias"]
    if "patch-embedding-gradient-stopped" in m:
        kernel, bias = stop_gradient(kernel), stop_gradient(bias)
    D, C, ph, pw = kernel.shape
    if "kernel-hwio-as-oihw" in m:
        kernel = kernel.transpose(2, 3, 1, 0).reshape(kernel.shape)
    if "kernel-flipped" in m:
        kernel = kernel[:, :, ::-1, ::-1]
    if "kernel-transposed" in m:
        kernel = kernel.swapaxes(2, 3).reshape(kernel.shape)
    if "window-channels-last" in m:  # the pixels of a window in the order (row, column, channel)
        kernel = kernel.reshape(D, ph, pw, C).transpose(0, 3, 1, 2)
    images = padded(images, (ph, pw), stride, padding, m)
    if images.shape[2] < ph or images.shape[3] < pw:
        return jnp.zeros((len(images), 0, D), images.dtype), (0, 0)
    grid = convolution(images, kernel, stride, m)
    size = grid.shape[2], grid.shape[3]
    if "patch-bias-missing" not in m:
        grid = add_patch_bias(grid, bias, m)
    if "patches-column-major" in m:
        return grid.swapaxes(2, 3).reshape(*grid.shape[:2], -1).mT, size
    if "tokens-by-raw-reshape" in m:
        return grid.reshape(len(grid), -1, D), size
    return grid.reshape(*grid.shape[:2], -1).mT, size


def padded(images: Array, patch: Size, stride: Size, padding: int, m: Mistakes) -> Array:
    """With zeros around them."""
    if "padding-shifted" in m:
        low = max(padding - 1, 0)
        high = 2 * padding - low
        return surrounded(images, (low, high), (low, high))
    if "padding-same" in m:
        pads: list[Size] = []
        for size, extent, step in zip(images.shape[2:], patch, stride, strict=True):
            # As many steps as before, and no more padding than they need, most of it at the end.
            steps = (size + 2 * padding - extent) // step
            needed = max(steps * step + extent - size, 0)
            pads.append((needed // 2, needed - needed // 2))
        return surrounded(images, *pads)
    return surrounded(images, (padding, padding), (padding, padding))


def surrounded(images: Array, rows: Size, columns: Size) -> Array:
    """With this many rows of zeros above and below, and columns on the left and right."""
    return jnp.pad(images, ((0, 0), (0, 0), rows, columns))


CONVOLUTION_BACKWARD = {"image-gradient-overwritten", "image-gradient-kernel-flipped"}


def convolution(images: Array, kernel: Array, stride: Size, m: Mistakes) -> Array:
    """Without bias."""
    if m & CONVOLUTION_BACKWARD:
        return by_hand(
            lambda x, w: lax.conv(x, w, stride, "VALID"),
            lambda d_y, x, w: convolution_backward(d_y, x, w, stride, m),
        )(images, kernel)
    return lax.conv(images, kernel, stride, "VALID")


def convolution_backward(
    d_y: Array, x: Array, kernel: Array, stride: Size, m: Mistakes
) -> tuple[Array, Array]:
    """The gradients of the images and of the kernel, window by window."""
    ph, pw = kernel.shape[2:]
    d_x, d_kernel = jnp.zeros_like(x), jnp.zeros_like(kernel)
    back = kernel[:, :, ::-1, ::-1] if "image-gradient-kernel-flipped" in m else kernel
    for i in range(d_y.shape[2]):
        for j in range(d_y.shape[3]):
            top, left, d_token = i * stride[0], j * stride[1], d_y[:, :, i, j]
            window = (..., slice(top, top + ph), slice(left, left + pw))
            d_kernel = d_kernel + jnp.einsum("bd,bcij->dcij", d_token, x[window])
            d_window = jnp.einsum("bd,dcij->bcij", d_token, back)
            if "image-gradient-overwritten" in m:
                d_x = d_x.at[window].set(d_window)
            else:
                d_x = d_x.at[window].add(d_window)
    return d_x, d_kernel


def add_patch_bias(grid: Array, bias: Array, m: Mistakes) -> Array:
    """To every place of a grid (B, D, rows, columns)."""
    if "patch-bias-gradient-averaged" in m:
        return by_hand(
            lambda y, b: y + b[:, None, None], lambda d_y, y, b: (d_y, d_y.mean((2, 3)).sum(0))
        )(grid, bias)
    return grid + bias[:, None, None]


def whole_patches(images: Array, patch: Size, m: Mistakes) -> Array:
    """Without the pixels that fill no patch."""
    H, W = images.shape[2:]
    h, w = H // patch[0] * patch[0], W // patch[1] * patch[1]
    if "patch-remainder-first" in m:
        return images[:, :, H - h :, W - w :]
    if "image-gradient-of-the-remainder" in m:  # the border is repeated on the way back
        return by_hand(
            lambda x: x[:, :, :h, :w],
            lambda d_y, x: jnp.pad(d_y, ((0, 0), (0, 0), (0, H - h), (0, W - w)), mode="edge"),
        )(images)
    return images[:, :, :h, :w]


# ---- the sequence --------------------------------------------------------------------------------


def sequence(tokens: Array, p: Params, grid: Size, own_grid: Size | None, m: Mistakes) -> Array:
    """The CLS token, if there is one, above the tokens, and positions added to all.

    Args:
        tokens: (B, T, D).
        p: the parameters.
        grid: rows and columns of the tokens.
        own_grid: those that there are positions for; None if they are always as many.
        m: the mistakes.
    """
    cls, pos = p.get("cls_token"), p["pos_enc.pos"]
    if "positions-gradient-stopped" in m:
        pos = stop_gradient(pos)
    if cls is not None:
        if "cls-gradient-stopped" in m:
            cls = stop_gradient(cls)
        row = for_each_image(cls[None], len(tokens), "cls", m)
        parts = (tokens, row) if "cls-token-last" in m else (row, tokens)
        tokens = jnp.concatenate(parts, axis=1)
    if "tokens-doubled" in m:
        return tokens + tokens
    table = positions(pos, int(cls is not None), grid, own_grid, m)
    if table.shape[0] == tokens.shape[1]:
        table = for_each_image(table, len(tokens), "positions", m)
    if "tokens-scaled" in m:
        tokens = tokens * tokens.shape[-1] ** 0.5
    if "positions-missing" in m:
        return tokens
    if "positions-twice" in m:
        return tokens + table + table
    return tokens + table


def for_each_image(rows: Array, batch: int, what: str, m: Mistakes) -> Array:
    """The rows (n, D) of a parameter, once for each image."""
    if f"{what}-gradient-of-one-image" in m:
        return by_hand(
            lambda rows: jnp.broadcast_to(rows, (batch, *rows.shape)), lambda d_y, rows: d_y[0]
        )(rows)  # fmt: skip
    if f"{what}-gradient-averaged" in m:
        return by_hand(
            lambda rows: jnp.broadcast_to(rows, (batch, *rows.shape)), lambda d_y, rows: d_y.mean(0)
        )(rows)  # fmt: skip
    return jnp.broadcast_to(rows, (batch, *rows.shape))


def positions(pos: Array, cls_rows: int, grid: Size, own_grid: Size | None, m: Mistakes) -> Array:
    """One row for each token."""
    if "positions-from-one-row" in m:
        return pos[:1]
    above, table = pos[:cls_rows], pos[cls_rows:]
    if "positions-from-the-cls-row" in m:
        table = pos[: len(pos) - cls_rows]
    if own_grid is not None and grid != own_grid:
        table = interpolated(table, own_grid, grid, m)
    if "cls-position-missing" in m:
        above = jnp.zeros_like(above)
    if "cls-position-gradient-missing" in m:
        above = stop_gradient(above)
    table = jnp.concatenate([above, table])
    if "positions-skip-first-row" in m:
        table = jnp.concatenate([jnp.zeros_like(table[:1]), table[1:]])
    return table


def interpolated(table: Array, old: Size, new: Size, m: Mistakes) -> Array:
    """Positions of another grid, rows by rows and columns by columns."""
    if "interpolation-gradient-missing" in m:
        table = stop_gradient(table)
    if "interpolation-gradient-resampled" in m:
        return by_hand(
            lambda t: read(t, cubic(old, new)), lambda d_y, t: read(d_y, cubic(new, old))
        )(table)  # fmt: skip
    grid = table.reshape(*old, -1)
    if "positions-antialiased" in m:  # as JAX does unless told not to
        return jax.image.resize(grid, (*new, grid.shape[-1]), "cubic").reshape(-1, grid.shape[-1])
    if "positions-bilinear" in m:  # as `zoom` of SciPy does
        places = [jnp.linspace(0.0, N - 1, n) for N, n in zip(old, new, strict=True)]
        at = jnp.meshgrid(*places, indexing="ij")
        one = functools.partial(jax.scipy.ndimage.map_coordinates, coordinates=at, order=1)
        return jax.vmap(one, in_axes=2, out_axes=2)(grid).reshape(-1, grid.shape[-1])
    if "interpolation-scale-offset" in m:  # as DINOv2 does, against rounding down
        return read(table, cubic(old, new, offset=0.1))
    if "interpolation-size-exchanged" in m:
        return read(table, cubic(old, new[::-1]))
    if "positions-corners-aligned" in m:
        return read(table, cubic(old, new, corners=True))
    if "cubic-a-half" in m:
        return read(table, cubic(old, new, a=-0.5))
    return read(table, cubic(old, new))


def read(table: Array, by: tuple[np.ndarray, np.ndarray]) -> Array:
    """The table (N, D) of a grid, multiplied on both axes of the grid."""
    rows, columns = (matrix.astype(table.dtype) for matrix in by)
    grid = table.reshape(rows.shape[1], columns.shape[1], -1)
    y = jnp.einsum("ik,jl,kld->ijd", rows, columns, grid, precision="highest")
    return y.reshape(-1, table.shape[-1])


def cubic(
    old: Size, new: Size, a: float = -0.75, offset: float = 0.0, corners: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The matrices of a cubic interpolation of rows and of columns, as in PyTorch."""
    first, second = (cubic_matrix(N, n, a, offset, corners) for N, n in zip(old, new, strict=True))
    return first, second


def cubic_matrix(old: int, new: int, a: float, offset: float, corners: bool) -> np.ndarray:
    """Of one axis."""
    matrix = np.zeros((new, old))
    for i in range(new):
        at = (i + 0.5) * old / (new + offset) - 0.5
        if corners:
            at = i * (old - 1) / max(new - 1, 1)
        first = math.floor(at) - 1
        for k in range(first, first + 4):
            t = abs(at - k)
            near = (a + 2) * t**3 - (a + 3) * t**2 + 1
            far = a * (t**3 - 5 * t**2 + 8 * t - 4)
            matrix[i, min(max(k, 0), old - 1)] += near if t <= 1 else far if t < 2 else 0.0
    return matrix


# ---- one row -------------------------------------------------------------------------------------


def pool(h: Array, kind: str, cls_rows: int, m: Mistakes) -> Array:
    """The CLS token's row, the mean of the others, or both, of h (B, n, D)."""
    parts = []
    if "cls" in kind:
        parts.append(cls_row(h, m))
    if "mean" in kind:
        parts.append(mean_row(h, cls_rows, m))
    if "pooled-parts-swapped" in m:
        parts.reverse()
    return jnp.concatenate(parts, axis=-1)


def to_rows(d_y: Array, x: Array) -> Array:
    """The same for each row of x (B, n, D)."""
    return jnp.broadcast_to(d_y[:, None], x.shape)


def cls_row(h: Array, m: Mistakes) -> Array:
    """The first."""
    if "cls-pools-last-row" in m:
        return h[:, -1]
    if "cls-pools-mean" in m:
        return h.mean(1)
    if "cls-pools-mean-of-patches" in m:
        return h[:, min(1, h.shape[1] - 1) :].mean(1)
    if "cls-pool-gradient-to-all-rows" in m:
        return by_hand(
            lambda h: h[:, 0], lambda d_y, h: to_rows(d_y, h)
        )(h)  # fmt: skip
    return h[:, 0]


def mean_row(h: Array, cls_rows: int, m: Mistakes) -> Array:
    """The mean of the patches' rows."""
    if "mean-pool-with-cls" in m:
        return h.mean(1)
    rows = h[:, cls_rows:]
    B, T, D = rows.shape
    if "mean-pool-sums" in m:
        return rows.sum(1)
    if "mean-pool-wrong-axis" in m:  # as if features came first
        return rows.reshape(B, D, T).mean(-1)
    if "mean-pool-takes-first-row" in m:
        return rows[:, 0]
    if "mean-pool-skips-first-row" in m:
        return rows[:, min(1, T - 1) :].mean(1)
    if "mean-pool-gradient-not-divided" in m:
        return by_hand(lambda x: x.mean(1), lambda d_y, x: to_rows(d_y, x))(rows)
    if "mean-pool-gradient-over-all-rows" in m:
        n = h.shape[1]
        return by_hand(lambda x: x.mean(1), lambda d_y, x: to_rows(d_y, x) / n)(rows)
    return rows.mean(1)
