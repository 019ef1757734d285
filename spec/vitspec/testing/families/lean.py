"""The Lean mirror's two models: `ViTSpec` ("vit") and `ViTClsSpec` ("vit-cls").

`random_case` draws the shapes that make mistakes visible: several heads, layers and channels,
nothing square, stride unlike the patch, padding, heads that do not divide the width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vitspec.config import ViTConfig, vit_base_patch16_config
from vitspec.geometry import patch_count, patch_grid
from vitspec.models.parameters import parameter_shapes
from vitspec.models.transformer import encoder_layer_trace
from vitspec.models.vit import ViTClsSpec, ViTSpec
from vitspec.testing.families.family import (
    FULL_SIZE_IMAGE,
    SMOKE_IMAGE,
    DrawnCase,
    Family,
    Shape,
)
from vitspec.typing import Array

MODELS: dict[str, type[Any]] = {"vit": ViTSpec, "vit-cls": ViTClsSpec}
"""The Lean mirror's two models by the name that an implementation claims."""


@dataclass(frozen=True)
class Case(DrawnCase):
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


SMOKE_CONFIGS = (
    ViTConfig(
        patch_h=2, patch_w=3, stride=2, padding=0,
        embed_dim=6, hidden_dim=5, head_count=2, num_layers=1, num_classes=4,
    ),
    ViTConfig(
        patch_h=2, patch_w=2, stride=2, padding=0,
        embed_dim=8, hidden_dim=16, head_count=2, num_layers=1, num_classes=4,
    ),
    vit_base_patch16_config,
)  # fmt: skip

ILL_FORMED: dict[str, dict[str, Any]] = {
    "patchH_ne0": {"patch_h": 0},
    "patchW_ne0": {"patch_w": 0},
    "embedDim_pos": {"embed_dim": 0},
    "hiddenDim_pos": {"hidden_dim": 0},
    "headCount_pos": {"head_count": 0},
    "numClasses_ne0": {"num_classes": 0},
}
"""For each rule of Lean's `ViTConfig.WF`, what breaks it."""

TELLING_CASES = (
    Case(
        "", ViTConfig(patch_h=3, patch_w=2, stride=2, padding=1, embed_dim=10, hidden_dim=7,
                      head_count=3, num_layers=2, num_classes=4),
        in_channels=2, height=6, width=6, seed=0, batch=2,
    ),
    Case(
        "", ViTConfig(patch_h=2, patch_w=3, stride=1, padding=0, embed_dim=7, hidden_dim=9,
                      head_count=2, num_layers=1, num_classes=3),
        in_channels=3, height=3, width=6, seed=0, scale=0.01,
    ),
    Case(
        "", ViTConfig(patch_h=2, patch_w=4, stride=3, padding=2, embed_dim=8, hidden_dim=5,
                      head_count=4, num_layers=3, num_classes=5),
        in_channels=2, height=7, width=4, seed=0, scale=0.1, batch=3,
    ),
    Case(
        "", ViTConfig(patch_h=2, patch_w=2, stride=2, padding=0, embed_dim=8, hidden_dim=6,
                      head_count=2, num_layers=1, num_classes=3),
        in_channels=1, height=10, width=8, seed=0,
    ),
    Case(
        "", ViTConfig(patch_h=2, patch_w=2, stride=2, padding=0, embed_dim=6, hidden_dim=12,
                      head_count=2, num_layers=2, num_classes=4),
        in_channels=3, height=4, width=6, seed=0, batch=2,
    ),
)  # fmt: skip
"""The scale is that of the encoder's input."""

BACKWARD_ORDER = (
    "head.bias", "head.weights", "norm2_beta", "norm2_gamma", "ffn.b2", "ffn.w2", "ffn.b1",
    "ffn.w1", "norm1_beta", "norm1_gamma", "mha.wo", "mha.wv", "mha.wk", "mha.wq",
    "pos_enc.pos", "cls_token", "patch_embed.bias", "patch_embed.kernel", "image",
)  # fmt: skip


