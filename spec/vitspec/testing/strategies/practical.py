"""Hypothesis strategies of the practical family: configurations, cases and points.

`values` is one of `vitspec.testing.families.practical.VALUES`; None draws the kind as well. Every
configuration has a classifier, and none has a mask token, a pooler or a decoder unless `fields`
says so.
"""

from __future__ import annotations

from typing import Any, get_args

from hypothesis import strategies as st

from vitspec.testing.families.practical import VALUES, VisionTransformerCase
from vitspec.testing.reference import Point
from vitspec.testing.strategies.numbers import kinds
from vitspec.testing.strategies.sizes import drawn, seeds
from vitspec.vision_transformer_config import Activation, VisionTransformerConfig

_POOLS = (("cls", True), ("mean", False), ("mean", True), ("cls_mean", True))


@st.composite
def vision_transformer_configs(
    draw: Any, /, max_layers: int = 3, max_extent: int = 9, **fields: Any
) -> VisionTransformerConfig:
    """Small well-formed configurations: every option of the architecture free.

    Args:
        draw: given by Hypothesis.
        max_layers: the largest number of blocks; the smallest is 0.
        max_extent: the largest hidden layer; a patch's extent goes up to half of it.
        **fields: fields of the configuration to draw otherwise: a strategy or a value each.
    """
    patch = st.integers(1, max(max_extent // 2, 1))
    patch_h, patch_w = draw(patch), draw(patch)
    heads, head_dim = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    pool, cls_token = draw(st.sampled_from(_POOLS))
    free = {
        "image_h": patch_h * draw(st.integers(1, 3)) + draw(st.integers(0, patch_h - 1)),
        "image_w": patch_w * draw(st.integers(1, 3)) + draw(st.integers(0, patch_w - 1)),
        "in_channels": st.integers(1, 3),
        "patch_h": patch_h,
        "patch_w": patch_w,
        "embed_dim": heads * head_dim,
        "hidden_dim": st.integers(1, max_extent),
        "head_count": heads,
        "num_layers": st.integers(0, max_layers),
        "num_classes": st.integers(1, 4),
        "activation": st.sampled_from(get_args(Activation)),
        "layer_norm_eps": st.sampled_from([1e-6, 1e-5, 1e-12]),
        "qkv_bias": st.booleans(),
        "output_bias": st.booleans(),
        "layer_scale": st.booleans(),
        "cls_token": cls_token,
        "pool": pool,
    }
    return VisionTransformerConfig(**drawn(draw, free | fields))


@st.composite
def vision_transformer_cases(
    draw: Any, /, values: str | None = "normal", max_batch: int = 1, **fields: Any
) -> VisionTransformerCase:
    """Cases, which print as one line and make model, images and cotangents from their seed.

    Args:
        draw: given by Hypothesis.
        values: of the parameters.
        max_batch: the largest number of images.
        **fields: as in `vision_transformer_configs`.
    """
    return VisionTransformerCase(
        draw(vision_transformer_configs(**fields)),
        draw(seeds),
        draw(kinds(values, VALUES)),
        draw(st.integers(1, max_batch)),
    )


def vision_transformer_points(
    values: str | None = "normal", max_batch: int = 3, **fields: Any
) -> st.SearchStrategy[Point]:
    """Models with parameters, a batch of images and a cotangent, as the checks evaluate them."""
    return vision_transformer_cases(values, max_batch, **fields).map(Point.of)
