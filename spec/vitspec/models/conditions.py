"""What a call of a `VisionTransformer` is given beside its parameters, and what of it must fit.

All checks are made before any work, on anything that a caller may pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitspec.errors import InvalidArray
from vitspec.models.block import BlockFactors
from vitspec.records import check_array
from vitspec.typing import Array
from vitspec.vision_transformer_config import VisionTransformerConfig


@dataclass(frozen=True)
class Conditions:
    """What a call is given beside the image, and has no derivative.

    Attributes:
        masked_patches: (T,) Booleans: the patches in whose place the mask token stands.
        attention_mask: (n, n) Booleans: which rows (keys) each row (query) may attend to.
        embedding_factors: (n, D): what multiplies the sequence that enters the first block.
        block_factors: what multiplies in each block; a head mask is
            `BlockFactors(attention_weights=head_mask[i][:, None, None])`, dropout's masks are drawn
            by `vitspec.models.dropout.draw`.
        interpolate_positions: whether images of another size than the configuration's are taken,
            with interpolated positions.
    """

    masked_patches: Array | None = None
    attention_mask: Array | None = None
    embedding_factors: Array | None = None
    block_factors: tuple[BlockFactors, ...] | None = None
    interpolate_positions: bool = False


PLAIN = Conditions()
"""No mask, no factor, images of the configuration's size."""


def check_image(
    config: VisionTransformerConfig, image: Any, conditions: Any, dtype: np.dtype | None
) -> None:
    """Raise `InvalidArray` unless the image has the configuration's size, or may have another."""
    c = config
    if not isinstance(conditions, Conditions):
        raise InvalidArray(f"conditions: expected Conditions, got {type(conditions).__name__}")
    shape = (c.in_channels, c.image_h, c.image_w)
    given = getattr(image, "shape", shape)
    if conditions.interpolate_positions and len(given) == 3:
        shape = (c.in_channels, *given[1:])
        if 0 in c.grid_of(*given[1:]):
            raise InvalidArray(
                f"image: expected room for a patch of {c.patch_h} x {c.patch_w}, got an image of "
                f"{given[1]} x {given[2]}"
            )
    elif len(given) == 3 and given[0] == c.in_channels and given != shape:
        raise InvalidArray(
            f"image: expected shape {shape} (channels, height, width), got {given}; "
            "Conditions(interpolate_positions=True) takes other sizes"
        )
    check_array("image", image, shape, "channels, height, width", dtype)


def check_conditions(
    config: VisionTransformerConfig,
    conditions: Conditions,
    grid: tuple[int, int],
    dtype: np.dtype | None,
) -> None:
    """Raise `InvalidArray` unless masks and factors have the shapes of this grid's sequence."""
    c, T = config, math.prod(grid)
    n, D = T + c.cls_token, c.embed_dim
    _check_mask("masked_patches", conditions.masked_patches, (T,))
    _check_mask("attention_mask", conditions.attention_mask, (n, n))
    if conditions.masked_patches is not None and not c.mask_token:
        raise InvalidArray("masked_patches: this model has no mask token (mask_token=False)")
    if (factors := conditions.embedding_factors) is not None:
        check_array("embedding_factors", factors, (n, D), "rows, features", dtype)
    blocks = conditions.block_factors
    if blocks is None:
        return
    if len(blocks) != c.num_layers:
        raise InvalidArray(
            f"block_factors: expected one for each of {c.num_layers} blocks, got {len(blocks)}"
        )
    shapes = {
        "attention_weights": (c.head_count, n, n),
        "attention": (n, D),
        "hidden": (n, c.hidden_dim),
        "mlp": (n, D),
    }
    for i, block in enumerate(blocks):
        name = f"block_factors[{i}]"
        if not isinstance(block, BlockFactors):
            raise InvalidArray(f"{name}: expected BlockFactors, got {type(block).__name__}")
        for field, shape in shapes.items():
            if (factors := getattr(block, field)) is not None:
                _check_factors(f"{name}.{field}", factors, shape, dtype)


def check_cotangents(
    config: VisionTransformerConfig,
    cotangents: Mapping[str, Any],
    grid: tuple[int, int],
    dtype: np.dtype | None,
) -> None:
    """Raise `InvalidArray` unless each, by the output's name, is as an output that there is."""
    c, S = config, config.decoder_stride
    shapes: dict[str, tuple[int, ...]] = {
        "logits": (c.num_classes,),
        "last_hidden_state": (math.prod(grid) + c.cls_token, c.embed_dim),
        "pooler_output": (c.pooler_dim,),
        "reconstruction": (c.in_channels, grid[0] * S, grid[1] * S),
    }
    for name, cotangent in cotangents.items():
        if cotangent is None:
            continue
        if 0 in shapes[name]:
            raise InvalidArray(f"d_{name}: this model has no {name}")
        check_array(f"d_{name}", cotangent, shapes[name], f"as {name}", dtype)


def _check_mask(name: str, mask: Any, shape: tuple[int, ...]) -> None:
    if mask is None:
        return
    got = type(mask).__name__
    if isinstance(mask, np.ndarray):
        if mask.dtype == bool and mask.shape == shape:
            return
        got = f"{mask.dtype} of shape {mask.shape}"
    raise InvalidArray(f"{name}: expected Booleans of shape {shape}, got {got}")


def _check_factors(
    name: str, factors: Array, shape: tuple[int, ...], dtype: np.dtype | None
) -> None:
    """Require this shape, or 1 in the place of an axis."""
    fits = factors.ndim == len(shape) and all(
        size in (1, full) for size, full in zip(factors.shape, shape, strict=True)
    )
    check_array(name, factors, factors.shape if fits else shape, "or 1 for an axis", dtype)
