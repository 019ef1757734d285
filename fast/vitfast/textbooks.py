"""Two ViTs of textbooks, by their own names: the NNX tutorial's, and Dive into Deep Learning's.

    logits = vit_forward(seed, image, patch_size, d_model, num_heads, d_ff, num_layers, num_classes)
    model = D2LViT(img_size, patch_size, num_hiddens, mlp_num_hiddens, num_heads, num_blks,
                   emb_dropout, blk_dropout, lr, rngs=nnx.Rngs(0))

Both are `VisionTransformer`s; what they compute is said by `vitspec.presets.nnx_tutorial_config`
and `d2l_config`, beside their specification.

Sources: the exercises "NNX Vision Transformer" and "NNX Transformer Encoder Block" of the Flax NNX
track on crackedaicode.com; "Transformers for Vision" in Dive into Deep Learning (d2l.ai).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from vitfast.convert import LAYERS
from vitfast.vision_transformer import VisionTransformer
from vitspec.errors import InvalidArray
from vitspec.presets import Pair, d2l_config, nnx_tutorial_config
from vitspec.vision_transformer_config import VisionTransformerConfig


def vit_forward(
    seed: int,
    image: Any,
    patch_size: int,
    d_model: int,
    num_heads: int,
    d_ff: int,
    num_layers: int,
    num_classes: int,
) -> Float[jax.Array, "*batch classes"]:
    """The logits of a fresh mean-pool ViT, as the NNX tutorial's exercise asks for them.

    A pure function: the same seed and image give the same logits. Parameters are drawn as the
    tutorial's modules draw them from `nnx.Rngs(seed)`, in the image's scalar type.

    Args:
        seed: of the parameters.
        image: one image (height, width, channels), as in the tutorial; or a batch of them.
        patch_size: side of a patch in pixels. Pixels that fill no patch are not read.
        d_model: width of a token.
        num_heads: number of attention heads, which divides `d_model`.
        d_ff: width of the feed-forward's hidden layer.
        num_layers: number of blocks.
        num_classes: number of logits, 1 at least.

    Raises:
        InvalidArray: the image has another rank, or is not of floating point.
        NotWellFormed: there is no such model; everything that is wrong is listed.

    >>> vit_forward(0, jnp.ones((8, 12, 3)), 4, 6, 2, 10, 2, 5).shape
    (5,)
    """
    image = jnp.asarray(image)
    if image.ndim not in (3, 4) or not jnp.issubdtype(image.dtype, jnp.floating):
        raise InvalidArray(
            "image: expected floating point of shape (height, width, channels), or a batch of "
            f"such images, got {image.dtype} of shape {image.shape}"
        )
    model = nnx_tutorial_vit(
        seed, image.shape[-3:], patch_size, d_model, num_heads, d_ff, num_layers, num_classes,
        dtype=image.dtype,
    )  # fmt: skip
    logits = _logits(model, image if image.ndim == 4 else image[None])
    return logits if image.ndim == 4 else logits[0]


def nnx_tutorial_vit(
    seed: int,
    image_shape: tuple[int, int, int],
    patch_size: int,
    d_model: int,
    num_heads: int,
    d_ff: int,
    num_layers: int,
    num_classes: int,
    *,
    dtype: Any = jnp.float32,
) -> VisionTransformer:
    """The model whose logits `vit_forward` returns.

    Args:
        seed: of the parameters.
        image_shape: (height, width, channels).
        patch_size: as for `vit_forward`, like the next five.
        d_model: likewise.
        num_heads: likewise.
        d_ff: likewise.
        num_layers: likewise.
        num_classes: likewise.
        dtype: the parameters' scalar type.

    Raises:
        NotWellFormed: there is no such model; everything that is wrong is listed.
    """
    config = nnx_tutorial_config(
        image_shape, patch_size, d_model, num_heads, d_ff, num_layers, num_classes
    )
    model = VisionTransformer(config, param_dtype=dtype, rngs=None)  # refuses what is ill-formed
    return _filled(model, tutorial_parameters(config, nnx.Rngs(seed), dtype))


class D2LViT(VisionTransformer):
    """Dive into Deep Learning's `ViT`, in its edition for JAX: a `VisionTransformer`.

    Called, it returns `Outputs`, of which the book's has the `logits`. With `rngs` it drops out, as
    the book's does in training.

    Args:
        img_size: the images' size in pixels: an int, or (height, width).
        patch_size: a patch's.
        num_hiddens: width of a token.
        mlp_num_hiddens: width of the feed-forward's hidden layer.
        num_heads: number of attention heads, which divides `num_hiddens`.
        num_blks: number of blocks.
        emb_dropout: rate of dropout on the sequence that enters the first block.
        blk_dropout: the same on attention weights, and on both layers of the feed-forward.
        lr: the learning rate of the book's optimiser, plain SGD; kept as `model.lr` for whoever
            trains the model.
        use_bias: whether the attention's four projections have biases.
        num_classes: number of logits.
        in_channels: the images' channels, which the book's layers learn from the first image.
        rngs: the source of the parameters, as for `VisionTransformer`, which also draws them.
        options: what else `VisionTransformer` takes.

    Raises:
        NotWellFormed: there is no such model; everything that is wrong is listed.

    >>> model = D2LViT((8, 12), 4, 6, 10, 2, 2, 0.1, 0.1, rngs=nnx.Rngs(0))
    >>> model.config.token_count, model.config.activation, model.lr
    (7, 'gelu_tanh', 0.1)
    """

    def __init__(
        self,
        img_size: Pair,
        patch_size: Pair,
        num_hiddens: int,
        mlp_num_hiddens: int,
        num_heads: int,
        num_blks: int,
        emb_dropout: float,
        blk_dropout: float,
        lr: float = 0.1,
        use_bias: bool = False,
        num_classes: int = 10,
        *,
        in_channels: int = 1,
        rngs: nnx.Rngs | None,
        **options: Any,
    ) -> None:
        config = d2l_config(
            img_size, patch_size, num_hiddens, mlp_num_hiddens, num_heads, num_blks, emb_dropout,
            blk_dropout, use_bias, num_classes, in_channels=in_channels,
        )  # fmt: skip
        super().__init__(config, rngs=rngs, **options)
        self.lr = lr


def tutorial_parameters(
    config: VisionTransformerConfig, rngs: nnx.Rngs, dtype: Any
) -> dict[str, jax.Array]:
    """Fresh parameters by flat name, drawn by Flax's own layers in the tutorial's order.

    So each has Flax's distribution, and takes as many random numbers as Flax makes it take.
    """
    c, given = config, {"param_dtype": dtype, "rngs": rngs}
    D, window = c.embed_dim, (c.patch_h, c.patch_w)
    conv = nnx.Conv(c.in_channels, D, window, strides=window, padding="VALID", **given)
    flat = {
        "patch_embed.kernel": conv.kernel[...].transpose(3, 2, 0, 1),
        "patch_embed.bias": _bias(conv),
        "pos_enc.pos": jnp.zeros((c.token_count, D), dtype),
    }
    for i in range(c.num_layers):
        before = f"{LAYERS}{i}."
        flat |= _norm(before + "norm1_", nnx.LayerNorm(D, **given))
        for letter in "qkvo":
            projection = nnx.Linear(D, D, **given)
            flat[f"{before}mha.w{letter}"] = projection.kernel[...]
            flat[f"{before}mha.b{letter}"] = _bias(projection)
        flat |= _norm(before + "norm2_", nnx.LayerNorm(D, **given))
        for number, (fan_in, fan_out) in enumerate([(D, c.hidden_dim), (c.hidden_dim, D)], 1):
            layer = nnx.Linear(fan_in, fan_out, **given)
            flat[f"{before}ffn.w{number}"] = layer.kernel[...]
            flat[f"{before}ffn.b{number}"] = _bias(layer)
    flat |= _norm("final_norm_", nnx.LayerNorm(D, **given))
    head = nnx.Linear(D, c.num_classes, **given)
    return flat | {"head.weights": head.kernel[...].T, "head.bias": _bias(head)}


@jax.jit
def _logits(model: VisionTransformer, images: jax.Array) -> jax.Array:
    """Compiled once for each architecture and shape."""
    logits = model(images).logits
    assert logits is not None
    return logits


def _bias(layer: Any) -> jax.Array:
    return jnp.asarray(layer.bias[...])


def _norm(prefix: str, layer: nnx.LayerNorm) -> dict[str, jax.Array]:
    return {prefix + "gamma": layer.scale[...], prefix + "beta": layer.bias[...]}


def _filled(model: VisionTransformer, flat: dict[str, jax.Array]) -> VisionTransformer:
    """The model with these parameters, those of the blocks stacked as it has them.

    Unlike `vitfast.from_flat`, also where they are traced, as inside `jax.jit`.
    """

    def leaf(path: Any, shape: jax.ShapeDtypeStruct) -> jax.Array:
        name = ".".join(str(getattr(key, "name", "")) for key in path[:-1])
        if name in flat:
            return flat[name]
        rest, blocks = name.removeprefix(LAYERS), range(model.config.num_layers)
        return jnp.array([flat[f"{LAYERS}{i}.{rest}"] for i in blocks], shape.dtype)

    return jax.tree_util.tree_map_with_path(leaf, model)
