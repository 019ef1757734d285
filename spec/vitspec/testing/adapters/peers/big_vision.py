"""big_vision's ViT in Linen modules of Flax, as big_vision composes them, pooled by the mean.

big_vision is not published as a package, and imports TensorFlow; this is written after
`big_vision/models/vit.py` of google-research/big_vision, as of 2025-05, with its modules' names.
Its checkpoints were trained with the tanh form of GELU, on purpose.

Its other poolings are out of the practical family: the attention pool ("map") has parameters that
the family lacks, and with a CLS token ("tok") positions are added before the token is put above
them, so that the token has none.
"""

# mypy: disable-error-code="untyped-decorator"
# Linen's `compact` is known when the module runs, and not before.
from __future__ import annotations

from functools import partial
from typing import Any

from vitspec.testing.adapters.frameworks import framework
from vitspec.testing.adapters.jax_flax import JaxAdapter
from vitspec.testing.adapters.peers.abilities import Abilities
from vitspec.testing.adapters.peers.linen import from_linen
from vitspec.testing.adapters.peers.maps_jax import BIG_VISION
from vitspec.vision_transformer_config import VisionTransformerConfig

ABILITIES = Abilities(
    only={
        "activation": ("gelu_tanh",), "layer_norm_eps": (1e-6,), "qkv_bias": (True,),
        "output_bias": (True,), "layer_scale": (False,), "cls_token": (False,), "pool": ("mean",),
    },
)  # fmt: skip


def implementation() -> JaxAdapter:
    """`Model(pool_type="gap", posemb="learn")`."""
    return from_linen(big_vision_vit, BIG_VISION, name="big-vision", **ABILITIES.identity("flax"))


def big_vision_vit(config: VisionTransformerConfig) -> Any:
    """The module, on images (B, H, W, C).

    Raises:
        NotWellFormed: there is no such model.
    """
    config.check_well_formed()
    nn, c = framework("flax.linen"), config
    D, patch = c.embed_dim, (c.patch_h, c.patch_w)
    zeros = nn.initializers.zeros

    class MlpBlock(nn.Module):  # type: ignore[misc, name-defined]
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.gelu(nn.Dense(c.hidden_dim)(x))  # modules are numbered as they are made
            return nn.Dense(D)(x)

    class Encoder1DBlock(nn.Module):  # type: ignore[misc, name-defined]
        @nn.compact
        def __call__(self, x: Any) -> Any:
            attention = partial(nn.MultiHeadDotProductAttention, num_heads=c.head_count)
            y = nn.LayerNorm()(x)
            x = x + attention(name="MultiHeadDotProductAttention_0")(y, y)
            return x + MlpBlock(name="MlpBlock_0")(nn.LayerNorm()(x))

    class Encoder(nn.Module):  # type: ignore[misc, name-defined]
        @nn.compact
        def __call__(self, x: Any) -> Any:
            for i in range(c.num_layers):
                x = Encoder1DBlock(name=f"encoderblock_{i}")(x)
            return nn.LayerNorm(name="encoder_norm")(x)

    class Model(nn.Module):  # type: ignore[misc, name-defined]
        @nn.compact
        def __call__(self, images: Any) -> Any:
            conv = nn.Conv(D, patch, strides=patch, padding="VALID", name="embedding")
            x = conv(images).reshape(len(images), -1, D)
            x = x + self.param("pos_embedding", zeros, (1, x.shape[1], D))
            x = Encoder(name="Transformer")(x)
            return nn.Dense(c.num_classes, name="head")(x.mean(axis=1))

    return Model()
