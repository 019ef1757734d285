"""Points where a gradient exists with room to spare.

At 0 the derivative of the ReLU jumps, and so does that of |x - r|, the masked error. Where rounding
takes an argument across, a correct implementation computes the other one-sided derivative, far from
this one (`vitspec.testing.families.Family.away_from_kinks`). A model whose activation is the ReLU
is therefore checked with its biases b1 moved a little, mostly by less than 1e-2; and masked image
modelling with those pixels moved that the model has nearly got right. Masked pixels are not seen by
the model, so what it computes stays the same. All other steps are checked as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vitfast.training.gradient_check.examples import Example
from vitfast.training.gradient_check.reference import Flat, masked_pixels
from vitfast.training.objectives import MaskedImageModelling, Objective
from vitspec.models.block import BlockFactors, Setting, block_trace
from vitspec.models.vision_transformer import VisionTransformer
from vitspec.testing.families import nearest_gap, off_kinks
from vitspec.testing.precision import Precision
from vitspec.testing.trial import kink_margin
from vitspec.typing import Array
from vitspec.vision_transformer_config import VisionTransformerConfig


def move_biases(
    config: VisionTransformerConfig,
    flat: Mapping[str, Array],
    examples: Sequence[Example],
    precision: Precision,
) -> Flat:
    """The parameters, those b1 moved that a ReLU is near 0 with, in the type that they have."""
    margin = kink_margin(precision)
    model = VisionTransformer.from_flat(config, {n: p.astype(np.float64) for n, p in flat.items()})
    sequences = [model.embed(one.image, one.conditions) for one in examples]

    def traces(i: int, block: Any, sequences: Sequence[Array]) -> list[Any]:
        settings = [Setting(factors=_factors(one, i)) for one in examples]
        return [block_trace(block, x, own) for x, own in zip(sequences, settings, strict=True)]

    def clear(b1: Array, hidden: Array) -> Array:
        return (b1 - nearest_gap(hidden, margin)).astype(kept).astype(np.float64)

    kept = next(iter(flat.values())).dtype
    blocks = off_kinks(model.encoder.layers, sequences, traces, clear)
    names = (f"encoder.layers.{i}.ffn.b1" for i in range(len(blocks)))
    biases = (block.ffn.b1 for block in blocks)
    return dict(flat) | {n: b1.astype(flat[n].dtype) for n, b1 in zip(names, biases, strict=True)}


def _factors(example: Example, i: int) -> BlockFactors:
    blocks = example.conditions.block_factors
    return BlockFactors() if blocks is None else blocks[i]


def move_pixels(
    config: VisionTransformerConfig,
    flat: Mapping[str, Array],
    examples: Sequence[Example],
    objective: Objective,
    precision: Precision,
) -> tuple[Example, ...]:
    """The examples, masked pixels moved away from their reconstruction; float32 holds them."""
    if not isinstance(objective, MaskedImageModelling):
        return tuple(examples)
    model = VisionTransformer.from_flat(config, {n: p.astype(np.float64) for n, p in flat.items()})
    moved = []
    for example in examples:
        found: Any = model.forward(example.image, example.conditions).reconstruction
        _, height, width = found.shape
        image = example.image.copy()
        pixels = image[:, :height, :width]
        margin = kink_margin(precision) * max(1.0, float(np.abs(found).max()))
        error = pixels - found
        near = (np.abs(error) < margin) & masked_pixels(config, example.conditions.masked_patches)
        pixels[near] = (found + np.where(error < 0, -margin, margin))[near]
        moved.append(replace(example, image=image.astype(np.float32).astype(np.float64)))
    return tuple(moved)
