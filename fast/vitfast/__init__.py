"""vitfast: the Vision Transformer of `vitspec`, fast: JAX, Flax NNX and Tokamax."""

from typing import Any

from vitfast.attention import AttentionFn, PlainAttention
from vitfast.conditions import BlockFactors, Factors
from vitfast.convert import from_flat, to_flat
from vitfast.sharding import (
    NoSharding,
    ShardingSpec,
    TensorParallelSharding,
    ViTSharding,
    ViTTensorParallelSharding,
    make_mesh,
    shard_images,
)
from vitfast.textbooks import D2LViT, vit_forward
from vitfast.tokamax_attention import make_tokamax_attention
from vitfast.training import TrainConfig, cross_entropy, make_train_step
from vitfast.vision_transformer import Outputs, VisionTransformer
from vitfast.vit import Taps, ViT

__all__ = [
    "AttentionFn",
    "BlockFactors",
    "D2LViT",
    "Factors",
    "NoSharding",
    "Outputs",
    "PlainAttention",
    "ShardingSpec",
    "Taps",
    "TensorParallelSharding",
    "TrainConfig",
    "ViT",
    "ViTSharding",
    "ViTTensorParallelSharding",
    "VisionTransformer",
    "cross_entropy",
    "fit",
    "from_flat",
    "make_mesh",
    "make_tokamax_attention",
    "make_train_step",
    "shard_images",
    "to_flat",
    "vit_forward",
]


def __getattr__(name: str) -> Any:
    """`fit`, imported when it is used: it needs the extra `train`, which is large."""
    if name == "fit":
        from vitfast.training.loop import fit

        return fit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
