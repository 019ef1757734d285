"""What a call of a `VisionTransformer` is given beside images: masks, factors, randomness.

Dropout with probability p multiplies an entry by 0 with probability p, else by 1 / (1 - p);
stochastic depth does so to a whole branch of a block, with a probability that grows linearly from 0
at the first block to p at the last. Such *factors* are drawn here from a key, or given by the
caller, as the specification takes them (`vitspec.models.block.BlockFactors`).

Factors are drawn inside of each block, from a key of its own: with gradient checkpointing they are
not kept for the backward, but drawn again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vitfast.random_bits import kept
from vitfast.sharding import ShardingSpec, axes_of, place
from vitspec.errors import InvalidArray
from vitspec.vision_transformer_config import VisionTransformerConfig


class BlockFactors(NamedTuple):
    """What multiplies in the blocks, and has no derivative; None is 1.

    The first axis counts the blocks, of which there are L. Any other may be 1, where the factors
    are the same along it.

    Attributes:
        attention_weights: (L, B, heads, n, n): the weights, after the softmax.
        attention: (L, B, n, D): the attention's branch.
        hidden: (L, B, n, F): the feed-forward's hidden layer.
        mlp: (L, B, n, D): the feed-forward's branch.
    """

    attention_weights: Any = None
    attention: Any = None
    hidden: Any = None
    mlp: Any = None


class Factors(NamedTuple):
    """What multiplies in a model; None is 1.

    Attributes:
        embedding: (B, n, D): the sequence that enters the first block.
        blocks: those of the blocks.
    """

    embedding: Any = None
    blocks: BlockFactors = BlockFactors()


class Conditions(NamedTuple):
    """Everything beside the images: see `VisionTransformer.__call__`."""

    masked_patches: Any = None
    attention_mask: Any = None
    head_mask: Any = None
    interpolate_positions: bool = False
    factors: Factors = Factors()
    rngs: Any = None


class Setting(NamedTuple):
    """What one block, or, with a leading axis, all are given.

    Attributes:
        factors: the given ones.
        key: where its own factors are drawn from; None draws none.
        depth_rate: the probability with which a branch is left out; None is 0.
    """

    factors: BlockFactors = BlockFactors()
    key: Any = None
    depth_rate: Any = None


def draw(key: jax.Array, rate: Any, shape: tuple[int, ...], axes: Any, dtype: Any) -> jax.Array:
    """Fresh factors: 0 with probability `rate`, else 1 / (1 - rate); on these mesh axes.

    They do not depend on the mesh.
    """
    return kept(key, 1 - rate, shape, axes) * jnp.asarray(1 / (1 - rate), dtype)


def drop(x: jax.Array, factors: Any, key: Any, rate: float) -> jax.Array:
    """x times the given factors, if any, and times fresh ones, if there is a key and a rate."""
    if factors is not None:
        x = x * factors.astype(x.dtype)
    if key is None or rate == 0:
        return x
    return x * draw(key, rate, x.shape, axes_of(x), x.dtype)


def drop_branch(x: jax.Array, key: Any, rate: Any) -> jax.Array:
    """x (B, n, D), or nothing of it for some of the images."""
    if key is None or rate is None:
        return x
    batch = axes_of(x)[:1]
    return x * draw(key, rate, (len(x), 1, 1), batch, x.dtype)


def keys(key: Any, count: int) -> Any:
    """Keys made of one; if there is none, as many times None."""
    return (None,) * count if key is None else jax.random.split(key, count)


def key_of(rngs: Any) -> jax.Array | None:
    """The key of one call.

    Raises:
        TypeError: there is none in it.
    """
    if rngs is None:
        return None
    if isinstance(rngs, nnx.Rngs):
        return rngs.dropout()
    dtype = getattr(rngs, "dtype", None)
    if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) and not rngs.shape:
        return rngs
    if dtype == np.uint32 and rngs.shape == (2,):
        return rngs
    raise TypeError(
        f"rngs: expected nnx.Rngs or one key, as of jax.random.key(0), got {type(rngs).__name__}"
    )


def settings(
    config: VisionTransformerConfig, conditions: Conditions, key: Any, sharding: ShardingSpec
) -> Setting:
    """What the blocks are given: each entry has a leading axis of blocks."""
    L, rate = config.num_layers, config.dropout.stochastic_depth
    blocks = conditions.factors.blocks
    blocks = BlockFactors(*(placed(one, sharding, batch_axis=1) for one in blocks))
    if conditions.head_mask is not None:
        heads = placed(conditions.head_mask, sharding)[:, None, :, None, None]
        weights = blocks.attention_weights
        weights = heads if weights is None else weights * heads.astype(weights.dtype)
        blocks = blocks._replace(attention_weights=weights)
    if key is None:
        return Setting(blocks)
    depth_rate = np.arange(L) / max(L - 1, 1) * rate if rate else None
    return Setting(blocks, jax.random.split(key, L), depth_rate)


def placed(x: Any, sharding: ShardingSpec, batch_axis: int | None = None) -> Any:
    """An array on the mesh that is set: along the batch, if it has one, like the images."""
    if x is None:
        return None
    x = jnp.asarray(x)
    if batch_axis is None or x.ndim <= batch_axis or x.shape[batch_axis] == 1:
        return place(x)
    return place(x, *[None] * batch_axis, *sharding.images)


# ---- what a call must fit ------------------------------------------------------------------------


def check_conditions(
    config: VisionTransformerConfig, conditions: Conditions, batch: int, patches: int
) -> None:
    """Refuse what does not fit the model and the images.

    Raises:
        InvalidArray: naming the first thing that does not.
    """
    c, n = config, patches + config.cls_token
    if conditions.masked_patches is not None:
        if not c.mask_token:
            raise InvalidArray("masked_patches: this model has no mask token (mask_token=False)")
        _check_boolean("masked_patches", conditions.masked_patches)
        _check_shape("masked_patches", conditions.masked_patches, (batch, patches), exact=2)
    if conditions.attention_mask is not None:
        _check_boolean("attention_mask", conditions.attention_mask)
        _check_shape("attention_mask", conditions.attention_mask, (batch, c.head_count, n, n))
    if conditions.head_mask is not None:
        of_heads = (c.num_layers, c.head_count)
        _check_shape("head_mask", conditions.head_mask, of_heads, exact=2)
    factors, L = conditions.factors, c.num_layers
    expected = {
        "attention_weights": (L, batch, c.head_count, n, n),
        "attention": (L, batch, n, c.embed_dim),
        "hidden": (L, batch, n, c.hidden_dim),
        "mlp": (L, batch, n, c.embed_dim),
    }
    if factors.embedding is not None:
        of_rows = (batch, n, c.embed_dim)
        _check_shape("factors.embedding", factors.embedding, of_rows, exact=0, rank=3)
    for name, shape in expected.items():
        if (given := getattr(factors.blocks, name)) is not None:
            _check_shape(f"factors.blocks.{name}", given, shape, exact=1, rank=len(shape))


def needs_weights(config: VisionTransformerConfig, conditions: Conditions) -> bool:
    """Whether attention weights are multiplied by more than a number for each query and head."""
    given = conditions.factors.blocks.attention_weights
    drawn = conditions.rngs is not None and config.dropout.attention > 0
    return drawn or (given is not None and given.shape[-1] > 1)


def _check_boolean(name: str, mask: Any) -> None:
    if getattr(mask, "dtype", None) != np.bool_:
        found = getattr(mask, "dtype", type(mask).__name__)
        raise InvalidArray(f"{name}: expected an array of Booleans, got {found}")


def _check_shape(
    name: str, x: Any, shape: tuple[int, ...], exact: int = 0, rank: int | None = None
) -> None:
    """Refuse a shape that does not broadcast to this one, or differs in its first `exact` axes."""
    found = tuple(getattr(x, "shape", ("no array",)))
    fits = len(found) <= len(shape) if rank is None else len(found) == rank
    fits = fits and found[:exact] == shape[:exact]
    tail = shape[len(shape) - len(found) :]
    if not fits or any(have not in (1, want) for have, want in zip(found, tail, strict=True)):
        how = "shape" if exact == len(shape) else "a shape that broadcasts to"
        raise InvalidArray(f"{name}: expected {how} {shape}, got {found}")
