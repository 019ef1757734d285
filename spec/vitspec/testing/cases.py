"""A case: a model, an image, a cotangent and a tangent, all drawn from one seed.

A case is small to print and complete to reproduce. `random_case` draws the shapes that make
mistakes visible: several heads, layers and channels, nothing square, stride unlike the patch,
padding, heads that do not divide the width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vitspec.config import ViTConfig
from vitspec.geometry import patch_count
from vitspec.models.vit import ViTClsSpec, ViTSpec
from vitspec.typing import Array

MODELS: dict[str, type[Any]] = {"vit": ViTSpec, "vit-cls": ViTClsSpec}
"""The two models by the name that an implementation claims."""


@dataclass(frozen=True)
class Case:
    """One model at one point; the arrays are float64 and the same on every call."""

    spec: str
    config: ViTConfig
    in_channels: int
    height: int
    width: int
    seed: int

    @property
    def size(self) -> dict[str, int]:
        """The image's size, as the models' constructors want it."""
        return {"in_channels": self.in_channels, "height": self.height, "width": self.width}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.in_channels, self.height, self.width

    def model(self) -> Any:
        """The `ViTSpec` or `ViTClsSpec`."""
        return MODELS[self.spec].init(self.config, **self.size, rng=self._rng(0))

    def image(self) -> Array:
        """(C, H, W), normal."""
        return self._rng(1).standard_normal(self.image_shape)

    def d_logits(self) -> Array:
        """The cotangent of the logits, (K,), normal."""
        return self._rng(2).standard_normal(self.config.num_classes)

    def tangent(self) -> Any:
        """A direction for the parameters: a model of normal numbers."""
        rng = self._rng(3)
        return self.model().map(lambda leaf: rng.standard_normal(leaf.shape))

    def d_image(self) -> Array:
        """A direction for the image, (C, H, W), normal."""
        return self._rng(4).standard_normal(self.image_shape)

    def _rng(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, stream])


def random_case(rng: np.random.Generator, spec: str) -> Case:
    """A small random case for `spec` ("vit" or "vit-cls") with at least one token."""

    def integer(low: int, high: int) -> int:
        return int(rng.integers(low, high, endpoint=True))

    while True:
        config = ViTConfig(
            patch_h=integer(1, 4),
            patch_w=integer(1, 4),
            stride=integer(1, 4),
            padding=integer(0, 2),
            embed_dim=integer(3, 12),
            hidden_dim=integer(1, 12),
            head_count=integer(1, 4),
            num_layers=integer(1, 3),
            num_classes=integer(1, 6),
        )
        height, width = integer(1, 9), integer(1, 9)
        if patch_count(config, height, width) > 0:
            return Case(spec, config, integer(1, 3), height, width, seed=integer(0, 2**31))
