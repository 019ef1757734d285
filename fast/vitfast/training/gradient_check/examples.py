"""A few images of a batch, with all that a step draws for them: masks, dropout, weights.

A step draws from its key in the shape of its batch, or of one of the parts into which it is cut.
The same is drawn here, and the images' rows of it are kept. Of a dropout factor only what is zero
is taken from the model: the size of the others, 1 / (1 - p), follows from the configuration, so
that a wrong one shows.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from vitfast.conditions import Factors
from vitfast.dropout_factors import dropout_factors
from vitfast.training.objectives import MaskedImageModelling, Objective
from vitfast.vision_transformer import VisionTransformer
from vitspec.models.block import BlockFactors
from vitspec.models.conditions import Conditions
from vitspec.typing import Array
from vitspec.vision_transformer_config import DropoutRates, VisionTransformerConfig


@dataclass(frozen=True, eq=False)
class Example:
    """One image of a batch, in float64.

    Attributes:
        row: its place in the batch.
        image: (C, H, W).
        label: its class.
        conditions: its masked patches, and its factors.
        weight: what multiplies its loss.
    """

    row: int
    image: Array
    label: int
    conditions: Conditions
    weight: float


def examples_of(
    model: VisionTransformer,
    batch: Any,
    key: Any,
    objective: Objective,
    rows: Sequence[int],
    accumulation: int = 1,
) -> tuple[Example, ...]:
    """The images in these rows of a batch, as `loss_and_gradients` treats them.

    Args:
        model: whose step it is.
        batch: images (b, H, W, C) and labels (b,).
        key: the step's.
        objective: what is minimised.
        rows: which images.
        accumulation: into how many parts the batch is cut: row r is in part r modulo that.
    """
    images, labels = (on_host(part) for part in tuple(batch)[:2])
    count, found = len(images) // accumulation, []
    for row in rows:
        part, place = row % accumulation, row // accumulation
        own = key
        if key is not None and accumulation > 1:
            own = jax.random.fold_in(key, part)
        image = images[row].astype(np.float64).transpose(2, 0, 1)
        conditions = conditions_of(model, own, objective, count, place)
        found.append(Example(row, image, int(labels[row]), conditions, 1 / len(rows)))
    return tuple(found)


def conditions_of(
    model: VisionTransformer, key: Any, objective: Objective, count: int, place: int
) -> Conditions:
    """What is drawn from a key for one of `count` images."""
    if key is None:
        return Conditions()
    masked = None
    if isinstance(objective, MaskedImageModelling):
        of_masks, key = objective.split(key)
        masked = on_host(_masks(objective, model.config, count, of_masks, model.sharding))[place]
    drawn = dropout_factors(model, key, count, rows=np.array([place]))
    embedding, blocks = exact_factors(model.config, jax.tree.map(on_host, drawn))
    return Conditions(
        masked_patches=masked, embedding_factors=embedding, block_factors=blocks
    )  # fmt: skip


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 4))
def _masks(objective: Any, config: Any, count: int, key: Any, sharding: Any) -> Any:
    return objective.masked_patches(config, count, key, sharding)


def exact_factors(
    config: VisionTransformerConfig, drawn: Factors
) -> tuple[Array | None, tuple[BlockFactors, ...] | None]:
    """The first image's factors for the embedding and the blocks: 0, or 1 / (1 - p) in float64."""
    rates: DropoutRates = config.dropout

    def kept(factors: Any, *probabilities: float) -> Array | None:
        if factors is None:
            return None
        size = np.prod([1 / (1 - p) for p in probabilities])
        return np.where(np.asarray(factors) != 0, size, 0.0)

    embedding = None if drawn.embedding is None else drawn.embedding[0]
    if all(one is None for one in drawn.blocks):
        return kept(embedding, rates.embedding), None
    blocks = []
    for i in range(config.num_layers):
        depth = rates.stochastic_depth * i / max(config.num_layers - 1, 1)
        weights, attention, hidden, mlp = (
            None if one is None else one[i, 0] for one in drawn.blocks
        )
        block = BlockFactors(
            attention_weights=kept(weights, rates.attention),
            attention=kept(attention, rates.projection, depth),
            hidden=kept(hidden, rates.activation),
            mlp=kept(mlp, rates.output, depth),
        )
        blocks.append(block)
    return kept(embedding, rates.embedding), tuple(blocks)


def on_host(x: Any) -> np.ndarray:
    """A whole array in this process; with several processes, all must call this."""
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        x = multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)


def like(array: np.ndarray, example: Any) -> Any:
    """An array where another, of the same batch, lies."""
    if not isinstance(example, jax.Array):
        return array
    return jax.make_array_from_callback(array.shape, example.sharding, lambda part: array[part])


def weights_for(rows: Sequence[int], labels: Any, dtype: Any) -> Any:
    """(b,) what multiplies each image's loss: 1 / k in k rows, else 0; where the labels lie."""
    weights = np.zeros(labels.shape[0], jnp.promote_types(dtype, jnp.float32))
    weights[list(rows)] = 1 / len(rows)
    return like(weights, labels)
