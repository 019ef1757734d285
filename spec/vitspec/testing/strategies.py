"""Hypothesis strategies for configurations and cases."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from vitspec.config import ViTConfig
from vitspec.geometry import patch_count
from vitspec.testing.cases import Case

seeds = st.integers(0, 2**32 - 1)


@st.composite
def configs(
    draw: Any, min_embed_dim: int = 1, max_layers: int = 3, max_extent: int = 9
) -> ViTConfig:
    """Small well-formed configurations: every field free, so heads need not divide the width.

    `max_extent` bounds the widths; patches go up to half of it.
    """
    patch = st.integers(1, max(max_extent // 2, 1))
    return ViTConfig(
        patch_h=draw(patch),
        patch_w=draw(patch),
        stride=draw(patch),
        padding=draw(st.integers(0, 2)),
        embed_dim=draw(st.integers(min_embed_dim, max_extent)),
        hidden_dim=draw(st.integers(1, max_extent)),
        head_count=draw(st.integers(1, 4)),
        num_layers=draw(st.integers(0, max_layers)),
        num_classes=draw(st.integers(1, 4)),
    )


@st.composite
def cases(
    draw: Any,
    spec: str | None = None,
    min_embed_dim: int = 1,
    max_layers: int = 3,
    max_extent: int = 9,
) -> Case:
    """Cases of either model (or of `spec`); the mean-pooling model always has a token."""
    spec = spec or draw(st.sampled_from(["vit", "vit-cls"]))
    config = draw(configs(min_embed_dim, max_layers, max_extent))
    channels = draw(st.integers(1, 3))
    height, width = draw(st.integers(1, max_extent)), draw(st.integers(1, max_extent))
    if spec == "vit" and patch_count(config, height, width) == 0:
        # Mean pooling needs a token: grow the image until one patch fits.
        height, width = max(height, config.patch_h), max(width, config.patch_w)
    return Case(spec, config, channels, height, width, draw(seeds))