class LeanFamily(Family):
    """`ViTSpec` or `ViTClsSpec`."""

    def __init__(self, name: str) -> None:
        telling = tuple(replace(case, spec=name) for case in TELLING_CASES)
        super().__init__(
            name, ViTConfig, vit_base_patch16_config, SMOKE_CONFIGS, ILL_FORMED, telling,
            BACKWARD_ORDER,
        )  # fmt: skip

    def model(self, config: ViTConfig, params: Mapping[str, Array], image_shape: Shape) -> Any:
        """The `ViTSpec` or `ViTClsSpec`."""
        return MODELS[self.name].from_flat(config, params, **_size(image_shape))

    def full_size_parameters(self, config: ViTConfig, rng: np.random.Generator) -> dict[str, Array]:
        """As `ViTSpec.init` draws them."""
        model = MODELS[self.name].init(config, **_size(FULL_SIZE_IMAGE), rng=rng)
        flat: dict[str, Array] = model.to_flat()
        return flat

    def any_shapes(self, config: ViTConfig) -> dict[str, Shape]:
        """On images of `SMOKE_IMAGE`."""
        return parameter_shapes(config, *SMOKE_IMAGE, cls=MODELS[self.name].has_cls_token)

    def grid(self, config: ViTConfig, height: int, width: int) -> tuple[int, int]:
        """By stride and padding."""
        return patch_grid(config, height, width)

    def patches_can_move(self, config: ViTConfig) -> bool:
        """Without padding and overlap."""
        return config.patch_h == config.patch_w == config.stride and config.padding == 0

    def cls_rows(self, config: ViTConfig) -> int:
        """One or none, by the model."""
        return int(MODELS[self.name].has_cls_token)

    # ---- cases ---------------------------------------------------------------------------------

    def smoke_case(self, config: ViTConfig) -> Case:
        """Two images, of more than `SMOKE_IMAGE` where no patch fits into that."""
        shape = FULL_SIZE_IMAGE if config == self.full_size else SMOKE_IMAGE
        case = Case(self.name, config, *shape, seed=1, batch=2)
        return case if patch_count(config, *shape[1:]) else self.with_config(case, config)

    def random_case(self, rng: np.random.Generator) -> Case:
        """With several heads, layers and channels, nothing square, padding, overlap."""

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
            if patch_count(config, height, width) + self.cls_rows(config) >= 1:
                channels, seed = integer(1, 3), integer(0, 2**31)
                scale = float(rng.choice([1.0, 0.01]))
                batch = integer(1, 3)
                return Case(self.name, config, channels, height, width, seed, scale, batch)

    def tiled_case(self, rng: np.random.Generator) -> Case:
        """Square patches, with a stride of their size."""
        case = self.random_case(rng)
        side = case.config.patch_h
        config = replace(case.config, patch_w=side, stride=side, padding=0)
        rows, columns = (int(n) for n in rng.integers(1, 4, size=2))
        height, width = side * (rows + 1), side * columns
        return replace(case, config=config, height=height, width=width, batch=2, scale=1.0)

    def ordinary_case(self, rng: np.random.Generator, wanted: Mapping[str, Any]) -> Case:
        """The encoder's input is of scale 1."""
        case = self.random_case(rng)
        wanted = {n: v for n, v in wanted.items() if hasattr(case.config, n)}
        config = replace(case.config, **{"num_layers": 1, **wanted})
        return replace(case, config=config, scale=1.0, batch=1)

    def with_config(self, case: Case, config: ViTConfig) -> Case:
        """On an image of a few patches."""
        height, width = config.patch_h + config.stride, config.patch_w + 2 * config.stride
        return replace(case, config=config, height=height, width=width)

    def friendlier(self, case: Case) -> Iterator[Case]:
        """Heads divide the width; nothing is padded; patches are square and tile the image."""
        yield case
        c = case.config
        c = replace(c, embed_dim=-(-c.embed_dim // c.head_count) * c.head_count)
        yield replace(case, config=c)
        c = replace(c, padding=0)
        yield replace(case, config=c, height=case.height + 2, width=case.width + 2)
        side = c.patch_h
        c = replace(c, patch_w=side, stride=side)
        yield replace(case, config=c, height=2 * side, width=3 * side)
        yield replace(case, config=c, height=3 * side, width=3 * side)
        for c in self.smoke_configs:
            yield replace(case, config=c, height=2 * c.patch_h, width=3 * c.patch_w)

    # ---- kinks ---------------------------------------------------------------------------------

    def has_kinks(self, model: Any) -> bool:
        """Every activation is a ReLU."""
        return True

    def embed(self, model: Any, image: Array) -> Array:
        """Tokens with their positions."""
        return model.embed(image)

    def layer_trace(self, layer: Any, x: Array) -> Any:
        """Of a post-norm layer."""
        return encoder_layer_trace(layer, x)


def _size(image_shape: Sequence[int]) -> dict[str, int]:
    return dict(zip(("in_channels", "height", "width"), image_shape, strict=True))
