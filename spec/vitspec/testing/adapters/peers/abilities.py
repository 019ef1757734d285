"""Which configurations of the practical family a library has, as data.

One description gives both answers that the kit asks an implementation for: `supports`, why it
cannot do a configuration, and `closest`, the nearest configuration that it can. A configuration is
supported if it is its own closest.

>>> from vitspec import VisionTransformerConfig
>>> one = Abilities({"activation": ("gelu", "relu"), "pool": ("cls",)}, square_images=True)
>>> config = VisionTransformerConfig(activation="quick_gelu", image_h=32)
>>> one.supports(config)
"image_h: 224 only, got 32; activation: 'gelu' or 'relu' only, got 'quick_gelu'"
>>> one.supports(one.closest(config)) is None
True
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from vitspec.testing.adapters.adapter import SupportsSize
from vitspec.testing.adapters.frameworks import installed_version
from vitspec.vision_transformer_config import VisionTransformerConfig

Change = Callable[[VisionTransformerConfig], VisionTransformerConfig]

PARTS_OF_A_CLASSIFIER = {
    "mask_token": (False,), "pooler_dim": (0,), "decoder_stride": (0,),
}  # fmt: skip
"""What no logits depend on."""


def unchanged(config: VisionTransformerConfig) -> VisionTransformerConfig:
    """The configuration."""
    return config


@dataclass(frozen=True)
class Abilities:
    """What a library's ViT can be.

    Attributes:
        only: by the name of a field, the values that the library has, the first to be taken in
            place of others. A field that is not here may have any value.
        square_patches: whether a patch must be square.
        square_images: whether an image must be.
        whole_patches: whether patches must fill the image.
        also: further changes, made last; what it leaves alone is supported.
        supports_size: from a configuration and (H, W) to None, or why positions are not
            interpolated for images of that size; None if they never are.
    """

    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    square_patches: bool = False
    square_images: bool = False
    whole_patches: bool = False
    also: Change = unchanged
    supports_size: SupportsSize | None = None

    def closest(self, config: VisionTransformerConfig) -> VisionTransformerConfig:
        """The nearest configuration that the library has."""
        known = PARTS_OF_A_CLASSIFIER | dict(self.only)
        changes = {n: values[0] for n, values in known.items() if getattr(config, n) not in values}
        config = replace(config, **changes)
        if min(config.patch_h, config.patch_w) > 0:
            config = self._with_geometry(config)
        elif self.square_patches or self.square_images:
            config = replace(config, patch_w=config.patch_h)
        return self.also(config)

    def supports(self, config: VisionTransformerConfig) -> str | None:
        """None, or what the library does not have, and what it has in its place."""
        near = self.closest(config)
        texts = []
        for name in (one.name for one in fields(config)):
            got, value = getattr(config, name), getattr(near, name)
            if got != value:
                has = " or ".join(repr(v) for v in self.only.get(name, (value,)))
                texts.append(f"{name}: {has} only, got {got!r}")
        return "; ".join(texts) or None

    def identity(self, library: str) -> dict[str, Any]:
        """What `from_torch`, `from_jax` and `from_nnx` ask of a library's ViT, beside its name."""
        return {
            "version": installed_version(library),
            "spec": "vision-transformer",
            "supports": self.supports,
            "closest": self.closest,
            "supports_size": self.supports_size,
        }

    def _with_geometry(self, config: VisionTransformerConfig) -> VisionTransformerConfig:
        c = config
        if self.square_patches and c.patch_w != c.patch_h:
            rest = min(c.image_w % c.patch_w, c.patch_h - 1)
            columns = c.image_w // c.patch_w
            c = replace(c, patch_w=c.patch_h, image_w=columns * c.patch_h + rest)
        if self.whole_patches:
            height, width = (max(n - n % p, p) for n, p in _sides(c))
            c = replace(c, image_h=height, image_w=width)
        if self.square_images and c.image_w != c.image_h:
            side, tile = max(c.image_h, c.image_w), math.lcm(c.patch_h, c.patch_w)
            if any(n % p == 0 for n, p in _sides(c)):  # stays filled by whole patches
                side = max(tile, side - side % tile)
            c = replace(c, image_h=side, image_w=side)
        return c


def square_before(config: VisionTransformerConfig, height: int, width: int) -> str | None:
    """None, or why not: only positions of a square grid of square patches are interpolated."""
    (rows, columns), patch = config.grid, (config.patch_h, config.patch_w)
    if rows == columns and patch[0] == patch[1]:
        return None
    return (
        f"only positions of a square grid of square patches are interpolated, got {rows} x"
        f" {columns} patches of {patch[0]} x {patch[1]}"
    )


def whole_patches_after(config: VisionTransformerConfig, height: int, width: int) -> str | None:
    """None, or why not: only images that patches fill are taken."""
    if height % config.patch_h == width % config.patch_w == 0:
        return None
    return (
        f"only images that patches of {config.patch_h} x {config.patch_w} fill are taken, got one"
        f" of {height} x {width}"
    )


def _sides(config: VisionTransformerConfig) -> tuple[tuple[int, int], tuple[int, int]]:
    """(image, patch) by rows and by columns."""
    return (config.image_h, config.patch_h), (config.image_w, config.patch_w)
