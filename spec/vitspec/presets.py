"""Configurations by name, as their sources have them.

| name | source |
| --- | --- |
| `hf-vit-base`, `-large` | Hugging Face's `google/vit-{base,large}-patch16-224` |
| `hf-vit-huge` | `google/vit-huge-patch14-224-in21k`, with its pooler |
| `hf-vit-base-mim` | `ViTForMaskedImageModeling` of the base size |
| `dinov2-small`, `-base`, `-large` | Hugging Face's `facebook/dinov2-{small,base,large}` |
| `deit-tiny`, `-small`, `-base` | `facebook/deit-*-patch16-224`, without distillation |
| `jimm-vit-base` | jimm's `VisionTransformer`: epsilon 1e-12 throughout, as its checkpoints want |
| `nnx-tutorial` | the Flax NNX tutorial's: no CLS token, the mean of the patches, ReLU |
| `d2l` | Dive into Deep Learning's `ViT` on Fashion-MNIST at 96 x 96, its edition for JAX |
| `d2l-pytorch` | the same in its edition for PyTorch: exact GELU, epsilon 1e-5 |

`nnx_tutorial_config` and `d2l_config` make the textbooks' with other hyperparameters.

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

Pair = int | tuple[int, int]
"""An extent in pixels: of a square, or (height, width)."""


def nnx_tutorial_config(
    image_shape: tuple[int, int, int],
    patch_size: int,
    d_model: int,
    num_heads: int,
    d_ff: int,
    num_layers: int,
    num_classes: int,
) -> VisionTransformerConfig:
    """The NNX tutorial's mean-pool ViT, its hyperparameters by its names.

    Its blocks are those of its own "transformer encoder block": pre-norm, biases everywhere, ReLU,
    and Flax's epsilon.

    Args:
        image_shape: (height, width, channels), which the tutorial takes from the image.
        patch_size: side of a patch in pixels.
        d_model: width of a token.
        num_heads: number of attention heads.
        d_ff: width of the hidden layer.
        num_layers: number of blocks.
        num_classes: number of logits.

    Raises:
        NotWellFormed: a size is not a natural number.
    """
    height, width, channels = image_shape
    return VisionTransformerConfig(
        image_h=height, image_w=width, in_channels=channels, patch_h=patch_size, patch_w=patch_size,
        embed_dim=d_model, hidden_dim=d_ff, head_count=num_heads, num_layers=num_layers,
        num_classes=num_classes, activation="relu", layer_norm_eps=1e-6, cls_token=False,
        pool="mean",
    )  # fmt: skip


def d2l_config(
    img_size: Pair,
    patch_size: Pair,
    num_hiddens: int,
    mlp_num_hiddens: int,
    num_heads: int,
    num_blks: int,
    emb_dropout: float,
    blk_dropout: float,
    use_bias: bool = False,
    num_classes: int = 10,
    *,
    in_channels: int = 1,
) -> VisionTransformerConfig:
    """Dive into Deep Learning's `ViT` (its edition for JAX), its hyperparameters by its names.

    Args:
        img_size: the images' size in pixels.
        patch_size: a patch's.
        num_hiddens: width of a token.
        mlp_num_hiddens: width of the feed-forward's hidden layer.
        num_heads: number of attention heads.
        num_blks: number of blocks.
        emb_dropout: rate of dropout on the sequence that enters the first block.
        blk_dropout: the same on attention weights, and on both layers of the feed-forward; the
            book has none on the attention's output.
        use_bias: whether the attention's four projections have biases.
        num_classes: number of logits.
        in_channels: the images' channels, which the book's layers learn from the first image.

    Raises:
        NotWellFormed: a size is not a natural number.
    """
    (image_h, image_w), (patch_h, patch_w) = _pair(img_size), _pair(patch_size)
    return VisionTransformerConfig(
        image_h=image_h, image_w=image_w, in_channels=in_channels, patch_h=patch_h, patch_w=patch_w,
        embed_dim=num_hiddens, hidden_dim=mlp_num_hiddens, head_count=num_heads,
        num_layers=num_blks, num_classes=num_classes, activation="gelu_tanh", layer_norm_eps=1e-6,
        qkv_bias=use_bias, output_bias=use_bias,
        dropout=DropoutRates(
            embedding=emb_dropout, attention=blk_dropout, activation=blk_dropout,
            output=blk_dropout,
        ),
    )  # fmt: skip


def _pair(size: Pair) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


_D2L = d2l_config(96, 16, 512, 2048, 8, 2, 0.1, 0.1)

PRESETS: Mapping[str, VisionTransformerConfig] = {
    "hf-vit-base": _BASE,
    "hf-vit-large": _LARGE,
    "hf-vit-huge": replace(_HUGE, num_classes=0, pooler_dim=1280),
    "hf-vit-base-mim": replace(_BASE, num_classes=0, mask_token=True, decoder_stride=16),
    "dinov2-small": _DINOV2,
    "dinov2-base": replace(_DINOV2, embed_dim=768, hidden_dim=3072, head_count=12),
    "dinov2-large": replace(_DINOV2, embed_dim=1024, hidden_dim=4096, head_count=16, num_layers=24),
    "deit-tiny": replace(_BASE, embed_dim=192, hidden_dim=768, head_count=3),
    "deit-small": replace(_BASE, embed_dim=384, hidden_dim=1536, head_count=6),
    "deit-base": _BASE,
    "jimm-vit-base": _BASE,
    "nnx-tutorial": nnx_tutorial_config((224, 224, 3), 16, 768, 12, 3072, 12, 1000),
    "d2l": _D2L,
    "d2l-pytorch": replace(_D2L, activation="gelu", layer_norm_eps=1e-5),
}

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
