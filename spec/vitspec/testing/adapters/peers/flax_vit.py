"""Hugging Face's `FlaxViTForImageClassification`, of transformers 4; version 5 has it no more."""

# mypy: disable-error-code="untyped-decorator"
# Linen's `compact` is known when the module runs, and not before.
from __future__ import annotations

from typing import Any

from vitspec.testing.adapters.frameworks import framework
from vitspec.testing.adapters.jax_flax import JaxAdapter
from vitspec.testing.adapters.peers.abilities import Abilities
from vitspec.testing.adapters.peers.linen import from_linen
from vitspec.testing.adapters.peers.maps_jax import FLAX_VIT
from vitspec.vision_transformer_config import VisionTransformerConfig

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "quick_gelu": "quick_gelu"}
"""Our names, and theirs."""

ABILITIES = Abilities(
    only={
        "activation": tuple(ACTIVATIONS), "output_bias": (True,), "layer_scale": (False,),
        "cls_token": (True,), "pool": ("cls",),
    },
    square_patches=True,
    square_images=True,
)  # fmt: skip


def implementation() -> JaxAdapter:
    """The Linen module inside the class.

    Raises:
        ImportError: transformers has no such class.
    """
    framework("transformers.models.vit.modeling_flax_vit")
    return from_linen(flax_vit, FLAX_VIT, name="flax-vit", **ABILITIES.identity("transformers"))


def flax_vit(config: VisionTransformerConfig) -> Any:
    """The module, on images (B, H, W, C)."""
    transformers, nn, c = framework("transformers"), framework("flax.linen"), config
    theirs = framework("transformers.models.vit.modeling_flax_vit")
    vit_config = transformers.ViTConfig(
        image_size=c.image_h,
        patch_size=c.patch_h,
        num_channels=c.in_channels,
        hidden_size=c.embed_dim,
        intermediate_size=c.hidden_dim,
        num_attention_heads=c.head_count,
        num_hidden_layers=c.num_layers,
        num_labels=c.num_classes,
        hidden_act=ACTIVATIONS[c.activation],
        layer_norm_eps=c.layer_norm_eps,
        qkv_bias=c.qkv_bias,
    )

    class Logits(nn.Module):  # type: ignore[misc, name-defined]
        @nn.compact
        def __call__(self, images: Any) -> Any:
            module = theirs.FlaxViTForImageClassificationModule(
                vit_config, dtype=images.dtype, name="model"
            )
            return module(images).logits

    return Logits()
