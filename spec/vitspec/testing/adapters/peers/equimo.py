"""equimo's `VisionTransformer` (Equinox): square images of square patches that fill them.

Its attention takes the softmax in float32 always. The activation that it calls "gelu", its default,
is the tanh form; the exact one is "exactgelu".
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from vitspec.testing.adapters.frameworks import framework
from vitspec.testing.adapters.jax_flax import JaxAdapter, from_jax
from vitspec.testing.adapters.peers.abilities import Abilities
from vitspec.testing.adapters.peers.maps_jax import EQUIMO
from vitspec.vision_transformer_config import VisionTransformerConfig

ACTIVATIONS = {"gelu": "exactgelu", "gelu_tanh": "gelu", "relu": "relu"}
"""Our names, and theirs."""

POOLS = {"cls": "token", "mean": "avg"}

ABILITIES = Abilities(
    only={"activation": tuple(ACTIVATIONS), "pool": tuple(POOLS)},
    square_patches=True,
    square_images=True,
    whole_patches=True,
)


def implementation() -> JaxAdapter:
    """The model, one image at a time under `jax.vmap`, as it takes them."""
    framework("equimo")
    return from_jax(
        _logits,
        EQUIMO,
        name="equimo",
        dtype="float32",
        tree=lambda config, *size: _parts(config)[0],
        **ABILITIES.identity("equimo"),
    )


def _logits(config: VisionTransformerConfig, arrays: Any, images: Any) -> Any:
    jax, equinox = framework("jax"), framework("equinox")
    model = equinox.combine(arrays, _parts(config)[1])
    return jax.vmap(lambda image: model(image, inference=True))(images)


@lru_cache(16)
def _parts(config: VisionTransformerConfig) -> tuple[Any, Any]:
    """The shapes of the model's arrays, in its own tree, and all else that it has."""
    jax, equinox, c = framework("jax"), framework("equinox"), config
    vision_transformer = framework("equimo.models").VisionTransformer

    def build(key: Any) -> Any:
        return vision_transformer(
            img_size=c.image_h,
            in_channels=c.in_channels,
            dim=c.embed_dim,
            patch_size=c.patch_h,
            num_heads=c.head_count,
            depths=[c.num_layers],
            key=key,
            class_token=c.cls_token,
            global_pos_embed_cls=c.cls_token,
            reg_tokens=0,
            mlp_ratio=(c.hidden_dim + 0.5) / c.embed_dim,  # it rounds the product down
            qkv_bias=c.qkv_bias,
            proj_bias=c.output_bias,
            act_layer=ACTIVATIONS[c.activation],
            init_values=1.0 if c.layer_scale else None,
            global_pool=POOLS[c.pool],
            num_classes=c.num_classes,
            eps=c.layer_norm_eps,
        )

    model = equinox.filter_eval_shape(build, jax.random.PRNGKey(0))
    return equinox.partition(model, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
