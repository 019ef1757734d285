"""Where the CLS token looks: maps from attention weights, drawn over the picture.

    of a layer:  the mean over its heads of the CLS token's row, without its own entry
    rollout:     the CLS token's row of  M_L ... M_2 M_1,  M_l = (mean over heads of A_l + I) / 2

A_l is (H, n, n), rows sum to 1. Rollout is that of Abnar and Zuidema (2005.00928, section 3): the
identity stands for the residual connection, and rows are divided by their sums again. A map is a
picture of the model's arithmetic, not of its reasons.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vitspec.errors import InvalidArray

VIRIDIS = (
    (68, 1, 84), (72, 26, 108), (71, 47, 125), (65, 68, 135), (57, 86, 140), (49, 104, 142),
    (42, 120, 142), (35, 136, 142), (31, 152, 139), (34, 168, 132), (53, 183, 121), (84, 197, 104),
    (122, 209, 81), (165, 219, 54), (210, 226, 27), (253, 231, 37),
)  # fmt: skip
"""Every 17th of viridis' 256 colours (van der Walt and Smith 2015, CC0): perceptually uniform."""

ROW_SUM_TOLERANCE = 0.02
"""How far from 1 a row's sum may be: bfloat16's rounding of a thousand weights stays within."""


def cls_attention(
    weights: Any, grid: tuple[int, int], layer: int = -1, prefix_tokens: int = 1
) -> Any:
    """How much the CLS token attends to each patch in one layer, the mean over heads: (h, w).

    Args:
        weights: one image's attention weights, (L, H, n, n).
        grid: rows and columns of patches.
        layer: which one; -1 is the last.
        prefix_tokens: rows above the patches: the CLS token, and registers if there are any.
    """
    weights = check_weights(weights, grid, prefix_tokens)
    if not -len(weights) <= layer < len(weights):
        raise ValueError(f"layer {layer} of {len(weights)}: expected 0 to {len(weights) - 1}")
    return weights[layer].mean(0)[0, prefix_tokens:].reshape(grid)


def cls_rollout(weights: Any, grid: tuple[int, int], prefix_tokens: int = 1) -> Any:
    """How much of each patch reaches the CLS token through all layers: (h, w)."""
    weights = check_weights(weights, grid, prefix_tokens)
    return attention_rollout(weights, token=0)[prefix_tokens:].reshape(grid)


def attention_rollout(weights: Any, token: int | None = None) -> Any:
    """The product of all layers' (mean over heads + I) / 2, rows divided by their sums.

    Args:
        weights: (L, H, n, n).
        token: the row that is wanted, which then is all that is computed; None is all, (n, n).
    """
    identity = np.eye(weights.shape[-1])
    rows = identity if token is None else identity[token]
    for layer in reversed(weights):
        # A row may be all 0, if its query may attend to nothing: it keeps itself.
        mixed = (np.asarray(layer, np.float64).mean(0) + identity) / 2
        rows = rows @ (mixed / mixed.sum(1, keepdims=True))
    return rows


def check_weights(weights: Any, grid: tuple[int, int], prefix_tokens: int) -> Any:
    """The weights in float64, if they are attention weights of such a grid."""
    weights = np.asarray(weights, np.float64)
    tokens = grid[0] * grid[1] + prefix_tokens
    if weights.ndim != 4 or weights.shape[2:] != (tokens, tokens) or 0 in weights.shape:
        raise InvalidArray(
            f"weights: expected (layers, heads, {tokens}, {tokens}) for {grid[0]} x {grid[1]} "
            f"patches and {prefix_tokens} tokens above them, got {weights.shape}; give one image's"
        )
    if prefix_tokens < 1:
        raise ValueError(f"prefix_tokens: expected at least 1, the CLS token, got {prefix_tokens}")
    sums = weights.sum(-1)
    fits = (np.abs(sums - 1) <= ROW_SUM_TOLERANCE) | (sums == 0)
    if not (fits.all() and (weights >= 0).all()):
        raise InvalidArray(
            "weights: expected what a softmax gives, entries of at least 0 whose rows sum to 1; "
            f"got entries from {weights.min():g} to {weights.max():g} and sums from "
            f"{sums.min():g} to {sums.max():g}: give weights, not scores"
        )
    return weights


def colours(values: Any) -> Any:
    """Each of [0, 1] as a colour of viridis: (..., 3), uint8."""
    table = np.array(VIRIDIS, np.float64)
    at = np.linspace(0, 1, len(table))
    channels = [np.interp(values, at, table[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, -1)).astype(np.uint8)


def draw_attention(
    picture: Any, attention: Any, title: str = "", opacity: float | int = 0.6
) -> Image.Image:
    """The map over the picture, which keeps its size; below, its scale and title if they fit.

    Args:
        picture: a Pillow image, or uint8 (height, width, 3): what the model saw, as
            `ImageProcessor.pixels` gives it.
        attention: (h, w), one number a patch; enlarged bilinearly.
        title: stands beside the scale.
        opacity: of the map: 0 shows the picture alone, 1 the map alone.
    """
    attention = np.asarray(attention, np.float64)
    if attention.ndim != 2 or not attention.size or not np.isfinite(attention).all():
        raise InvalidArray(
            f"attention: expected (rows, columns) of finite numbers, got {attention.shape}"
        )
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity: expected a number from 0 to 1, got {opacity!r}")
    under = picture if isinstance(picture, Image.Image) else Image.fromarray(np.asarray(picture))
    under = under.convert("RGB")
    low, high = float(attention.min()), float(attention.max())
    scaled = (attention - low) / (high - low) if high > low else np.zeros_like(attention)
    enlarged = Image.fromarray(scaled.astype(np.float32)).resize(
        under.size, Image.Resampling.BILINEAR
    )
    over = Image.fromarray(colours(np.clip(np.asarray(enlarged, np.float64), 0, 1)))
    drawn = Image.blend(under, over, opacity)
    _legend(drawn, f"{low:.2g}", f"{high:.2g} {title}".rstrip())
    return drawn


def save_picture(picture: Image.Image, path: Any) -> None:
    """Write the picture as PNG, whole or not at all."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            picture.save(file, "PNG")
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # as any new file; mkstemp's are private
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _legend(picture: Image.Image, low: str, high: str) -> None:
    """Draws "low, all colours, high and title" on a dark band along the lower edge, if it fits."""
    font = ImageFont.load_default()
    draw = ImageDraw.Draw(picture)
    left, right = (int(np.ceil(draw.textlength(text, font))) for text in (low, high))
    bar, gap, band = 64, 4, 16
    width = left + right + bar + 4 * gap
    if width > picture.width or 3 * band > picture.height:
        return
    top = picture.height - band
    draw.rectangle((0, top, width, picture.height), fill=(0, 0, 0))
    draw.text((gap, top + 2), low, (255, 255, 255), font)
    scale = Image.fromarray(colours(np.tile(np.linspace(0, 1, bar), (band - 6, 1))))
    picture.paste(scale, (left + 2 * gap, top + 3))
    draw.text((left + bar + 3 * gap, top + 2), high, (255, 255, 255), font)
