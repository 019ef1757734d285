"""Cases of the practical family: `VisionTransformerConfig`, with parameters that make options show.

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

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from vitspec.models.block import BlockEncoder, Setting, block_trace
from vitspec.models.conditions import PLAIN, Conditions
from vitspec.models.vision_transformer import VisionTransformer
from vitspec.testing.cases import KINK_MARGIN, Drawn, nearest_gap
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
class VisionTransformerCase(Drawn):
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


def random_case(rng: np.random.Generator) -> VisionTransformerCase:
    """A small random case, with one to three images."""

    def integer(low: int, high: int) -> int:
        return int(rng.integers(low, high, endpoint=True))

    def one_of(*choices: Any) -> Any:
        return choices[integer(0, len(choices) - 1)]

    (patch_h, image_h), (patch_w, image_w) = (_extent(integer) for _ in range(2))
    heads, head_dim = one_of((1, 5), (2, 2), (2, 3), (3, 2), (3, 3), (4, 1), (4, 2))
    pool, cls_token = one_of(("cls", True), ("mean", True), ("mean", False), ("cls_mean", True))
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


def _extent(integer: Any) -> tuple[int, int]:
    """A patch's and an image's extent: one to three patches, and what is left over."""
    patch = integer(1, 4)
    return patch, patch * integer(1, 3) + integer(0, patch - 1)


def tiled_case(rng: np.random.Generator) -> VisionTransformerCase:
    """A small random case whose patches tile the image, so that they can be moved."""
    case = random_case(rng)
    c = case.config
    rows, columns = (int(n) for n in rng.integers(1, 4, size=2))
    config = replace(c, image_h=c.patch_h * (rows + 1), image_w=c.patch_w * columns)
    return replace(case, config=config, batch=2)


def interpolated_case(rng: np.random.Generator) -> VisionTransformerCase:
    """A small random case with images of another size.

    The configuration has two to four rows of patches and two to four columns; in half of the cases
    patches and grid are square, for some libraries take no other. The images have one to six rows
    and columns.
    """
    case = random_case(rng)
    c = case.config
    rows, columns = (int(n) for n in rng.integers(2, 5, size=2))
    if rng.integers(2):
        c, columns = replace(c, patch_w=c.patch_h), rows
    grid = rows, columns
    while grid == (rows, columns):
        grid = int(rng.integers(1, 7)), int(rng.integers(1, 7))
    config = replace(c, image_h=c.patch_h * rows, image_w=c.patch_w * columns)
    return replace(case, config=config, image_size=(grid[0] * c.patch_h, grid[1] * c.patch_w))


def on_another_grid(
    case: VisionTransformerCase, config: VisionTransformerConfig
) -> VisionTransformerCase:
    """The case with this configuration, on images of as many patches as before, or else of others.

    They are others if as many are this configuration's own: one row less, or more, and two columns
    more.
    """
    rows, columns = case.config.grid_of(*case.image_shape[1:])
    if (rows, columns) == config.grid:
        rows, columns = rows - 1 or rows + 1, columns + 2
    return replace(
        case, config=config, image_size=(rows * config.patch_h, columns * config.patch_w)
    )


def conditions(config: VisionTransformerConfig, image_shape: tuple[int, ...]) -> Conditions:
    """How the model is called on images (C, H, W): positions are interpolated for another size."""
    if tuple(image_shape[1:]) == (config.image_h, config.image_w):
        return PLAIN
    return Conditions(interpolate_positions=True)


def away_from_kinks(
    model: VisionTransformer, images: Array, margin: float = KINK_MARGIN
) -> VisionTransformer:
    """The model with biases b1 moved a little, so that no ReLU's input is near 0 at these images.

    `vitspec.testing.cases.away_from_kinks` says why. The other activations have no kink.
    """
    if model.config.activation != "relu":
        return model
    given = conditions(model.config, images.shape[1:])
    sequences, blocks = [model.embed(image, given) for image in images], []
    for block in model.encoder.layers:
        hidden = np.concatenate([block_trace(block, x, Setting()).ffn.hidden for x in sequences])
        ffn = replace(block.ffn, b1=block.ffn.b1 - nearest_gap(hidden, margin))
        blocks.append(replace(block, ffn=ffn))
        sequences = [block_trace(blocks[-1], x, Setting()).output for x in sequences]
    return replace(model, encoder=BlockEncoder(tuple(blocks)))
