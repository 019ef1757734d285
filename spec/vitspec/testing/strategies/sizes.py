"""Configurations of the Lean mirror, sizes of images for them, and cases of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from vitspec.config import ViTConfig
from vitspec.errors import NotWellFormed
from vitspec.testing.families import MODELS, Case

Size = tuple[int, int, int]
"""An image's channels, height and width."""

seeds = st.integers(0, 2**32 - 1)
specs = st.sampled_from(sorted(MODELS))


def drawn(draw: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields, each a strategy or already a value, with what they turn out to be."""
    return {
        name: draw(how) if isinstance(how, st.SearchStrategy) else how
        for name, how in fields.items()
    }


@st.composite
def configs(
    draw: Any,
    /,
    min_embed_dim: int = 1,
    max_layers: int = 3,
    max_extent: int = 9,
    *,
    degenerate: bool = False,
    **fields: Any,
) -> ViTConfig:
    """Small well-formed configurations: every field free, so heads need not divide the width.

    Args:
        draw: given by Hypothesis.
        min_embed_dim: the smallest width of a token.
        max_layers: the largest number of layers; the smallest is 0.
        max_extent: the largest width; patches and strides go up to half of it.
        degenerate: whether the stride may be 0.
        **fields: fields of the configuration to draw otherwise: a strategy or a number each, such
            as `padding=0` or `head_count=st.sampled_from([1, 3])`.
    """
    half = max(max_extent // 2, 1)
    patch = st.integers(1, half)
    free = {
        "patch_h": patch,
        "patch_w": patch,
        "stride": st.sampled_from([*range(1, half + 1), 0]) if degenerate else patch,
        "padding": st.integers(0, 2),
        "embed_dim": st.integers(min_embed_dim, max_extent),
        "hidden_dim": st.integers(1, max_extent),
        "head_count": st.integers(1, 4),
        "num_layers": st.integers(0, max_layers),
        "num_classes": st.integers(1, 4),
    }
    return ViTConfig(**drawn(draw, free | fields))


@st.composite
def image_sizes(
    draw: Any,
    /,
    config: ViTConfig,
    spec: str = "vit",
    *,
    max_extent: int = 9,
    max_channels: int = 3,
    degenerate: bool = False,
) -> Size:
    """Channels, height and width of images for which the model exists.

    Among them are exactly one patch, several patches with and without rows and columns left over,
    images smaller than the patch (where the padding makes up for it) and, for "vit-cls", images
    into which no patch fits.

    Args:
        draw: given by Hypothesis.
        config: a well-formed configuration.
        spec: "vit" (at least one patch fits) or "vit-cls".
        max_extent: the largest height and width, or as large as two patches with what is left over.
        max_channels: the largest number of channels.
        degenerate: whether there may be no row or no column.

    Raises:
        NotWellFormed: the configuration is not, or no image has a token that "vit" needs.
    """
    config.check_well_formed()
    if spec == "vit" and config.stride == 0:
        raise NotWellFormed(repr(config), ["h_tok: with stride 0 no image has a token"])

    def extent(patch: int) -> int:
        return draw(_extents(patch, config, spec, max_extent, degenerate))

    channels = draw(st.integers(1, max_channels))
    return channels, extent(config.patch_h), extent(config.patch_w)


@st.composite
def _extents(
    draw: Any, /, patch: int, config: ViTConfig, spec: str, max_extent: int, degenerate: bool
) -> int:
    """Heights, or widths: windows and pixels beyond the last are drawn apart, and shrink apart.

    Every extent drawn by itself would shrink to a large patch on a small image as readily as to
    the opposite: to make either smaller, the other would have to change at the same time.
    """
    s, slack = config.stride, patch - 2 * config.padding  # slack: the extent of one window
    low = 0 if degenerate else 1
    if s == 0:
        return draw(st.integers(low, max_extent))
    fewest = max(1, 1 - (slack + s - 1 - low) // s)  # windows on at least `low` pixels
    limit = max(max_extent, slack + 2 * s - 1)
    most = (limit - slack) // s + 1
    may_have_none = spec == "vit-cls" and slack > low
    # One more than the most stands for none, which is not the simplest.
    windows = draw(st.integers(fewest, most + may_have_none))
    if windows > most:
        return slack - draw(st.integers(1, slack - low))
    extent = slack + (windows - 1) * s
    return extent + draw(st.integers(max(0, low - extent), min(s - 1, limit - extent)))


@st.composite
def cases(
    draw: Any,
    /,
    spec: str | None = None,
    *,
    max_extent: int = 9,
    degenerate: bool = False,
    **fields: Any,
) -> Case:
    """Cases of either model (or of `spec`); the mean-pooling model always has a token.

    A case prints as one line and makes its model, image and cotangents from its seed. The arguments
    are those of `configs` and `image_sizes`.
    """
    spec = spec or draw(specs)
    may_have_no_token = degenerate and spec != "vit"
    config = draw(configs(max_extent=max_extent, degenerate=may_have_no_token, **fields))
    C, H, W = draw(image_sizes(config, spec, max_extent=max_extent, degenerate=degenerate))
    scale = draw(st.sampled_from([1.0, 0.01, 0.0])) if degenerate else 1.0
    return Case(spec, config, C, H, W, draw(seeds), scale)
