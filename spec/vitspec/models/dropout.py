"""Dropout and stochastic depth, drawn: the factors of one forward in training.

Dropout with probability p multiplies an entry by 0 with probability p, else by 1 / (1 - p), so that
its expectation stays (Srivastava et al., 2014). Stochastic depth does the same to a whole branch of
a block (Huang et al., 1603.09382), with a probability that grows linearly with depth.

Drawing is kept apart from computing: given its factors, a forward is a function like any other, and
has a derivative.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vitspec.layers.affine import times
from vitspec.models.block import BlockFactors
from vitspec.models.conditions import PLAIN, Conditions
from vitspec.typing import Array
from vitspec.vision_transformer_config import VisionTransformerConfig


def draw(
    config: VisionTransformerConfig,
    rng: np.random.Generator,
    dtype: np.dtype,
    conditions: Conditions = PLAIN,
    token_count: int | None = None,
) -> Conditions:
    """`conditions` with fresh factors for the rates of `config.dropout`, in place of any there.

    Args:
        config: the model's.
        rng: where they are drawn from.
        dtype: the model's scalar type.
        conditions: the masks to keep.
        token_count: rows of the sequence, if not the configuration's.
    """
    n = config.token_count if token_count is None else token_count
    H, D, F, L = config.head_count, config.embed_dim, config.hidden_dim, config.num_layers
    rates = config.dropout

    def factors(shape: tuple[int, ...], rate: float) -> Array | None:
        if rate == 0:
            return None
        return ((rng.random(shape) >= rate) / (1 - rate)).astype(dtype)

    def branch(rate: float, i: int) -> Array | None:
        entries = factors((n, D), rate)
        whole = factors((1, 1), rates.stochastic_depth * i / max(L - 1, 1))
        return whole if entries is None else times(entries, whole)

    embedding = factors((n, D), rates.embedding)
    blocks = tuple(
        BlockFactors(
            attention_weights=factors((H, n, n), rates.attention),
            attention=branch(rates.projection, i),
            hidden=factors((n, F), rates.activation),
            mlp=branch(rates.output, i),
        )
        for i in range(L)
    )
    return replace(conditions, embedding_factors=embedding, block_factors=blocks)
