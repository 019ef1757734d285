"""bonsai's `ViTClassificationModel` in NNX modules of Flax, as bonsai composes them.

bonsai is not published as a package; this is written after `bonsai/models/vit/modeling.py` of
jax-ml/bonsai, as of 2026-03, with its modules' names. Its one configuration is for the checkpoint
google/vit-base-patch16-224, whose GELU is exact; it computes the tanh form.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from vitspec.testing.adapters.frameworks import framework
from vitspec.testing.adapters.jax_flax import JaxAdapter, from_nnx
from vitspec.testing.adapters.peers.abilities import Abilities
from vitspec.testing.adapters.peers.maps_jax import BONSAI
from vitspec.vision_transformer_config import VisionTransformerConfig

ABILITIES = Abilities(
    only={
        "activation": ("gelu",), "qkv_bias": (True,), "output_bias": (True,),
        "layer_scale": (False,), "cls_token": (True,), "pool": ("cls",),
    },
    whole_patches=True,
)  # fmt: skip


def implementation(exact: bool = False) -> JaxAdapter:
    """bonsai's classifier as it is, or with the exact GELU of the checkpoint that it loads."""
    return from_nnx(
        partial(bonsai_vit, exact=exact),
        BONSAI,
        name="bonsai",
        dtype="float32",  # `jax.nn.dot_product_attention` takes its softmax in float32 always
        channels_last=True,
        **ABILITIES.identity("flax"),
    )


def bonsai_vit(
    config: VisionTransformerConfig, in_channels: int, height: int, width: int, *, exact: bool
) -> Any:
    """The module, on images (B, H, W, C).

    Raises:
        NotWellFormed: there is no such model.
    """
    config.check_well_formed()
    jax, jnp, nnx = framework("jax"), framework("jax.numpy"), framework("flax.nnx")
    c, D, patch = config, config.embed_dim, (config.patch_h, config.patch_w)
    rows = (height // patch[0]) * (width // patch[1]) + 1
    zeros = {"kernel_init": nnx.initializers.zeros_init()}  # drawing would be compiled

    class Embeddings(nnx.Module):  # type: ignore[misc, name-defined]
        def __init__(self, rngs: Any) -> None:
            self.projection = nnx.Conv(in_channels, D, patch, strides=patch, rngs=rngs, **zeros)
            self.cls_token = nnx.Param(jnp.zeros((1, 1, D)))
            self.pos_embeddings = nnx.Param(jnp.zeros((1, rows, D)))

        def __call__(self, images: Any) -> Any:
            x = self.projection(images).reshape(len(images), -1, D)
            x = jnp.concatenate([jnp.tile(self.cls_token[...], (len(x), 1, 1)), x], axis=1)
            return x + self.pos_embeddings[...]

    class Layer(nnx.Module):  # type: ignore[misc, name-defined]
        def __init__(self, rngs: Any) -> None:
            self.attention = nnx.MultiHeadAttention(
                c.head_count, D, decode=False, rngs=rngs, **zeros
            )
            self.linear1 = nnx.Linear(D, c.hidden_dim, rngs=rngs, **zeros)
            self.linear2 = nnx.Linear(c.hidden_dim, D, rngs=rngs, **zeros)
            norm = partial(nnx.LayerNorm, D, epsilon=c.layer_norm_eps, rngs=rngs)
            self.layernorm_before, self.layernorm_after = norm(), norm()

        def __call__(self, x: Any) -> Any:
            x = x + self.attention(self.layernorm_before(x))
            hidden = self.linear1(self.layernorm_after(x))
            return x + self.linear2(jax.nn.gelu(hidden, approximate=not exact))

    class Classifier(nnx.Module):  # type: ignore[misc, name-defined]
        def __init__(self, rngs: Any) -> None:
            self.pos_embeddings = Embeddings(rngs)
            self.layers = nnx.List([Layer(rngs) for _ in range(c.num_layers)])
            self.ln = nnx.LayerNorm(D, epsilon=c.layer_norm_eps, rngs=rngs)
            self.classifier = nnx.Linear(D, c.num_classes, rngs=rngs, **zeros)

        def __call__(self, images: Any) -> Any:
            x = self.pos_embeddings(images)
            for layer in self.layers:
                x = layer(x)
            return self.classifier(self.ln(x)[:, 0])

    return Classifier(nnx.Rngs(0))
