"""The configuration of the ViTs that people load: `VisionTransformerConfig`.

One configuration covers Hugging Face's ViT, DINOv2, and the smaller ones of textbooks; which values
make which is in `vitspec.presets`. All of these are pre-norm (Dosovitskiy et al., 2010.11929).

Unlike a `ViTConfig`, it holds the size of the images: checkpoints say which size their positions
were trained for. Patches do not overlap: the step from one to the next is the patch itself, and
pixels to the right and below that fill no patch are not read.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field, fields
from typing import Literal, get_args

from vitspec.config import natural_problem
from vitspec.errors import NotWellFormed

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu"]
Pool = Literal["cls", "mean", "cls_mean", "none"]


@dataclass(frozen=True)
class DropoutRates:
    """Probabilities with which training sets entries to 0, by place; 0 is never.

    Attributes:
        embedding: of the sequence that enters the first block.
        attention: of the attention weights.
        projection: of the attention's output.
        activation: of the hidden layer, between the two products of the feed-forward.
        output: of the feed-forward's output.
        stochastic_depth: of a whole branch of the last block; block i of L has i / (L - 1) of it.
    """

    embedding: float = 0.0
    attention: float = 0.0
    projection: float = 0.0
    activation: float = 0.0
    output: float = 0.0
    stochastic_depth: float = 0.0

    def problems(self) -> list[str]:
        """What is no probability below 1."""
        rates = {rate.name: getattr(self, rate.name) for rate in fields(self)}
        return [
            f"dropout_rate: dropout.{name} must be a number from 0 to 1, less than 1, got {rate!r}"
            for name, rate in rates.items()
            if not _is_number(rate) or not 0 <= rate < 1
        ]


@dataclass(frozen=True)
class VisionTransformerConfig:
    """The architecture of a pre-norm ViT; the defaults are Hugging Face's ViT-Base/16.

    Attributes:
        image_h, image_w: the images' size in pixels, for which there are positions.
        in_channels: the images' channels C.
        patch_h, patch_w: a patch's size in pixels.
        embed_dim: width D of a token.
        hidden_dim: width F of the feed-forward's hidden layer.
        head_count: number of attention heads, which divides D.
        num_layers: number of blocks.
        num_classes: number K of logits; 0 is a model without a classifier.
        activation: "gelu" is the exact one, "gelu_tanh" its approximation by tanh, "quick_gelu"
            that by the logistic function.
        layer_norm_eps: what is added to a variance.
        qkv_bias: whether queries, keys and values have biases.
        output_bias: whether the attention's output has a bias.
        layer_scale: whether each branch's output is scaled by a learned vector.
        cls_token: whether a learned token is put above the patches.
        mask_token: whether there is a learned token to put in the place of masked patches.
        pool: which row or rows of the encoded sequence are classified: the CLS token's, the mean
            of the patches', the one beside the other (2 D entries), or none.
        pooler_dim: width of the pooler, tanh(W row + b) of the CLS token's row; 0 is none.
        decoder_stride: side S of the square of pixels that the decoder of masked image modelling
            makes of each patch; 0 is no decoder.
        dropout: how much training leaves out, by place.

    Raises:
        NotWellFormed: a size is not a natural number (rule `nat`), or a switch is no Boolean.

    >>> VisionTransformerConfig().token_count
    197
    >>> VisionTransformerConfig(head_count=7).violations()
    ('headCount_dvd_embedDim: head_count must divide embed_dim, got 7 and 768',)
    """

    image_h: int = 224
    image_w: int = 224
    in_channels: int = 3
    patch_h: int = 16
    patch_w: int = 16
    embed_dim: int = 768
    hidden_dim: int = 3072
    head_count: int = 12
    num_layers: int = 12
    num_classes: int = 1000
    activation: Activation = "gelu"
    layer_norm_eps: float = 1e-12
    qkv_bias: bool = True
    output_bias: bool = True
    layer_scale: bool = False
    cls_token: bool = True
    mask_token: bool = False
    pool: Pool = "cls"
    pooler_dim: int = 0
    decoder_stride: int = 0
    dropout: DropoutRates = field(default_factory=DropoutRates)

    def __post_init__(self) -> None:
        problems = []
        for one in fields(self):
            value, expected = getattr(self, one.name), str(one.type)
            if expected == "int" and (problem := natural_problem(value)):
                problems.append(f"nat: {one.name} {problem}")
            elif expected == "int":
                object.__setattr__(self, one.name, operator.index(value))
            elif expected == "bool" and not isinstance(value, bool):
                problems.append(f"bool: {one.name} must be True or False, got {value!r}")
        if not isinstance(self.dropout, DropoutRates):
            problems.append(f"dropout: must be DropoutRates, got {type(self.dropout).__name__}")
        if problems:
            raise NotWellFormed(type(self).__name__, problems)

    def violations(self) -> tuple[str, ...]:
        """Every rule that is broken, as "label: what must hold"; labels are permanent."""
        positive = {
            "imageH_pos": "image_h", "imageW_pos": "image_w", "inChannels_pos": "in_channels",
            "patchH_pos": "patch_h", "patchW_pos": "patch_w", "embedDim_pos": "embed_dim",
            "hiddenDim_pos": "hidden_dim", "headCount_pos": "head_count",
        }  # fmt: skip
        rules = [
            (label, f"{name} must be positive", getattr(self, name) > 0)
            for label, name in positive.items()
        ]
        D, H = self.embed_dim, self.head_count
        rules += [
            (
                "headCount_dvd_embedDim",
                f"head_count must divide embed_dim, got {H} and {D}",
                H == 0 or D % H == 0,
            ),
            (
                "patch_le_image",
                "a patch must fit into the image, got patches of "
                f"{self.patch_h} x {self.patch_w} and images of {self.image_h} x {self.image_w}",
                self.patch_h <= self.image_h and self.patch_w <= self.image_w,
            ),
            _one_of("activation", self.activation, get_args(Activation)),
            _one_of("pool", self.pool, get_args(Pool)),
            (
                "layerNormEps_pos",
                f"layer_norm_eps must be a positive number, got {self.layer_norm_eps!r}",
                _is_number(self.layer_norm_eps) and 0 < self.layer_norm_eps < math.inf,
            ),
            (
                "cls_needed",
                "pool 'cls' and 'cls_mean', and the pooler, need cls_token",
                self.cls_token or not (self.pool in ("cls", "cls_mean") or self.pooler_dim),
            ),
            (
                "pool_needed",
                "a classifier (num_classes > 0) needs a pool other than 'none'",
                self.pool != "none" or self.num_classes == 0,
            ),
        ]
        broken = [f"{label}: {must}" for label, must, holds in rules if not holds]
        return (*broken, *self.dropout.problems())

    def check_well_formed(self) -> None:
        """Raise `NotWellFormed`, listing every violation, unless there is none."""
        if violations := self.violations():
            raise NotWellFormed(repr(self), violations)

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.embed_dim // self.head_count

    @property
    def pooled_dim(self) -> int:
        """Width of what is classified."""
        return {"cls_mean": 2, "none": 0}.get(self.pool, 1) * self.embed_dim

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches, for which there are positions."""
        return self.grid_of(self.image_h, self.image_w)

    @property
    def token_count(self) -> int:
        """Rows of the sequence: the patches' and, if there is one, the CLS token's above them."""
        return math.prod(self.grid) + self.cls_token

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches on an image: whole patches only."""
        return height // self.patch_h, width // self.patch_w


def _one_of(name: str, value: object, known: tuple[str, ...]) -> tuple[str, str, bool]:
    must = f"{name} must be one of {', '.join(known)}, got {value!r}"
    return f"{name}_known", must, value in known


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
