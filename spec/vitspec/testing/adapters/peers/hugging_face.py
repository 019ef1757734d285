"""The ViTs of transformers: classification, bare, masked image modelling, DINOv2.

Two have no logits of their own kind, and get them here so that the kit can grade them:

- `ViTModel` returns the last hidden state; a linear layer of ours classifies it, by any pooling.
- `ViTForMaskedImageModeling` returns S x S pixels of C channels for each patch, a linear function
  of the patch's row. Their mean over the patches is that function of the patches' mean, which is a
  classifier with mean pooling and K = C S S classes. Nothing is masked.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

from vitspec.testing.adapters.frameworks import framework
from vitspec.testing.adapters.name_maps import NameMap
from vitspec.testing.adapters.peers.abilities import Abilities, square_before
from vitspec.testing.adapters.peers.maps_torch import (
    TRANSFORMERS,
    TRANSFORMERS_DINOV2,
    TRANSFORMERS_MIM,
)
from vitspec.testing.adapters.peers.torchvision_operators import declare_missing_operators
from vitspec.testing.adapters.pytorch import TorchAdapter, from_torch
from vitspec.vision_transformer_config import VisionTransformerConfig

ACTIVATIONS = {
    "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu", "relu": "relu",
}  # fmt: skip
"""Their names."""

BOTH = ("float32", "float64")
VIT = {"output_bias": (True,), "layer_scale": (False,), "cls_token": (True,)}


def vit() -> TorchAdapter:
    """`ViTForImageClassification` with PyTorch's fused attention."""
    return _adapter("transformers", _classifier("sdpa"), TRANSFORMERS, _OF_VIT, BOTH)


def vit_eager() -> TorchAdapter:
    """The same with the attention written out, whose softmax is in float32 always."""
    return _adapter("transformers-eager", _classifier("eager"), TRANSFORMERS, _OF_VIT, "float32")


def vit_bare() -> TorchAdapter:
    """`ViTModel`, classified by a linear layer of ours."""
    return _adapter("transformers-bare", _bare, TRANSFORMERS, _OF_BARE, BOTH)


def vit_mim() -> TorchAdapter:
    """`ViTForMaskedImageModeling`, by the mean of what it makes of each patch."""
    return _adapter("transformers-mim", _masked_image_modelling, TRANSFORMERS_MIM, _OF_MIM, BOTH)


def dinov2() -> TorchAdapter:
    """`Dinov2ForImageClassification`."""
    return _adapter("transformers-dinov2", _dinov2, TRANSFORMERS_DINOV2, _OF_DINOV2, BOTH)


def _adapter(
    name: str, build: Any, name_map: NameMap, abilities: Abilities, dtype: str | tuple[str, ...]
) -> TorchAdapter:
    identity = abilities.identity("transformers")
    return from_torch(build, name_map, name=name, dtype=dtype, **identity)


# ---- what they can be ----------------------------------------------------------------------------


