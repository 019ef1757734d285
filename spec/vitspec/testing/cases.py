"""A case: a model, images, cotangents and tangents, all drawn from one seed.

The cases of this file are of the Lean mirror's two models; `vitspec.testing.practical_cases` has
those of the practical family, and `vitspec.testing.kinds` what the checks want of either.

A case is small to print and complete to reproduce. `random_case` draws the shapes that make
mistakes visible: several heads, layers and channels, nothing square, stride unlike the patch,
padding, heads that do not divide the width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vitspec.config import ViTConfig
from vitspec.geometry import patch_count
from vitspec.models.transformer import TransformerEncoder, encoder_layer_trace
from vitspec.models.vit import ViTClsSpec, ViTSpec
from vitspec.typing import Array

MODELS: dict[str, type[Any]] = {"vit": ViTSpec, "vit-cls": ViTClsSpec}
"""The Lean mirror's two models by the name that an implementation claims."""


class Drawn:
    """What every case draws from its seed; the arrays are float64 and the same on every call."""

    config: Any
    seed: int
    batch: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        raise NotImplementedError

    def model(self) -> Any:
        """The specification's record of the parameters."""
        raise NotImplementedError

    def image(self) -> Array:
        """(C, H, W), normal."""
        return self._rng(1).standard_normal(self.image_shape)

    def images(self) -> Array:
        """(B, C, H, W), normal; the first is `image()`."""
        return self._rng(1).standard_normal((self.batch, *self.image_shape))

    def d_logits(self) -> Array:
        """The cotangent of the logits, (K,), normal."""
        return self._rng(2).standard_normal(self.config.num_classes)

    def cotangent(self) -> Array:
        """The cotangents of the batch's logits, (B, K), normal; the first is `d_logits()`."""
        return self._rng(2).standard_normal((self.batch, self.config.num_classes))

    def tangent(self) -> Any:
        """A direction for the parameters: a model of normal numbers."""
        rng = self._rng(3)
        return self.model().map(lambda leaf: rng.standard_normal(leaf.shape))

    def d_image(self) -> Array:
        """A direction for the image, (C, H, W), normal."""
        return self._rng(4).standard_normal(self.image_shape)

    def _rng(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, stream])


@dataclass(frozen=True)
class Case(Drawn):
    """One of the Lean mirror's models at one point."""

    spec: str
    config: ViTConfig
    in_channels: int
    height: int
    width: int
    seed: int
    scale: float = 1.0
    """Of the encoder's input. A small one makes the epsilon of the first normalisation count."""
    batch: int = 1
    """The number of images."""

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
        model_type = MODELS[self.spec]
        flat = model_type.init(self.config, **self.size, rng=self._rng(0)).to_flat()
        for name in flat.keys() & {"patch_embed.kernel", "patch_embed.bias", "cls_token"}:
            flat[name] = flat[name] * self.scale
        flat["pos_enc.pos"] = flat["pos_enc.pos"] * self.scale
        return model_type.from_flat(self.config, flat, **self.size)


def tiled_case(rng: np.random.Generator, spec: str) -> Case:
    """A small random case whose patches tile the image, so that they can be moved."""
    case = random_case(rng, spec)
    side = case.config.patch_h
    config = replace(case.config, patch_w=side, stride=side, padding=0)
    rows, columns = (int(n) for n in rng.integers(1, 4, size=2))
    return replace(
        case, config=config, height=side * (rows + 1), width=side * columns, batch=2, scale=1.0
    )


def random_case(rng: np.random.Generator, spec: str) -> Case:
    """A small random case for `spec` ("vit" or "vit-cls"), with one to three images."""

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
        if patch_count(config, height, width) + (spec == "vit-cls") >= 1:
            channels, seed = integer(1, 3), integer(0, 2**31)
            scale = float(rng.choice([1.0, 0.01]))
            return Case(spec, config, channels, height, width, seed, scale, integer(1, 3))


KINK_MARGIN = 1e-3
"""How far from 0 `away_from_kinks` keeps the inputs of the ReLUs."""


def away_from_kinks(model: Any, images: Array, margin: float = KINK_MARGIN) -> Any:
    """The model with biases b1 moved a little, so that no ReLU's input is near 0 at these images.

    At 0 the derivative of the ReLU jumps. Where rounding takes an input across, a correct
    implementation computes the other one-sided derivative, far from this one: in float32 a
    ViT-Base/16 has several such among its seven million. So gradients are compared where they exist
    with room to spare. For each hidden feature the bias moves 0 to the middle of the nearest gap
    between the tokens' values that is wide enough; this shifts most by less than 1e-2.

    Args:
        model: a `ViTSpec` or `ViTClsSpec`.
        images: (B, C, H, W).
        margin: how near is too near.
    """
    sequences, layers = [model.embed(image) for image in images], []
    for layer in model.encoder.layers:
        hidden = np.concatenate([encoder_layer_trace(layer, x).ffn.hidden for x in sequences])
        ffn = replace(layer.ffn, b1=layer.ffn.b1 - nearest_gap(hidden, margin))
        layers.append(replace(layer, ffn=ffn))
        sequences = [encoder_layer_trace(layers[-1], x).output for x in sequences]
    return replace(model, encoder=TransformerEncoder(tuple(layers)))


def nearest_gap(values: Array, margin: float = KINK_MARGIN) -> Array:
    """For each column of (n, F), the number nearest to 0 that is `margin` from every entry."""
    low, high = np.sort(values, axis=0) - margin, np.sort(values, axis=0) + margin
    # A number is free if it lies between one value's upper and the next value's lower margin.
    infinite = np.full((1, values.shape[1]), np.inf)
    start, end = np.concatenate([-infinite, high]), np.concatenate([low, infinite])
    nearest = np.clip(0.0, start, end)  # where start > end the gap is too narrow
    distance = np.where(start <= end, np.abs(nearest), np.inf)
    return np.take_along_axis(nearest, distance.argmin(axis=0)[None], axis=0)[0]
