"""Both models made of Flax NNX's own modules."""

from __future__ import annotations

from typing import Any

from vitspec.config import ViTConfig
from vitspec.geometry import patch_count
from vitspec.models.parameters import check_model
from vitspec.testing.adapters.frameworks import framework
from vitspec.testing.adapters.peers.plain_jax import patches


def heads_have_width(config: ViTConfig) -> str | None:
    """`jax.nn.dot_product_attention` divides by the width of a head."""
    return None if config.head_dim else f"heads of width 0: {config!r}"


def flax_vit(config: ViTConfig, in_channels: int, height: int, width: int, *, cls: bool) -> Any:
    """The module, on images (B, H, W, C), with parameters of 0.

    The patches are cut out and go through a `Linear`: XLA's compiler for the CPU aborts on some
    gradients of convolutions (jaxlib 0.10.2 and 0.12.0). `use_fast_variance` is off: the mean of
    squares less the square of the mean cancels.

    Raises:
        NotWellFormed: there is no such model.
    """
    check_model(config, in_channels, height, width, cls=cls)
    jnp, nnx, c = framework("jax.numpy"), framework("flax.nnx"), config
    D, rngs = c.embed_dim, nnx.Rngs(0)
    rows, window = patch_count(c, height, width) + cls, c.patch_h * c.patch_w * in_channels
    zeros = nnx.initializers.zeros_init()  # to be replaced: drawing them would be compiled

    class Layer(nnx.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.attention = nnx.MultiHeadAttention(
                c.head_count, D, c.inner_dim, use_bias=False, decode=False, kernel_init=zeros,
                rngs=rngs,
            )  # fmt: skip
            self.norm1, self.norm2 = (
                nnx.LayerNorm(D, epsilon=1e-6, use_fast_variance=False, rngs=rngs) for _ in range(2)
            )
            self.linear1 = nnx.Linear(D, c.hidden_dim, kernel_init=zeros, rngs=rngs)
            self.linear2 = nnx.Linear(c.hidden_dim, D, kernel_init=zeros, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = self.norm1(x + self.attention(x))
            return self.norm2(x + self.linear2(nnx.relu(self.linear1(x))))

    class ViT(nnx.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.patch_embed = nnx.Linear(window, D, kernel_init=zeros, rngs=rngs)
            if cls:
                self.cls_token = nnx.Param(jnp.zeros((1, 1, D)))
            self.pos_embed = nnx.Param(jnp.zeros((1, rows, D)))
            self.layers = nnx.List([Layer() for _ in range(c.num_layers)])
            self.head = nnx.Linear(D, c.num_classes, kernel_init=zeros, rngs=rngs)

        def __call__(self, images: Any) -> Any:
            cut = patches(c, images.transpose(0, 3, 1, 2)).transpose(0, 1, 3, 4, 2)
            x = self.patch_embed(cut.reshape(*cut.shape[:2], window))
            if cls:
                x = jnp.concatenate([jnp.broadcast_to(self.cls_token[...], (len(x), 1, D)), x], 1)
            x = x + self.pos_embed[...]
            for layer in self.layers:
                x = layer(x)
            return self.head(x[:, 0] if cls else x.mean(axis=1))

    return ViT()
