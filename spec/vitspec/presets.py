"""Configurations by name, as their sources have them.

| name | source |
| --- | --- |
| `hf-vit-base`, `-large` | Hugging Face's `google/vit-{base,large}-patch16-224` |
| `hf-vit-huge` | `google/vit-huge-patch14-224-in21k`, with its pooler |
| `hf-vit-base-mim` | `ViTForMaskedImageModeling` of the base size |
| `dinov2-small`, `-base`, `-large` | Hugging Face's `facebook/dinov2-{small,base,large}` |
| `deit-tiny`, `-small`, `-base` | `facebook/deit-*-patch16-224`, without distillation |
| `jimm-vit-base` | jimm's `VisionTransformer`: epsilon 1e-12 throughout, as its checkpoints want |
| `nnx-tutorial` | the Flax NNX tutorial's: no CLS token, the mean of the patches |
| `d2l` | Dive into Deep Learning's `ViT` on Fashion-MNIST at 96 x 96 |

`dinov2-giant` is known and refused: its feed-forward is a gated one (SwiGLU).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vitspec.vision_transformer_config import DropoutRates, VisionTransformerConfig

_BASE = VisionTransformerConfig()
_LARGE = replace(_BASE, embed_dim=1024, hidden_dim=4096, head_count=16, num_layers=24)
_HUGE = replace(_BASE, patch_h=14, patch_w=14, embed_dim=1280, hidden_dim=5120, head_count=16,
                num_layers=32)  # fmt: skip
_DINOV2 = replace(
    _BASE, image_h=518, image_w=518, patch_h=14, patch_w=14, embed_dim=384, hidden_dim=1536,
    head_count=6, num_classes=0, layer_norm_eps=1e-6, layer_scale=True, mask_token=True,
)  # fmt: skip

PRESETS: Mapping[str, VisionTransformerConfig] = {
    "hf-vit-base": _BASE,
    "hf-vit-large": _LARGE,
    "hf-vit-huge": replace(_HUGE, num_classes=0, pooler_dim=1280),
    "hf-vit-base-mim": replace(_BASE, num_classes=0, mask_token=True, decoder_stride=16),
    "dinov2-small": _DINOV2,
    "dinov2-base": replace(_DINOV2, embed_dim=768, hidden_dim=3072, head_count=12),
    "dinov2-large": replace(
        _DINOV2, embed_dim=1024, hidden_dim=4096, head_count=16, num_layers=24
    ),
    "deit-tiny": replace(_BASE, embed_dim=192, hidden_dim=768, head_count=3),
    "deit-small": replace(_BASE, embed_dim=384, hidden_dim=1536, head_count=6),
    "deit-base": _BASE,
    "jimm-vit-base": _BASE,
    "nnx-tutorial": replace(
        _BASE, cls_token=False, pool="mean", layer_norm_eps=1e-6, num_classes=1000
    ),
    "d2l": VisionTransformerConfig(
        image_h=96, image_w=96, in_channels=1, embed_dim=512, hidden_dim=2048, head_count=8,
        num_layers=2, num_classes=10, activation="gelu_tanh", layer_norm_eps=1e-6, qkv_bias=False,
        output_bias=False,
        dropout=DropoutRates(embedding=0.1, attention=0.1, activation=0.1, output=0.1),
    ),
}  # fmt: skip

REFUSED: Mapping[str, str] = {
    "dinov2-giant": "its feed-forward is a gated one (SwiGLU), which is not specified here",
}


def preset(name: str) -> VisionTransformerConfig:
    """The configuration of this name.

    Raises:
        ValueError: the name is unknown, or known and refused; the known ones are listed.
    """
    if name in REFUSED:
        raise ValueError(f"preset {name!r}: {REFUSED[name]}")
    if name not in PRESETS:
        raise ValueError(f"preset {name!r}: expected one of {', '.join(PRESETS)}")
    return PRESETS[name]
