"""The factors that a call with a key draws: dropout and stochastic depth, taken out of the model.

    model(images, rngs=key)  =  model(images, factors=dropout_factors(model, key, len(images)))

A model draws inside of each block and keeps nothing (`vitfast.conditions`). Whoever wants the same
function of its parameters elsewhere, as the specification, which takes factors and draws none,
draws them here, from the same keys, by the same operations and in the same shapes: what is drawn
depends on the number of images, so a few images' factors are rows of those of their whole batch.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from vitfast.conditions import BlockFactors, Conditions, Factors, draw, key_of, keys, settings
from vitfast.random_bits import kept
from vitfast.sharding import NoSharding
from vitfast.vision_transformer import VisionTransformer


def dropout_factors(
    model: VisionTransformer,
    rngs: Any,
    batch: int,
    *,
    rows: Any = None,
    token_count: int | None = None,
) -> Factors:
    """What `model(images, rngs=rngs)` multiplies by, in the type of its activations.

    A branch's entries and the whole branch, if both are drawn, are multiplied into one factor.

    Args:
        model: whose rates, blocks and type of activations count, not its parameters.
        rngs: as the model takes it; `nnx.Rngs` advance as they do in a call.
        batch: the number of images.
        rows: of which of them the factors are wanted, as an array of integers; None is all.
        token_count: rows of the sequence, if not the configuration's.

    Returns:
        Factors, None where the rate is 0 or there is no key.
    """
    key = key_of(rngs)
    if key is None:
        return Factors()
    wanted = jnp.arange(batch) if rows is None else jnp.asarray(rows)
    n = model.config.token_count if token_count is None else token_count
    scanned = bool(model.scan_layers)
    return _all(key, wanted, model.config, jnp.dtype(model.dtype), batch, n, scanned)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5, 6))
def _all(
    key: Any, rows: Any, config: Any, dtype: Any, batch: int, n: int, scanned: bool
) -> Factors:
    """One block after the other, as in a loop: only one block's factors are there for all rows."""
    c, rate = config, config.dropout.embedding
    of_embedding, of_blocks = keys(key, 2)
    embedding = None
    if rate:
        embedding = draw(of_embedding, rate, (batch, n, c.embed_dim), (), dtype)[rows]
    if c.num_layers == 0:
        return Factors(embedding)
    each = jax.random.split(of_blocks, c.num_layers), _whole_branches(c, dtype, scanned)
    blocks = jax.lax.map(lambda own: _of_block(own[0], own[1], rows, c, dtype, batch, n), each)
    return Factors(embedding, blocks)


def _whole_branches(config: Any, dtype: Any, scanned: bool) -> Any:
    """With which probability each block keeps a branch, and by what it is multiplied then.

    A loop has the blocks' rates as an array of JAX's, a list as numbers of float64, so that they
    round differently.
    """
    rates = settings(config, Conditions(), jax.random.key(0), NoSharding()).depth_rate
    if rates is None:
        return None
    rates = jnp.asarray(rates) if scanned else rates
    return jnp.asarray(1 - rates), jnp.asarray(1 / (1 - rates), dtype)


def _of_block(
    key: Any, whole_branch: Any, rows: Any, config: Any, dtype: Any, batch: int, n: int
) -> BlockFactors:
    """What `vitfast.blocks.Block` draws, place by place."""
    c, rates = config, config.dropout
    of_weights, of_attention, of_hidden, of_mlp = keys(key, 4)

    def entries(key: Any, rate: float, *shape: int) -> Any:
        return draw(key, rate, (batch, *shape), (), dtype)[rows] if rate else None

    def branch(key: Any, rate: float) -> Any:
        of_entries, of_branch = keys(key, 2)
        own = entries(of_entries, rate, n, c.embed_dim)
        if whole_branch is None:
            return own
        keep, size = whole_branch
        whole = size * kept(of_branch, keep, (batch, 1, 1), ())[rows]
        return whole if own is None else own * whole

    return BlockFactors(
        attention_weights=entries(of_weights, rates.attention, c.head_count, n, n),
        attention=branch(of_attention, rates.projection),
        hidden=entries(of_hidden, rates.activation, n, c.hidden_dim),
        mlp=branch(of_mlp, rates.output),
    )
