"""The practical family: `VisionTransformer`, with parameters that make its options show.

The configuration has the size of the images. Between them, the small random cases have every
activation, epsilon and pooling, each bias and scale and the CLS token present and absent, patches
that are not square, and pixels to the right and below that fill no patch. `interpolated_case` has
images of another size, for which positions are interpolated. Masks and dropout are not checked.

What an epsilon, an offset or a saturated function does, ordinary numbers hide. `values` is one of

| values | the parameters |
| --- | --- |
| `normal` | as `VisionTransformer.init` draws them |
| `tiny` | the residual stream is small, so the epsilon of every normalisation counts |
| `offset` | the tokens are about 3, so a normalisation has to subtract first |
| `large` | queries, keys and hidden layers are times 4: softmax and activations near their ends |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from vitspec.models.block import Setting, block_trace
from vitspec.models.conditions import PLAIN, Conditions
from vitspec.models.vision_transformer import VisionTransformer
from vitspec.models.vision_transformer_parameters import parameter_shapes
from vitspec.testing.families.family import ORIENTATIONS, DrawnCase, Family, Shape
from vitspec.testing.families.options import OPTIONS, POOLS
from vitspec.typing import Array
from vitspec.vision_transformer_config import VisionTransformerConfig

NAME = "vision-transformer"
"""What an implementation claims to be."""

VALUES = ("normal", "tiny", "offset", "large")
"""The kinds of parameters."""

_TOKENS = ("patch_embed.kernel", "patch_embed.bias", "cls_token", "pos_enc.pos")
_ONTO_THE_STREAM = (".wo", ".bo", ".w2", ".b2")
_INTO_THE_ENDS = (".wq", ".wk", ".w1")
_TINY, _OFFSET, _LARGE = 0.1, 3.0, 4.0


@dataclass(frozen=True)
class VisionTransformerCase(DrawnCase):
    """One model of the practical family at one point."""

    spec: ClassVar[str] = NAME

    config: VisionTransformerConfig
    seed: int
    values: str = "normal"
    batch: int = 1
    image_size: tuple[int, int] | None = None
    """(H, W) of the images, if it is not the configuration's."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        size = self.image_size or (self.config.image_h, self.config.image_w)
        return self.config.in_channels, *size

    def model(self) -> VisionTransformer:
        """The `VisionTransformer`."""
        flat = VisionTransformer.init(self.config, rng=self._rng(0)).to_flat()
        return VisionTransformer.from_flat(self.config, changed(flat, self.values))


def changed(flat: dict[str, Array], values: str) -> dict[str, Array]:
    """Fresh parameters, as those of a kind."""
    if values not in VALUES:
        raise ValueError(f"values: expected one of {', '.join(VALUES)}, got {values!r}")
    factors = {"tiny": (_ONTO_THE_STREAM, _TINY), "large": (_INTO_THE_ENDS, _LARGE)}
    ending, factor = factors.get(values, ((), 1.0))
    flat = {name: leaf * factor if name.endswith(ending) else leaf for name, leaf in flat.items()}
    if values == "tiny":
        flat |= {name: flat[name] * _TINY for name in _TOKENS if name in flat}
    if values == "offset":
        flat["pos_enc.pos"] = flat["pos_enc.pos"] + _OFFSET
    return flat


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

SMOKE_CONFIGS = (_NON_SQUARE, _PLAIN, _MEAN, _SCALED, VisionTransformerConfig())

