"""The Vision Transformer in Flax NNX: TorchLean's `ViTSpec` and `ViTClsSpec`, on batches.

    tokens   = conv2d(patch_embed, images)           (B, T, D), the grid's positions row by row
    sequence = tokens                    | cls_token above tokens        (B, n, D), n = T | T + 1
    encoded  = encoder(sequence + pos)
    pooled   = mean of the rows          | row 0                         (B, D)
    logits   = W pooled + b              (B, K)

Images are (batch, height, width, channels). Everything is computed in the type of the parameters,
and every product in full precision. The specification is `vitspec.models.vit`; `vitfast.convert`
moves parameters between the two.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from vitfast.attention import AttentionFn, make_tokamax_attention
from vitfast.layers import Conv2D, Linear, NewParameter, PositionalEncoding, TransformerEncoder
from vitspec.config import ViTConfig
from vitspec.errors import InvalidArray
from vitspec.geometry import patch_count
from vitspec.models.parameters import check_model

Pool = Literal["mean", "cls"]


class VisionTransformer(nnx.Module):
    """`ViTSpec` (pool "mean") or `ViTClsSpec` (pool "cls").

    Its parameters are an NNX state with the specification's names; those of the encoder's layers
    are stacked on a leading axis. A module is a pytree: pass it to `jax.jit`, `jax.grad` and the
    like as it is.

    Args:
        config: the architecture.
        in_channels: channels of the images.
        height: height of the images, in pixels.
        width: width of the images, in pixels.
        pool: "mean" pools the mean of all tokens; "cls" prepends a learned token and pools that.
        attention_fn: the attention; None is `make_tokamax_attention()`.
        param_dtype: type of the parameters, and of the computation.
        rngs: the source of the initial parameters; None leaves each parameter as a
            `jax.ShapeDtypeStruct`, to be filled in later.

    Raises:
        NotWellFormed: config, in_channels or the number of tokens breaks a rule; all are listed.
        ValueError: `pool` is unknown.

    >>> config = ViTConfig(embed_dim=12, hidden_dim=8, head_count=3, num_layers=2, num_classes=5)
    >>> model = VisionTransformer(config, in_channels=3, height=32, width=48, rngs=nnx.Rngs(0))
    >>> model(jnp.ones((2, 32, 48, 3))).shape
    (2, 5)
    """

    def __init__(
        self,
        config: ViTConfig,
        *,
        in_channels: int,
        height: int,
        width: int,
        pool: Pool = "mean",
        attention_fn: AttentionFn | None = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs | None,
    ) -> None:
        if pool not in ("mean", "cls"):
            raise ValueError(f"pool: expected 'mean' or 'cls', got {pool!r}")
        check_model(config, in_channels, height, width, cls=pool == "cls")
        new = new_parameter(param_dtype, rngs)
        self.config, self.pool = config, pool
        self.image_shape = (height, width, in_channels)
        self.token_count = patch_count(config, height, width)
        D, cls_rows = config.embed_dim, int(pool == "cls")
        self.patch_embed = Conv2D(config, in_channels, new=new)
        if pool == "cls":
            self.cls_token = new(D, scale=0.02)
        self.pos_enc = PositionalEncoding(self.token_count + cls_rows, D, new=new)
        self.encoder = TransformerEncoder(config, attention_fn or make_tokamax_attention(), new=new)
        self.head = Linear(D, config.num_classes, new=new)

    def __call__(
        self, images: Float[jax.Array | np.ndarray, "batch height width channels"]
    ) -> Float[jax.Array, "batch {self.config.num_classes}"]:
        """The logits of each image.

        Raises:
            InvalidArray: the images have another size or type than the model.
        """
        self._check_images(images)
        # On accelerators the default would round the factors of float32 products to fewer bits.
        with jax.default_matmul_precision("highest"):
            tokens = self.embed(jnp.asarray(images))
            encoded = self.encoder(self.pos_enc(tokens))
            pooled = encoded.mean(axis=1) if self.pool == "mean" else encoded[:, 0]
            return self.head(pooled)

    def embed(
        self, images: Float[jax.Array, "batch height width channels"]
    ) -> Float[jax.Array, "batch n embed_dim"]:
        """The sequence that the encoder reads, without the positions."""
        batch, D = images.shape[0], self.config.embed_dim
        if self.token_count:
            tokens = self.patch_embed(images)
        else:
            tokens = jnp.zeros((batch, 0, D), images.dtype)
        if self.pool == "mean":
            return tokens
        cls_row = jnp.broadcast_to(self.cls_token[...], (batch, 1, D))
        return jnp.concatenate([cls_row, tokens], axis=1)

    def _check_images(self, images: Any) -> None:
        dtype = self.head.bias.dtype
        expected = f"images: expected shape (batch, {', '.join(map(str, self.image_shape))})"
        if images.ndim != 4 or images.shape[1:] != self.image_shape:
            raise InvalidArray(
                f"{expected}, that is (batch, height, width, channels), got {images.shape}"
            )
        if images.dtype != dtype:
            raise InvalidArray(
                f"{expected} of {dtype}, the type of the parameters, got {images.dtype}; "
                "convert the images with .astype"
            )
        if dtype == np.float64 and not jax.config.jax_enable_x64:
            raise InvalidArray(
                "images: JAX would round float64 to float32; call inside `jax.enable_x64(True)`"
            )


def new_parameter(param_dtype: Any, rngs: nnx.Rngs | None) -> NewParameter:
    """Draws parameters from a normal distribution; without `rngs`, only notes their shapes."""

    def new(*shape: int, scale: float = 0.0, center: float = 0.0) -> nnx.Param:
        if rngs is None:
            return nnx.Param(jax.ShapeDtypeStruct(shape, param_dtype))
        if scale == 0.0:
            return nnx.Param(jnp.full(shape, center, param_dtype))
        return nnx.Param(center + scale * jax.random.normal(rngs.params(), shape, param_dtype))

    return new
