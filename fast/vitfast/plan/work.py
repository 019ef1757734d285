"""What a device computes in a step: operations, each with its FLOPs and its bytes of memory.

A product of (a, b) and (b, c) is 2 a b c FLOPs, and reads both and writes one; everything else is
passes over memory. The backward has two products for each of the forward's, but one for the
patches, whose pixels need no gradient. With gradient checkpointing, a layer's forward runs again,
but for the product with W2, which nothing needs twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from vitfast.plan.job import Job
from vitfast.plan.memory import FLOAT32, footprint, layer_input, moments_of


class Operation(NamedTuple):
    """One operation of one device, as often as a step has it.

    Attributes:
        what: which.
        phase: "forward", "recomputed", "backward" or "update".
        flops, bytes: of all of its runs together.
    """

    what: str
    phase: str
    flops: int
    bytes: int


class Product(NamedTuple):
    """Rows (rows, inner) times a matrix (inner, columns), on one device.

    Attributes:
        gathered: whether the matrix is a parameter, first written where it is gathered to.
    """

    what: str
    rows: int
    inner: int
    columns: int
    gathered: bool = True

    @property
    def flops(self) -> int:
        """Of one of its three: forward, by the rows, by the matrix."""
        return 2 * self.rows * self.inner * self.columns

    def bytes(self, rows: int, matrix: int) -> int:
        """Of one of the three, given the bytes of a number of either kind."""
        numbers = self.rows * (self.inner + self.columns)
        written = 2 if self.gathered else 1
        return numbers * rows + self.inner * self.columns * matrix * written


def operations(job: Job) -> list[Operation]:
    """Every operation of a step on one device."""
    return [one for one in _all(job) if one.flops or one.bytes]


def model_flops(job: Job) -> int:
    """The FLOPs of one step over all devices, each product once.

    Without what is computed again, and without what several devices compute alike.
    """
    alone = Job(job.config, job.batch, fused_attention=False)
    return sum(one.flops for one in operations(alone))


def _all(job: Job) -> Iterator[Operation]:
    L, (computed, kept) = job.config.num_layers, job.bytes_each
    for product in _layer_products(job):
        flops, moved = product.flops * L, product.bytes(computed, computed) * L
        yield Operation(product.what, "forward", flops, moved)
        if job.remat and (product.what != "W2" or job.config.layer_scale):
            yield Operation(product.what, "recomputed", flops, moved)
        yield Operation(f"rows of {product.what}", "backward", flops, moved)
        by_matrix = product.bytes(computed, kept) * L
        yield Operation(f"gradient of {product.what}", "backward", flops, by_matrix)
    yield from _attention(job)
    yield from _passes(job)
    yield from _ends(job)
    f = footprint(job)
    moments = moments_of(job.optimizer)[0] * f.parameters
    yield Operation("update", "update", 0, 2 * f.parameters + f.gradients + 2 * moments)


def _layer_products(job: Job) -> list[Product]:
    c, rows = job.config, job.images * job.config.token_count
    D, hidden, heads = c.embed_dim, c.hidden_dim // job.model, c.embed_dim // job.model
    return [
        Product("Wq, Wk, Wv", rows, D, 3 * heads),
        Product("Wo", rows, heads, D),
        Product("W1", rows, D, hidden),
        Product("W2", rows, hidden, D),
    ]


def _attention(job: Job) -> Iterator[Operation]:
    """S = Q K^T and A V; four products backward, and S once more if it was not kept."""
    c, L, (computed, _) = job.config, job.config.num_layers, job.bytes_each
    n, of_heads = c.token_count, layer_input(job) // job.model
    one = 2 * of_heads * n * L
    scores = job.images * c.head_count * n * n // job.model * L
    # Scores are float32 at least: written, read for the maximum and again for the sum, kept.
    unfused = 0 if job.fused_attention else scores * (3 * max(FLOAT32, computed) + computed)
    forward = 4 * of_heads * L * computed + unfused
    yield Operation("attention", "forward", 2 * one, forward)
    if job.remat:
        yield Operation("attention", "recomputed", 2 * one, forward)
    backward = 8 * of_heads * L * computed + unfused
    yield Operation("attention", "backward", (5 if job.fused_attention else 4) * one, backward)


def _passes(job: Job) -> Iterator[Operation]:
    """Normalisations, residual sums and the activation: arrays read and written."""
    L, (computed, _) = job.config.num_layers, job.bytes_each
    stream = layer_input(job) * L * computed
    hidden = stream // job.config.embed_dim * job.config.hidden_dim // job.model
    forward = 9 * stream + 2 * hidden  # LN1: 2; sum and LN2: 4; sum: 3
    yield Operation("normalisations, sums, activation", "forward", 0, forward)
    if job.remat:
        yield Operation("normalisations, sums, activation", "recomputed", 0, forward)
    backward = 12 * stream + 3 * hidden  # a normalisation: 3; a sum: 3; each twice
    yield Operation("normalisations, sums, activation", "backward", 0, backward)


def _ends(job: Job) -> Iterator[Operation]:
    """Patches and head, which every device of the model axis computes alike."""
    c, (computed, kept) = job.config, job.bytes_each
    pixels = c.in_channels * c.patch_h * c.patch_w
    patches = Product("patches", job.images * math.prod(c.grid), pixels, c.embed_dim)
    head = Product("head", job.images, c.pooled_dim, c.num_classes)
    for product, backward in ((patches, 1), (head, 2)):
        moved = product.bytes(computed, computed)
        yield Operation(product.what, "forward", product.flops, moved)
        moved = product.bytes(computed, kept)
        yield Operation(product.what, "backward", backward * product.flops, backward * moved)
    yield Operation("final norm", "forward", 0, 2 * layer_input(job) * computed)
    yield Operation("final norm", "backward", 0, 3 * layer_input(job) * computed)