ILL_FORMED: dict[str, dict[str, Any]] = {
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
"""What must be refused: a rule of `VisionTransformerConfig`, and a change that breaks it."""

TELLING_CASES = (
    VisionTransformerCase(
        VisionTransformerConfig(image_h=5, image_w=6, in_channels=2, patch_h=2, patch_w=3,
                                embed_dim=6, hidden_dim=7, head_count=3, num_layers=2,
                                num_classes=4, layer_scale=True),
        seed=0, batch=2,
    ),
    VisionTransformerCase(
        VisionTransformerConfig(image_h=6, image_w=5, in_channels=3, patch_h=2, patch_w=2,
                                embed_dim=8, hidden_dim=9, head_count=2, num_layers=1,
                                num_classes=3, layer_norm_eps=1e-6, pool="cls_mean",
                                activation="relu"),
        seed=0, values="tiny",
    ),
    VisionTransformerCase(
        VisionTransformerConfig(image_h=6, image_w=7, in_channels=2, patch_h=3, patch_w=2,
                                embed_dim=8, hidden_dim=5, head_count=4, num_layers=3,
                                num_classes=5, pool="mean", activation="gelu_tanh"),
        seed=0, values="tiny", batch=3,
    ),
    VisionTransformerCase(
        VisionTransformerConfig(image_h=10, image_w=8, in_channels=1, patch_h=2, patch_w=2,
                                embed_dim=8, hidden_dim=6, head_count=2, num_layers=1,
                                num_classes=3, activation="quick_gelu", qkv_bias=False,
                                output_bias=False, cls_token=False, pool="mean"),
        seed=0, values="large",
    ),
    VisionTransformerCase(
        VisionTransformerConfig(image_h=4, image_w=6, in_channels=3, patch_h=2, patch_w=2,
                                embed_dim=6, hidden_dim=12, head_count=2, num_layers=2,
                                num_classes=4),
        seed=0, batch=2,
    ),
)  # fmt: skip

INTERPOLATED = VisionTransformerCase(
    VisionTransformerConfig(image_h=6, image_w=6, in_channels=2, patch_h=2, patch_w=2, embed_dim=6,
                            hidden_dim=12, head_count=2, num_layers=1, num_classes=4),
    seed=0, batch=2, image_size=(10, 4),
)  # fmt: skip
"""For what interpolates positions: more rows of patches, fewer columns."""

BACKWARD_ORDER = (
    "head.bias", "head.weights", "final_norm_beta", "final_norm_gamma", "layer_scale2", "ffn.b2",
    "ffn.w2", "ffn.b1", "ffn.w1", "norm2_beta", "norm2_gamma", "layer_scale1", "mha.bo", "mha.wo",
    "mha.bv", "mha.wv", "mha.bk", "mha.wk", "mha.bq", "mha.wq", "norm1_beta", "norm1_gamma",
    "pos_enc.pos", "cls_token", "patch_embed.bias", "patch_embed.kernel", "image",
)  # fmt: skip


class PracticalFamily(Family):
    """`VisionTransformer`."""

    interpolates = True
    options = OPTIONS

    def __init__(self) -> None:
        super().__init__(
            NAME, VisionTransformerConfig, VisionTransformerConfig(), SMOKE_CONFIGS, ILL_FORMED,
            TELLING_CASES, BACKWARD_ORDER,
        )  # fmt: skip

    def model(
        self, config: VisionTransformerConfig, params: Mapping[str, Array], image_shape: Shape
    ) -> VisionTransformer:
        """The `VisionTransformer`; it checks the images' size when it is called."""
        return VisionTransformer.from_flat(config, params)

    def call(self, config: VisionTransformerConfig, image_shape: Shape) -> dict[str, Any]:
        """Interpolated positions for images of another size."""
        own_size = tuple(image_shape[1:]) == (config.image_h, config.image_w)
        return {"conditions": PLAIN if own_size else Conditions(interpolate_positions=True)}

    def full_size_parameters(
        self, config: VisionTransformerConfig, rng: np.random.Generator
    ) -> dict[str, Array]:
        """As `VisionTransformer.init` draws them."""
        return VisionTransformer.init(config, rng=rng).to_flat()

    def any_shapes(self, config: VisionTransformerConfig) -> dict[str, Shape]:
        """Where there is no grid, with the positions of patches of another size."""
        if 0 not in (config.patch_h, config.patch_w):
            return parameter_shapes(config)
        good = self.smoke_configs[0]
        shapes = parameter_shapes(replace(config, patch_h=good.patch_h, patch_w=good.patch_w))
        D, C = shapes["patch_embed.kernel"][:2]
        return shapes | {"patch_embed.kernel": (D, C, config.patch_h, config.patch_w)}

    def grid(self, config: VisionTransformerConfig, height: int, width: int) -> tuple[int, int]:
        """Whole patches."""
        return config.grid_of(height, width)

    def patches_can_move(self, config: VisionTransformerConfig) -> bool:
        """They never overlap."""
        return True

    def cls_rows(self, config: VisionTransformerConfig) -> int:
        """One or none, by the configuration."""
        return int(config.cls_token)

    # ---- cases ---------------------------------------------------------------------------------

    def smoke_case(self, config: VisionTransformerConfig) -> VisionTransformerCase:
        """Two images of the configuration's size."""
        return VisionTransformerCase(config, seed=1, batch=2)

    def random_case(self, rng: np.random.Generator) -> VisionTransformerCase:
        """With every option of the configuration, between them."""

        def integer(low: int, high: int) -> int:
            return int(rng.integers(low, high, endpoint=True))

        def one_of(*choices: Any) -> Any:
            return choices[integer(0, len(choices) - 1)]

        (patch_h, image_h), (patch_w, image_w) = (_extent(integer) for _ in range(2))
        heads, head_dim = one_of((1, 5), (2, 2), (2, 3), (3, 2), (3, 3), (4, 1), (4, 2))
        pool, cls_token = one_of(*POOLS)
        config = VisionTransformerConfig(
            image_h=image_h,
            image_w=image_w,
            in_channels=integer(1, 3),
            patch_h=patch_h,
            patch_w=patch_w,
            embed_dim=heads * head_dim,
            hidden_dim=integer(2, 12),
            head_count=heads,
            num_layers=integer(1, 3),
            num_classes=integer(1, 6),
            activation=one_of("gelu", "gelu", "gelu_tanh", "quick_gelu", "relu"),
            layer_norm_eps=one_of(1e-12, 1e-6, 1e-5),
            qkv_bias=one_of(True, True, False),
            output_bias=one_of(True, True, False),
            layer_scale=one_of(True, False),
            cls_token=cls_token,
            pool=pool,
        )
        values = one_of("normal", "normal", "tiny", "tiny", "offset", "large")
        return VisionTransformerCase(config, integer(0, 2**31), values, integer(1, 3))

    def tiled_case(self, rng: np.random.Generator) -> VisionTransformerCase:
        """No pixel is left over."""
        case = self.random_case(rng)
        c = case.config
        rows, columns = (int(n) for n in rng.integers(1, 4, size=2))
        config = replace(c, image_h=c.patch_h * (rows + 1), image_w=c.patch_w * columns)
        return replace(case, config=config, batch=2)

    def ordinary_case(
        self, rng: np.random.Generator, wanted: Mapping[str, Any]
    ) -> VisionTransformerCase:
        """With `normal` values."""
        case = self.random_case(rng)
        config = replace(case.config, **{"num_layers": 1, **wanted})
        return replace(case, config=config, values="normal", batch=1)

    def interpolated_case(
        self, rng: np.random.Generator, orientation: str = ""
    ) -> VisionTransformerCase:
        """More patches, fewer, or both, than the configuration has.

        Unless an orientation is asked for, the configuration has two to four rows of patches and
        two to four columns; in half of the cases patches and grid are square, for some libraries
        take no other. The images have one to six rows and columns.
        """
        case = self.random_case(rng)
        c = case.config
        rows, columns = (int(n) for n in rng.integers(2, 5, size=2))
        if rng.integers(2):
            c, columns = replace(c, patch_w=c.patch_h), rows
        rows, columns = ORIENTATIONS.get(orientation, (rows, columns))
        grid = rows, columns
        while grid == (rows, columns):
            grid = int(rng.integers(1, 7)), int(rng.integers(1, 7))
        config = replace(c, image_h=c.patch_h * rows, image_w=c.patch_w * columns)
        return replace(case, config=config, image_size=(grid[0] * c.patch_h, grid[1] * c.patch_w))

    def telling_interpolated_case(self) -> VisionTransformerCase:
        """More rows of patches, fewer columns."""
        return INTERPOLATED

    def with_config(
        self, case: VisionTransformerCase, config: VisionTransformerConfig
    ) -> VisionTransformerCase:
        """On images of the configuration's size, or of another if they are so before.

        These have as many patches as before, or else others if as many are this configuration's
        own: one row less, or more, and two columns more.
        """
        if case.image_size is None:
            return replace(case, config=config)
        rows, columns = case.config.grid_of(*case.image_shape[1:])
        if (rows, columns) == config.grid:
            rows, columns = rows - 1 or rows + 1, columns + 2
        size = rows * config.patch_h, columns * config.patch_w
        return replace(case, config=config, image_size=size)

    def friendlier(self, case: VisionTransformerCase) -> Iterator[VisionTransformerCase]:
        """Patches fill the image; they are square; the image is; then the one-block models."""
        yield case
        c, (rows, columns) = case.config, case.config.grid
        for width, across in ((c.patch_w, columns), (c.patch_h, columns), (c.patch_h, rows)):
            height, side = rows * c.patch_h, across * width
            yield self.with_config(case, replace(c, patch_w=width, image_h=height, image_w=side))
        for config in self.smoke_configs[:-1]:
            yield replace(case, config=config)

    # ---- kinks ---------------------------------------------------------------------------------

    def has_kinks(self, model: VisionTransformer) -> bool:
        """Only where the activation is ReLU."""
        return model.config.activation == "relu"

    def embed(self, model: VisionTransformer, image: Array) -> Array:
        """Tokens with their positions, which are interpolated for images of another size."""
        return model.embed(image, self.call(model.config, image.shape)["conditions"])

    def layer_trace(self, layer: Any, x: Array) -> Any:
        """Of a pre-norm block."""
        return block_trace(layer, x, Setting())


def _extent(integer: Any) -> tuple[int, int]:
    """A patch's and an image's extent: one to three patches, and what is left over."""
    patch = integer(1, 4)
    return patch, patch * integer(1, 3) + integer(0, patch - 1)
