"""What each device holds during a step, in bytes, by arithmetic on shapes.

At its fullest, at the end of the forward and the beginning of the backward:

    lasting      parameters, moments; gradients, of which the backward makes room at its start
    activations  what the forward keeps for the backward
    passing      one layer's weights, gathered, its gradients before they are scattered, and, with
                 gradient checkpointing, one layer's activations; logits and their gradient

The lasting part and the activations are what `jax.eval_shape` finds (`vitfast.memory`); what passes
is an estimate: how much of it is alive at once is decided by XLA's schedule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp

from vitfast.memory import OPTIMIZERS
from vitfast.plan.job import Job, parameters

FLOAT32 = 4


@dataclass(frozen=True)
class Footprint:
    """Bytes on one device.

    Attributes:
        parameters, gradients, moments: what lasts.
        activations: of all layers, kept for the backward.
        gathered: one layer's weights and its unscattered gradients.
        recomputed: one layer's activations, with gradient checkpointing; else 0.
        logits: and their gradient, in float32.
    """

    parameters: int
    gradients: int
    moments: int
    activations: int
    gathered: int
    recomputed: int
    logits: int

    @property
    def total(self) -> int:
        """All together."""
        return (
            self.parameters + self.gradients + self.moments + self.activations
            + self.gathered + self.recomputed + self.logits
        )  # fmt: skip


def footprint(job: Job) -> Footprint:
    """The bytes on each device; all hold equally many."""
    computed, kept = job.bytes_each
    held = sum(one.arrays * one.held(job) for one in parameters(job))
    moments, counters = moments_of(job.optimizer)
    layer = sum(one.gathered(job) for one in parameters(job) if one.layers)
    of_layer = layer_activations(job)
    L, inputs = job.config.num_layers, layer_input(job) * computed
    return Footprint(
        parameters=held * kept,
        gradients=held * kept,
        moments=held * kept * moments + counters,
        activations=L * (inputs if job.remat else of_layer) + end_activations(job),
        gathered=layer * (computed + kept) if job.devices > 1 else 0,
        recomputed=of_layer if job.remat and L else 0,
        logits=2 * FLOAT32 * job.images * job.config.num_classes,
    )


@cache
def moments_of(optimizer: str) -> tuple[int, int]:
    """How many numbers an optimiser keeps for each parameter, and the bytes of its counters."""
    parameter = jax.ShapeDtypeStruct((7,), jnp.float32)
    state = jax.tree.leaves(jax.eval_shape(OPTIMIZERS[optimizer](1e-3).init, parameter))
    counters = sum(leaf.dtype.itemsize for leaf in state if leaf.shape == ())
    return sum(leaf.shape == (7,) for leaf in state), counters


def layer_input(job: Job) -> int:
    """The numbers of what enters a layer: B n D, whole on every device of the model axis."""
    return job.images * job.config.token_count * job.config.embed_dim


def layer_activations(job: Job) -> int:
    """The bytes that one layer's forward keeps for its backward.

    Whole: the layer's input, LN1 of it, the sum after the attention, LN2 of that, and, with layer
    scales, what these multiply. Cut over model: queries, keys, values, what each head attends to,
    and that once more with heads side by side; the hidden layer before and after its activation.
    For each query and head: the sum of its exponentials, and, unless fused, all of them.
    """
    c, (computed, _) = job.config, job.bytes_each
    stream = layer_input(job)
    hidden = stream // c.embed_dim * c.hidden_dim
    scores = job.images * c.head_count * c.token_count
    whole = (4 + 2 * c.layer_scale) * stream
    exponentials = 0 if job.fused_attention else scores * c.token_count
    cut = 5 * stream + (1 if c.activation == "relu" else 2) * hidden + exponentials
    scales = 2 * c.layer_scale * c.embed_dim  # gathered, and kept so
    sums = scores // job.model * max(FLOAT32, computed)
    return (whole + cut // job.model + scales) * computed + sums


def end_activations(job: Job) -> int:
    """The bytes that are kept outside of the layers.

    Patches, the encoded sequence, what is classified; the final norm's scale and shift, gathered;
    and the parts of the kernel and the head's weights, transposed.
    """
    c, (computed, kept) = job.config, job.bytes_each
    pixels = c.in_channels * c.patch_h * c.patch_w
    patches = job.images * math.prod(c.grid) * pixels
    pooled = job.images * c.pooled_dim
    rows = patches + layer_input(job) + pooled
    ends = c.embed_dim * pixels + c.num_classes * c.pooled_dim
    return rows * computed + (2 * c.embed_dim + ends // job.fsdp) * kept