def _square_decoder(config: VisionTransformerConfig) -> VisionTransformerConfig:
    """A grid with as many rows as columns, and C S S classes for a side S of 1 or more."""
    c = config
    side = max(1, math.isqrt(max(c.num_classes, 1) // max(c.in_channels, 1)))
    if c.num_classes:  # 0 is left for the library to refuse
        c = replace(c, num_classes=c.in_channels * side * side)
    if min(c.patch_h, c.patch_w) <= 0 or c.grid[0] == c.grid[1] or 0 in c.grid:
        return c
    width = c.grid[0] * c.patch_w + c.image_w % c.patch_w
    return replace(c, image_w=width)


def _whole_ratio(config: VisionTransformerConfig) -> VisionTransformerConfig:
    """A hidden layer that is a whole number of times as wide as a token."""
    c = config
    if not c.embed_dim or not c.hidden_dim:
        return c
    return replace(c, hidden_dim=c.embed_dim * max(1, round(c.hidden_dim / c.embed_dim)))


_OF_VIT = Abilities(VIT | {"pool": ("cls",)}, supports_size=square_before)
_OF_BARE = Abilities(VIT | {"pool": ("cls", "mean", "cls_mean")}, supports_size=square_before)
_OF_MIM = Abilities(VIT | {"pool": ("mean",)}, also=_square_decoder)
_OF_DINOV2 = Abilities(
    {
        "output_bias": (True,), "layer_scale": (True,), "cls_token": (True,),
        "pool": ("cls_mean",),
    },
    square_images=True,
    also=_whole_ratio,
    supports_size=square_before,
)  # fmt: skip


# ---- how they are built --------------------------------------------------------------------------


def _transformers() -> Any:
    declare_missing_operators()  # it imports torchvision if that is installed
    return framework("transformers")


def _sizes(config: VisionTransformerConfig, attention: str) -> dict[str, Any]:
    """The fields that ViT's and DINOv2's configurations share."""
    c = config
    return {
        "hidden_size": c.embed_dim,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.head_count,
        "hidden_act": ACTIVATIONS[c.activation],
        "layer_norm_eps": c.layer_norm_eps,
        "image_size": [c.image_h, c.image_w],
        # Of a list they do not interpolate positions: they divide by it.
        "patch_size": c.patch_h if c.patch_h == c.patch_w else [c.patch_h, c.patch_w],
        "num_channels": c.in_channels,
        "qkv_bias": c.qkv_bias,
        "num_labels": c.num_classes,
        "attn_implementation": attention,
    }


def vit_config(config: VisionTransformerConfig, attention: str = "sdpa", stride: int = 1) -> Any:
    """Their `ViTConfig`."""
    fields = _sizes(config, attention)
    return _transformers().ViTConfig(
        **fields, intermediate_size=config.hidden_dim, encoder_stride=stride
    )


def _classifier(attention: str) -> Any:
    def build(config: VisionTransformerConfig, _: int, *size: int) -> Any:
        model = _transformers().ViTForImageClassification(vit_config(config, attention))
        if size != (config.image_h, config.image_w):
            model.forward = partial(model.forward, interpolate_pos_encoding=True)
        return _logits_of(model, lambda output: output.logits)

    return build


def _dinov2(config: VisionTransformerConfig, *_: int) -> Any:
    transformers, c = _transformers(), config
    ratio = c.hidden_dim // c.embed_dim
    theirs = transformers.Dinov2Config(**_sizes(c, "sdpa"), mlp_ratio=ratio, use_mask_token=False)
    return _logits_of(
        transformers.Dinov2ForImageClassification(theirs), lambda output: output.logits
    )


def _masked_image_modelling(config: VisionTransformerConfig, *_: int) -> Any:
    transformers, c = _transformers(), config
    side = math.isqrt(c.num_classes // c.in_channels)

    def mean_of_patches(output: Any) -> Any:
        pixels = output.reconstruction  # (B, C, rows S, columns S)
        rows, columns = (n // side for n in pixels.shape[2:])
        cut = pixels.reshape(len(pixels), c.in_channels, rows, side, columns, side)
        return cut.mean(dim=(2, 4)).flatten(1)

    return _logits_of(
        transformers.ViTForMaskedImageModeling(vit_config(c, stride=side)), mean_of_patches
    )


def _bare(config: VisionTransformerConfig, _: int, *size: int) -> Any:
    torch, transformers, c = framework("torch"), _transformers(), config
    interpolated = size != (c.image_h, c.image_w)

    class Classifier(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.vit = transformers.ViTModel(vit_config(c), add_pooling_layer=False)
            self.classifier = torch.nn.Linear(c.pooled_dim, c.num_classes)

        def forward(self, images: Any) -> Any:
            output = self.vit(images, interpolate_pos_encoding=interpolated)
            rows = output.last_hidden_state
            parts = {"cls": rows[:, 0], "mean": rows[:, 1:].mean(dim=1)}
            pooled = [parts[name] for name in c.pool.split("_")]
            return self.classifier(torch.cat(pooled, dim=1))

    return Classifier()


def _logits_of(model: Any, read: Any) -> Any:
    """The module, returning logits instead of their record of outputs."""
    model.register_forward_hook(lambda module, inputs, output: read(output))
    return model
