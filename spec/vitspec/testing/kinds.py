"""The models that can be graded, by the name that an implementation claims.

A `ModelKind` is all that the checks want of one: how to build it from flat parameters, how to draw
cases of it, which configuration it has at full size, and what it must refuse. `vit` and `vit-cls`
mirror Lean (`ViTConfig`); `vision-transformer` is the practical family
(`VisionTransformerConfig`), whose configuration has the size of the images in it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from vitspec.config import ViTConfig, vit_base_patch16_config
from vitspec.geometry import patch_grid
from vitspec.models.parameters import parameter_shapes
from vitspec.models.vision_transformer import VisionTransformer
from vitspec.models.vision_transformer_parameters import parameter_shapes as practical_shapes
from vitspec.testing import cases, practical_cases
from vitspec.testing.cases import MODELS, Case
from vitspec.testing.practical_cases import VisionTransformerCase
from vitspec.typing import Array
from vitspec.vision_transformer_config import VisionTransformerConfig

Config = ViTConfig | VisionTransformerConfig
AnyCase = Case | VisionTransformerCase
Shape = tuple[int, ...]

FULL_SIZE_IMAGE = (3, 224, 224)
SMOKE_IMAGE = (2, 4, 6)
"""(C, H, W) of the photograph, and of the first images that an implementation is given."""


@dataclass(frozen=True)
class ModelKind(ABC):
    """What the checks want of a model.

    Attributes:
        name: what an implementation claims to be.
        config_type: of its configurations.
        full_size: the configuration of ViT-Base/16, on images of `FULL_SIZE_IMAGE`.
        smoke_configs: one-block models, tried in turn until the implementation supports one; then
            ViT-Base/16.
        ill_formed: for each rule of the configuration, what breaks it in the first of these.
        interpolates: whether there are positions for images of another size.
    """

    interpolates: ClassVar[bool] = False

    name: str
    config_type: type[Any]
    full_size: Any
    smoke_configs: tuple[Any, ...]
    ill_formed: Mapping[str, Mapping[str, Any]]

    @abstractmethod
    def model(self, config: Any, params: Mapping[str, Array], image_shape: Shape) -> Any:
        """The specification's record of these parameters."""

    @abstractmethod
    def full_size_parameters(self, config: Any, rng: np.random.Generator) -> dict[str, Array]:
        """Fresh parameters by flat name, for images of `FULL_SIZE_IMAGE`."""

    @abstractmethod
    def any_shapes(self, config: Any) -> dict[str, Shape]:
        """The parameters' shapes that even an ill-formed configuration asks for."""

    @abstractmethod
    def smoke_case(self, config: Any) -> AnyCase:
        """Two images, of full size for `full_size`, else of `SMOKE_IMAGE` (or the config's)."""

    @abstractmethod
    def random_case(self, rng: np.random.Generator) -> AnyCase:
        """A small random case, with one to three images."""

    @abstractmethod
    def tiled_case(self, rng: np.random.Generator) -> AnyCase:
        """A small random case whose patches tile the image, so that they can be moved."""

    def interpolated_case(self, rng: np.random.Generator) -> AnyCase:
        """A small random case with images of another size, where positions are interpolated."""
        raise NotImplementedError(f"the positions of {self.name} are of one size")

    def call(self, config: Any, image_shape: Shape) -> dict[str, Any]:
        """What a call of the model on images of this size is given besides, by keyword."""
        return {}

    @abstractmethod
    def with_config(self, case: Any, config: Any) -> AnyCase:
        """The case with a configuration of the user's."""

    @abstractmethod
    def away_from_kinks(self, model: Any, images: Array, margin: float) -> Any:
        """The model with its ReLUs' inputs, if there are any, kept off 0 at these images."""

    @abstractmethod
    def grid(self, config: Any, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches."""

    @abstractmethod
    def patches_can_move(self, config: Any) -> bool:
        """Whether each pixel is of one patch at most, at whatever place in the image."""

    @abstractmethod
    def cls_rows(self, config: Any) -> int:
        """How many rows of the sequence are no patch's."""


class LeanKind(ModelKind):
    """`ViTSpec` or `ViTClsSpec`."""

    @property
    def has_cls_token(self) -> bool:
        """Whether it is `ViTClsSpec`."""
        return bool(MODELS[self.name].has_cls_token)

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
        return parameter_shapes(config, *SMOKE_IMAGE, cls=self.has_cls_token)

    def smoke_case(self, config: ViTConfig) -> Case:
        """Two images."""
        shape = FULL_SIZE_IMAGE if config == self.full_size else SMOKE_IMAGE
        return Case(self.name, config, *shape, seed=1, batch=2)

    def random_case(self, rng: np.random.Generator) -> Case:
        """With several heads, layers and channels, nothing square, padding, overlap."""
        return cases.random_case(rng, self.name)

    def tiled_case(self, rng: np.random.Generator) -> Case:
        """Square patches, with a stride of their size."""
        return cases.tiled_case(rng, self.name)

    def with_config(self, case: Case, config: ViTConfig) -> Case:
        """On an image of a few patches."""
        height, width = config.patch_h + config.stride, config.patch_w + 2 * config.stride
        return replace(case, config=config, height=height, width=width)

    def away_from_kinks(self, model: Any, images: Array, margin: float) -> Any:
        """Every activation is a ReLU."""
        return cases.away_from_kinks(model, images, margin)

    def grid(self, config: ViTConfig, height: int, width: int) -> tuple[int, int]:
        """By stride and padding."""
        return patch_grid(config, height, width)

    def patches_can_move(self, config: ViTConfig) -> bool:
        """Without padding and overlap."""
        return config.patch_h == config.patch_w == config.stride and config.padding == 0

    def cls_rows(self, config: ViTConfig) -> int:
        """One or none, by the model."""
        return int(self.has_cls_token)


class PracticalKind(ModelKind):
    """`VisionTransformer`."""

    interpolates = True

    def model(
        self, config: VisionTransformerConfig, params: Mapping[str, Array], image_shape: Shape
    ) -> VisionTransformer:
        """The `VisionTransformer`; it checks the images' size when it is called."""
        return VisionTransformer.from_flat(config, params)

    def full_size_parameters(
        self, config: VisionTransformerConfig, rng: np.random.Generator
    ) -> dict[str, Array]:
        """As `VisionTransformer.init` draws them."""
        return VisionTransformer.init(config, rng=rng).to_flat()

    def any_shapes(self, config: VisionTransformerConfig) -> dict[str, Shape]:
        """Where there is no grid, with the positions of patches of another size."""
        if 0 not in (config.patch_h, config.patch_w):
            return practical_shapes(config)
        good = self.smoke_configs[0]
        shapes = practical_shapes(replace(config, patch_h=good.patch_h, patch_w=good.patch_w))
        D, C = shapes["patch_embed.kernel"][:2]
        return shapes | {"patch_embed.kernel": (D, C, config.patch_h, config.patch_w)}

    def smoke_case(self, config: VisionTransformerConfig) -> VisionTransformerCase:
        """Two images of the configuration's size."""
        return VisionTransformerCase(config, seed=1, batch=2)

    def random_case(self, rng: np.random.Generator) -> VisionTransformerCase:
        """With every option of the configuration, between them."""
        return practical_cases.random_case(rng)

    def tiled_case(self, rng: np.random.Generator) -> VisionTransformerCase:
        """No pixel is left over."""
        return practical_cases.tiled_case(rng)

    def interpolated_case(self, rng: np.random.Generator) -> VisionTransformerCase:
        """More patches, fewer, or both, than the configuration has."""
        return practical_cases.interpolated_case(rng)

    def call(self, config: VisionTransformerConfig, image_shape: Shape) -> dict[str, Any]:
        """Interpolated positions for images of another size."""
        return {"conditions": practical_cases.conditions(config, image_shape)}

    def with_config(
        self, case: VisionTransformerCase, config: VisionTransformerConfig
    ) -> VisionTransformerCase:
        """On images of the configuration's size, or of another if they are so before."""
        if case.image_size is not None:
            return practical_cases.on_another_grid(case, config)
        return replace(case, config=config)

    def away_from_kinks(self, model: VisionTransformer, images: Array, margin: float) -> Any:
        """Only where the activation is ReLU."""
        return practical_cases.away_from_kinks(model, images, margin)

    def grid(self, config: VisionTransformerConfig, height: int, width: int) -> tuple[int, int]:
        """Whole patches."""
        return config.grid_of(height, width)

    def patches_can_move(self, config: VisionTransformerConfig) -> bool:
        """They never overlap."""
        return True

    def cls_rows(self, config: VisionTransformerConfig) -> int:
        """One or none, by the configuration."""
        return int(config.cls_token)


def _size(image_shape: Sequence[int]) -> dict[str, int]:
    return dict(zip(("in_channels", "height", "width"), image_shape, strict=True))


# ---- what there is -----------------------------------------------------------------------------

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
"""Of the Lean mirror's models."""

_NON_SQUARE = VisionTransformerConfig(
    image_h=4, image_w=6, in_channels=2, patch_h=2, patch_w=3,
    embed_dim=6, hidden_dim=5, head_count=2, num_layers=1, num_classes=4,
)  # fmt: skip
_PLAIN = VisionTransformerConfig(
    image_h=4, image_w=4, patch_h=2, patch_w=2,
    embed_dim=8, hidden_dim=16, head_count=2, num_layers=1, num_classes=4,
)  # fmt: skip
_MEAN = replace(_PLAIN, cls_token=False, pool="mean", layer_norm_eps=1e-6)
_SCALED = replace(_PLAIN, layer_scale=True, layer_norm_eps=1e-6)

ILL_FORMED: dict[str, dict[str, Any]] = {
    "patchH_ne0": {"patch_h": 0},
    "patchW_ne0": {"patch_w": 0},
    "embedDim_pos": {"embed_dim": 0},
    "hiddenDim_pos": {"hidden_dim": 0},
    "headCount_pos": {"head_count": 0},
    "numClasses_ne0": {"num_classes": 0},
}
"""For each rule of Lean's `ViTConfig.WF`, what breaks it."""

ILL_FORMED_PRACTICAL: dict[str, dict[str, Any]] = {
    "patchH_pos": {"patch_h": 0},
    "patchW_pos": {"patch_w": 0},
    "embedDim_pos": {"embed_dim": 0},
    "hiddenDim_pos": {"hidden_dim": 0},
    "headCount_pos": {"head_count": 0},
    "headCount_dvd_embedDim": {"head_count": 4},
    "patch_le_image": {"patch_h": 50},
    "activation_known": {"activation": "nonsense"},
    "pool_known": {"pool": "max"},
    "layerNormEps_pos": {"layer_norm_eps": -1e-6},
    "cls_needed": {"cls_token": False, "pool": "cls"},
    "pool_needed": {"pool": "none"},
}
"""For each rule of `VisionTransformerConfig` about a classifier, what breaks it."""

KINDS: dict[str, ModelKind] = {
    name: LeanKind(name, ViTConfig, vit_base_patch16_config, SMOKE_CONFIGS, ILL_FORMED)
    for name in MODELS
} | {
    practical_cases.NAME: PracticalKind(
        practical_cases.NAME,
        VisionTransformerConfig,
        VisionTransformerConfig(),
        (_NON_SQUARE, _PLAIN, _MEAN, _SCALED, VisionTransformerConfig()),
        ILL_FORMED_PRACTICAL,
    )
}
"""Every model that can be graded."""
