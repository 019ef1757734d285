"""From the image to the sequence, and from the sequence to one row, in PyTorch, with mistakes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import Tensor

from mistaken.torch_ops import Mistakes, by_hand

Params = dict[str, Tensor]
Size = tuple[int, int]


# ---- patches -------------------------------------------------------------------------------------


def prepared(images: Tensor, m: Mistakes) -> Tensor:
    """Images as the model gets them."""
    if "image-gradient-stopped" in m:
        images = images.detach()
    if "image-hwc-as-chw" in m:
        images = images.permute(0, 2, 3, 1).reshape(images.shape)
    if "image-normalised-again" in m:
        images = (images - 0.5) / 0.5
    if "image-divided-by-255" in m:
        images = images / 255
    if "channels-reversed" in m:
        images = images.flip(1)
    return images


def patches(
    images: Tensor, p: Params, stride: Size, padding: int, m: Mistakes
) -> tuple[Tensor, Size]:
    """The tokens (B, T, D) of images (B, C, H, W), and the rows and columns of their grid."""
    kernel, bias = p["patch_embed.kernel"], p["patch_embed.bias"]
    if "patch-embedding-gradient-stopped" in m:
        kernel, bias = kernel.detach(), bias.detach()
    D, C, ph, pw = kernel.shape
    if "kernel-hwio-as-oihw" in m:
        kernel = kernel.permute(2, 3, 1, 0).reshape(kernel.shape)
    if "kernel-flipped" in m:
        kernel = kernel.flip(2, 3)
    if "kernel-transposed" in m:
        kernel = kernel.transpose(2, 3).reshape(kernel.shape)
    if "window-channels-last" in m:  # the pixels of a window in the order (row, column, channel)
        kernel = kernel.reshape(D, ph, pw, C).permute(0, 3, 1, 2)
    images = padded(images, (ph, pw), stride, padding, m)
    if images.shape[2] < ph or images.shape[3] < pw:
        return images.new_zeros(len(images), 0, D), (0, 0)
    grid = convolution(images, kernel, stride, m)
    size = grid.shape[2], grid.shape[3]
    if "patch-bias-missing" not in m:
        grid = add_patch_bias(grid, bias, m)
    if "patches-column-major" in m:
        return grid.transpose(2, 3).flatten(2).mT, size
    if "tokens-by-raw-reshape" in m:
        return grid.reshape(len(grid), -1, D), size
    return grid.flatten(2).mT, size


def padded(images: Tensor, patch: Size, stride: Size, padding: int, m: Mistakes) -> Tensor:
    """With zeros around them."""
    if "padding-shifted" in m:
        low = max(padding - 1, 0)
        high = 2 * padding - low
        return F.pad(images, (low, high, low, high))
    if "padding-same" in m:
        pads: list[int] = []
        for size, extent, step in zip(images.shape[2:], patch, stride, strict=True):
            # As many steps as before, and no more padding than they need, most of it at the end.
            steps = (size + 2 * padding - extent) // step
            needed = max(steps * step + extent - size, 0)
            pads = [needed // 2, needed - needed // 2, *pads]
        return F.pad(images, pads)
    return F.pad(images, (padding,) * 4)


CONVOLUTION_BACKWARD = {"image-gradient-overwritten", "image-gradient-kernel-flipped"}


def convolution(images: Tensor, kernel: Tensor, stride: Size, m: Mistakes) -> Tensor:
    """Without bias."""
    if m & CONVOLUTION_BACKWARD:
        return by_hand(
            lambda x, w: F.conv2d(x, w, stride=stride),
            lambda d_y, x, w: convolution_backward(d_y, x, w, stride, m),
        )(images, kernel)
    return F.conv2d(images, kernel, stride=stride)


def convolution_backward(
    d_y: Tensor, x: Tensor, kernel: Tensor, stride: Size, m: Mistakes
) -> tuple[Tensor, Tensor]:
    """The gradients of the images and of the kernel, window by window."""
    ph, pw = kernel.shape[2:]
    d_x, d_kernel = torch.zeros_like(x), torch.zeros_like(kernel)
    back = kernel.flip(2, 3) if "image-gradient-kernel-flipped" in m else kernel
    for i in range(d_y.shape[2]):
        for j in range(d_y.shape[3]):
            top, left, d_token = i * stride[0], j * stride[1], d_y[:, :, i, j]
            window = (..., slice(top, top + ph), slice(left, left + pw))
            d_kernel += torch.einsum("bd,bcij->dcij", d_token, x[window])
            d_window = torch.einsum("bd,dcij->bcij", d_token, back)
            if "image-gradient-overwritten" in m:
                d_x[window] = d_window
            else:
                d_x[window] += d_window
    return d_x, d_kernel


def add_patch_bias(grid: Tensor, bias: Tensor, m: Mistakes) -> Tensor:
    """To every place of a grid (B, D, rows, columns)."""
    if "patch-bias-gradient-averaged" in m:
        return by_hand(
            lambda y, b: y + b[:, None, None], lambda d_y, y, b: (d_y, d_y.mean((2, 3)).sum(0))
        )(grid, bias)
    return grid + bias[:, None, None]


def whole_patches(images: Tensor, patch: Size, m: Mistakes) -> Tensor:
    """Without the pixels that fill no patch."""
    H, W = images.shape[2:]
    h, w = H // patch[0] * patch[0], W // patch[1] * patch[1]
    if "patch-remainder-first" in m:
        return images[:, :, H - h :, W - w :]
    if "image-gradient-of-the-remainder" in m:  # the border is repeated on the way back
        return by_hand(
            lambda x: x[:, :, :h, :w].clone(),
            lambda d_y, x: F.pad(d_y, (0, W - w, 0, H - h), mode="replicate"),
        )(images)
    return images[:, :, :h, :w]


# ---- the sequence --------------------------------------------------------------------------------


def sequence(tokens: Tensor, p: Params, grid: Size, own_grid: Size | None, m: Mistakes) -> Tensor:
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
        pos = pos.detach()
    if cls is not None:
        if "cls-gradient-stopped" in m:
            cls = cls.detach()
        row = for_each_image(cls[None], len(tokens), "cls", m)
        parts = (tokens, row) if "cls-token-last" in m else (row, tokens)
        tokens = torch.cat(parts, dim=1)
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


def for_each_image(rows: Tensor, batch: int, what: str, m: Mistakes) -> Tensor:
    """The rows (n, D) of a parameter, once for each image."""
    if f"{what}-gradient-of-one-image" in m:
        return by_hand(
            lambda rows: rows.expand(batch, -1, -1).clone(), lambda d_y, rows: d_y[0]
        )(rows)  # fmt: skip
    if f"{what}-gradient-averaged" in m:
        return by_hand(
            lambda rows: rows.expand(batch, -1, -1).clone(), lambda d_y, rows: d_y.mean(0)
        )(rows)  # fmt: skip
    return rows.expand(batch, -1, -1)


def positions(pos: Tensor, cls_rows: int, grid: Size, own_grid: Size | None, m: Mistakes) -> Tensor:
    """One row for each token."""
    if "positions-from-one-row" in m:
        return pos[:1]
    above, table = pos[:cls_rows], pos[cls_rows:]
    if "positions-from-the-cls-row" in m:
        table = pos[: len(pos) - cls_rows]
    if own_grid is not None and grid != own_grid:
        table = interpolated(table, own_grid, grid, m)
    if "cls-position-missing" in m:
        above = torch.zeros_like(above)
    if "cls-position-gradient-missing" in m:
        above = above.detach()
    table = torch.cat([above, table])
    if "positions-skip-first-row" in m:
        table = torch.cat([torch.zeros_like(table[:1]), table[1:]])
    return table


def interpolated(table: Tensor, old: Size, new: Size, m: Mistakes) -> Tensor:
    """Positions of another grid."""
    if "interpolation-gradient-missing" in m:
        table = table.detach()
    if "interpolation-gradient-resampled" in m:
        return by_hand(
            lambda t: resized(t, old, new), lambda d_y, t: resized(d_y, new, old)
        )(table)  # fmt: skip
    if "interpolation-scale-offset" in m:  # as DINOv2 does, against rounding down
        scales = tuple((n + 0.1) / N for n, N in zip(new, old, strict=True))
        return resized(table, old, None, scale_factor=scales)
    if "interpolation-size-exchanged" in m:
        return resized(table, old, new[::-1])
    if "positions-corners-aligned" in m:
        return resized(table, old, new, align_corners=True)
    if "positions-antialiased" in m:
        return resized(table, old, new, antialias=True)
    if "positions-bilinear" in m:
        return resized(table, old, new, mode="bilinear", align_corners=True)
    if "cubic-a-half" in m:
        rows, columns = (half_cubic(a, b).to(table) for a, b in zip(old, new, strict=True))
        y = torch.einsum("ik,jl,kld->ijd", rows, columns, table.reshape(*old, -1))
        return y.flatten(0, 1)
    return resized(table, old, new)


def resized(
    table: Tensor, old: Size, new: Size | None, mode: str = "bicubic", **how: Any
) -> Tensor:
    """By PyTorch."""
    grid = table.reshape(1, *old, -1).permute(0, 3, 1, 2)
    return F.interpolate(grid, size=new, mode=mode, **how).permute(0, 2, 3, 1).flatten(0, 2)


def half_cubic(old: int, new: int) -> Tensor:
    """The matrix of a cubic interpolation with a = -1/2, as in PIL."""
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        at = (i + 0.5) * old / new - 0.5
        first = int(at // 1) - 1
        for k in range(first, first + 4):
            t = abs(at - k)
            near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
            matrix[i, min(max(k, 0), old - 1)] += near if t <= 1 else far if t < 2 else 0.0
    return matrix


# ---- one row -------------------------------------------------------------------------------------


def pool(h: Tensor, kind: str, cls_rows: int, m: Mistakes) -> Tensor:
    """The CLS token's row, the mean of the others, or both, of h (B, n, D)."""
    parts = []
    if "cls" in kind:
        parts.append(cls_row(h, m))
    if "mean" in kind:
        parts.append(mean_row(h, cls_rows, m))
    if "pooled-parts-swapped" in m:
        parts.reverse()
    return torch.cat(parts, dim=-1)


def cls_row(h: Tensor, m: Mistakes) -> Tensor:
    """The first."""
    if "cls-pools-last-row" in m:
        return h[:, -1]
    if "cls-pools-mean" in m:
        return h.mean(1)
    if "cls-pools-mean-of-patches" in m:
        return h[:, min(1, h.shape[1] - 1) :].mean(1)
    if "cls-pool-gradient-to-all-rows" in m:
        return by_hand(
            lambda h: h[:, 0].clone(), lambda d_y, h: d_y[:, None].expand_as(h)
        )(h)  # fmt: skip
    return h[:, 0]


def mean_row(h: Tensor, cls_rows: int, m: Mistakes) -> Tensor:
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
        return by_hand(lambda x: x.mean(1), lambda d_y, x: d_y[:, None].expand_as(x))(rows)
    if "mean-pool-gradient-over-all-rows" in m:
        n = h.shape[1]
        return by_hand(lambda x: x.mean(1), lambda d_y, x: d_y[:, None].expand_as(x) / n)(rows)
    return rows.mean(1)
