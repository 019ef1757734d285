"""Hypothesis strategies for configurations and cases."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from vitspec.config import ViTConfig
from vitspec.geometry import patch_count
from vitspec.testing.cases import Case

seeds = st.integers(0, 2**32 - 1)


@st.composite
def configs(draw: Any, min_embed_dim: int = 1, max_layers: int = 3) -> ViTConfig:
    """Small well-formed configurations: every field free, so heads need not divide the width."""
    return ViTConfig(
        patch_h=draw(st.integers(1, 4)),
        patch_w=draw(st.integers(1, 4)),
        stride=draw(st.integers(1, 5)),
        padding=draw(st.integers(0, 3)),
        embed_dim=draw(st.integers(min_embed_dim, 9)),
        hidden_dim=draw(st.integers(1, 8)),
        head_count=draw(st.integers(1, 4)),
        num_layers=draw(st.integers(0, max_layers)),
        num_classes=draw(st.integers(1, 5)),
    )


@st.composite
def cases(
    draw: Any, spec: str | None = None, min_embed_dim: int = 1, max_layers: int = 3
) -> Case:
    """Cases of either model (or of `spec`); the mean-pooling model always has a token."""
    config = draw(configs(min_embed_dim=min_embed_dim, max_layers=max_layers))
    case = Case(
        spec=spec or draw(st.sampled_from(["vit", "vit-cls"])),
        config=config,
        in_channels=draw(st.integers(1, 3)),
        height=draw(st.integers(1, 7)),
        width=draw(st.integers(1, 7)),
        seed=draw(seeds),
    )
    if case.spec == "vit" and patch_count(config, case.height, case.width) == 0:
        # Mean pooling needs a token: grow the image until one patch fits.
        return Case(
            case.spec,
            config,
            case.in_channels,
            max(case.height, config.patch_h),
            max(case.width, config.patch_w),
            case.seed,
        )
    return case
