"""keras-hub's `ViTImageClassifier`, on Keras with its JAX backend.

Keras takes its backend when it is first imported; unless `KERAS_BACKEND` says something, that is
JAX here. keras-hub names TensorFlow Text among what it needs; the classifier is imported, built and
differentiated without it.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from vitspec.testing.adapters.frameworks import framework
from vitspec.testing.adapters.jax_flax import JaxAdapter, from_jax
from vitspec.testing.adapters.peers.abilities import Abilities
from vitspec.testing.adapters.peers.maps_jax import KERAS_HUB
from vitspec.vision_transformer_config import VisionTransformerConfig

POOLS = {"cls": "token", "mean": "gap"}


def _one_switch_each(config: VisionTransformerConfig) -> VisionTransformerConfig:
    """Attention's biases have one switch; the pooling "gap" would count a CLS token too."""
    return replace(config, output_bias=config.qkv_bias, cls_token=config.pool == "cls")


ABILITIES = Abilities(
    only={"activation": ("gelu",), "layer_scale": (False,), "pool": tuple(POOLS)},
    whole_patches=True,
    also=_one_switch_each,
)


def implementation() -> JaxAdapter:
    """The classifier, its variables given by `stateless_call`.

    Raises:
        ImportError: keras or keras_hub does not import, or Keras has another backend.
    """
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = framework("keras")
    framework("keras_hub")
    if keras.backend.backend() != "jax":
        raise ImportError(f"Keras has the backend {keras.backend.backend()}: set KERAS_BACKEND=jax")
    return from_jax(
        _logits,
        KERAS_HUB,
        name="keras-hub",
        dtype="float32",
        tree=_tree,
        channels_last=True,
        **ABILITIES.identity("keras-hub"),
    )


def _logits(config: VisionTransformerConfig, params: Any, images: Any) -> Any:
    model = _model(config)
    values = [params[_name(variable)] for variable in model.trainable_variables]
    logits, _ = model.stateless_call(values, [], images, training=False)
    return logits


def _tree(config: VisionTransformerConfig, *_: int) -> dict[str, Any]:
    jax = framework("jax")
    return {
        _name(variable): jax.ShapeDtypeStruct(tuple(variable.shape), np.float32)
        for variable in _model(config).trainable_variables
    }


def _name(variable: Any) -> str:
    """The variable's path, its block counted from 0 as the encoder's list has it."""
    path = variable.path.replace("/", ".")
    return re.sub(r"transformer_block_(\d+)", lambda n: f"encoder_layers.{int(n[1]) - 1}", path)


@lru_cache(16)
def _model(config: VisionTransformerConfig) -> Any:
    keras_hub, c = framework("keras_hub"), config
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(c.image_h, c.image_w, c.in_channels),
        patch_size=(c.patch_h, c.patch_w),
        num_layers=c.num_layers,
        num_heads=c.head_count,
        hidden_dim=c.embed_dim,
        mlp_dim=c.hidden_dim,
        layer_norm_epsilon=c.layer_norm_eps,
        use_mha_bias=c.qkv_bias,
        use_class_token=c.cls_token,
        data_format="channels_last",
        dtype="float32",
    )
    return keras_hub.models.ViTImageClassifier(
        backbone, num_classes=c.num_classes, pooling=POOLS[c.pool]
    )
