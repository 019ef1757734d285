"""Implementations of the practical family made of Flax Linen modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vitspec.testing.adapters.frameworks import framework
from vitspec.testing.adapters.jax_flax import JaxAdapter, from_jax
from vitspec.testing.adapters.name_maps import NameMap
from vitspec.vision_transformer_config import VisionTransformerConfig


def from_linen(
    build: Callable[[VisionTransformerConfig], Any],
    name_map: NameMap,
    **identity: Any,
) -> JaxAdapter:
    """An implementation made of a Linen module.

    Args:
        build: called with a config; returns the module, which maps images (B, H, W, C) to logits.
        name_map: the names of its parameters: paths, joined by dots.
        **identity: its name, and what `Abilities.identity` says of it.
    """

    def tree(config: VisionTransformerConfig, in_channels: int, height: int, width: int) -> Any:
        jax = framework("jax")
        images = jax.ShapeDtypeStruct((1, height, width, in_channels), np.float32)
        return jax.eval_shape(build(config).init, jax.random.key(0), images)["params"]

    return from_jax(
        lambda config, params, images: build(config).apply({"params": params}, images),
        name_map,
        tree=tree,
        channels_last=True,
        **identity,
    )
