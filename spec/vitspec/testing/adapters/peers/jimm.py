"""jimm's `VisionTransformer` in NNX modules of Flax, as jimm composes them.

jimm is not published as a package; this is written after its source (`common/vit.py`,
`common/transformer.py` and `models/vit` of pythoncrazy/jimm, as of 2026), with its modules' names.
What distinguishes it:

- the classifier asks for the epsilon 1e-12, as its checkpoints want, and the final norm has it; the
  encoder is not told, and its blocks have their default of 1e-6;
- attention, layers and norms are Flax's; blocks are stacked and scanned over;
- positions' numbers are stored beside the positions, as a parameter that nothing reads.

GELU is exact; it was the tanh form until 2025 (`bonsai` still has that).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from vitspec.testing.adapters.frameworks import framework
from vitspec.testing.adapters.jax_flax import JaxAdapter, from_nnx
from vitspec.testing.adapters.peers.abilities import Abilities
from vitspec.testing.adapters.peers.maps_jax import JIMM
from vitspec.vision_transformer_config import VisionTransformerConfig

EPSILON, EPSILON_IN_BLOCKS = 1e-12, 1e-6

ABILITIES = Abilities(
    only={
        "activation": ("gelu", "quick_gelu"), "layer_norm_eps": (EPSILON,), "qkv_bias": (True,),
        "output_bias": (True,), "layer_scale": (False,), "cls_token": (True,), "pool": ("cls",),
    },
    square_patches=True,
    square_images=True,
)  # fmt: skip


def implementation(epsilon_in_blocks: float = EPSILON_IN_BLOCKS) -> JaxAdapter:
    """jimm's classifier, as it is, or with another epsilon in its blocks."""
    return from_nnx(
        partial(jimm_vit, epsilon_in_blocks=epsilon_in_blocks),
        JIMM,
        name="jimm",
        dtype="float32",  # `jax.nn.dot_product_attention` takes its softmax in float32 always
        channels_last=True,
        **ABILITIES.identity("flax"),
    )


def jimm_vit(
    config: VisionTransformerConfig,
    in_channels: int,
    height: int,
    width: int,
    *,
    epsilon_in_blocks: float,
) -> Any:
    """The module, on images (B, H, W, C).

    Raises:
        NotWellFormed: there is no such model.
    """
    config.check_well_formed()
    jax, jnp, nnx = framework("jax"), framework("jax.numpy"), framework("flax.nnx")
    c, D, P = config, config.embed_dim, config.patch_h
    rows = (height // P) * (width // P) + 1
    zeros = {"kernel_init": nnx.initializers.zeros_init()}  # drawing would be compiled

    def quick_gelu(x: Any) -> Any:
        return x * jax.nn.sigmoid(1.702 * x)

    activation = {"gelu": partial(jax.nn.gelu, approximate=False), "quick_gelu": quick_gelu}

    class Block(nnx.Module):  # type: ignore[misc, name-defined]
        def __init__(self, rngs: Any) -> None:
            norm = partial(nnx.LayerNorm, D, epsilon=epsilon_in_blocks, rngs=rngs)
            self.norm1, self.norm2 = norm(), norm()
            self.attn = nnx.MultiHeadAttention(c.head_count, D, decode=False, rngs=rngs, **zeros)
            # Their dropouts are left out; the second layer is the fourth in their sequence.
            self.mlp = nnx.Sequential(
                nnx.Linear(D, c.hidden_dim, rngs=rngs, **zeros),
                activation[c.activation],
                lambda x: x,
                nnx.Linear(c.hidden_dim, D, rngs=rngs, **zeros),
            )

        def __call__(self, x: Any) -> Any:
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    class Transformer(nnx.Module):  # type: ignore[misc, name-defined]
        def __init__(self, rngs: Any) -> None:
            create = nnx.vmap(Block, in_axes=0, out_axes=0)
            self.layers = nnx.split_rngs(splits=c.num_layers)(create)(rngs)

        def __call__(self, x: Any) -> Any:
            scan = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            return scan(x, self.layers)

    class Base(nnx.Module):  # type: ignore[misc, name-defined]
        def __init__(self, rngs: Any) -> None:
            self.patch_embeddings = nnx.Conv(
                in_channels, D, (P, P), strides=(P, P), padding="VALID", rngs=rngs, **zeros
            )
            self.cls_token = nnx.Param(jnp.zeros((1, 1, D)))
            self.position_embeddings = nnx.Param(jnp.zeros((1, rows, D)))
            self.vision_position_ids = nnx.Param(jnp.arange(rows, dtype=jnp.float32)[None])
            self.encoder = Transformer(rngs)
            self.ln_post = nnx.LayerNorm(D, epsilon=EPSILON, rngs=rngs)

        def __call__(self, images: Any) -> Any:
            x = self.patch_embeddings(images).reshape(len(images), rows - 1, D)
            x = jnp.concatenate([jnp.tile(self.cls_token[...], (len(x), 1, 1)), x], axis=1)
            x = self.encoder(x + self.position_embeddings[...])
            return self.ln_post(x)[:, 0]

    class VisionTransformer(nnx.Module):  # type: ignore[misc, name-defined]
        def __init__(self, rngs: Any) -> None:
            self.encoder = Base(rngs)
            self.classifier = nnx.Linear(D, c.num_classes, rngs=rngs, **zeros)

        def __call__(self, images: Any) -> Any:
            return self.classifier(self.encoder(images))

    return VisionTransformer(nnx.Rngs(0))
