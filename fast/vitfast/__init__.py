"""vitfast: the Vision Transformer of `vitspec`, fast: JAX, Flax NNX and Tokamax."""

from vitfast.attention import AttentionFn, PlainAttention, make_tokamax_attention
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
from vitfast.training import cross_entropy, make_train_step
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
    "ViT",
    "ViTSharding",
    "ViTTensorParallelSharding",
    "VisionTransformer",
    "cross_entropy",
    "from_flat",
    "make_mesh",
    "make_tokamax_attention",
    "make_train_step",
    "shard_images",
    "to_flat",
    "vit_forward",
]
