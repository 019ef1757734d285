"""Which entries dropout keeps, by JAX's random bits in one pass over memory.

    kept(key, p, shape) = jax.random.bernoulli(key, float32(p), shape)          bit for bit

JAX's generator is Threefry-2x32 with 20 rounds: entry i is x0 ^ x1 of the block of the counter i.
For a CPU, JAX writes it as a loop over groups of four rounds, which takes all blocks through memory
each time, and takes XLA long to compile. Here the rounds are written out, so that XLA makes one
fusion of them, with what uses the bits.

Source: Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", 2011.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from vitfast.sharding import on_mesh

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
"""By how many bits, in the rounds of even groups and of odd ones."""

PARITY = np.uint32(0x1BD11BDA)
"""What the third word of the key is made of, with the other two."""

MANTISSA = 23
"""Bits of the uniform number that is compared with the probability: those of a float32."""


def kept(key: jax.Array, probability: Any, shape: tuple[int, ...], axes: Any) -> jax.Array:
    """Booleans, each true with this probability, on these mesh axes; they do not depend on it.

    Args:
        key: JAX's, of any generator.
        probability: a number, or a traced one.
        shape: of the result.
        axes: what cuts the first of its dimensions.
    """
    if not _written_out(key, probability, shape):
        where: dict[str, Any] = {"out_sharding": PartitionSpec(*axes)} if on_mesh() else {}
        p = jnp.asarray(probability, jnp.float32)
        return jax.random.bernoulli(key, p, shape, **where)
    # A uniform number is k / 2^23, with the first 23 bits of an entry; it is kept if below p.
    threshold = math.ceil(float(np.float32(probability)) * 2**MANTISSA)
    return (random_bits(key, shape, axes) >> (32 - MANTISSA)) < np.uint32(threshold)


def random_bits(key: jax.Array, shape: tuple[int, ...], axes: Any = ()) -> jax.Array:
    """`jax.random.bits(key, shape)` of Threefry, for fewer than 2^32 entries.

    Args:
        key: one of Threefry's.
        shape: of the result.
        axes: as of `kept`.
    """
    first, second = jax.random.key_data(key)
    words = (first, second, first ^ second ^ PARITY)
    x0 = words[0]
    x1 = _counters(shape, axes) + words[1]
    for group in range(5):
        for bits in ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = ((x1 << bits) | (x1 >> (32 - bits))) ^ x0
        x0 = x0 + words[(group + 1) % 3]
        x1 = x1 + words[(group + 2) % 3] + np.uint32(group + 1)
    return x0 ^ x1


def _counters(shape: tuple[int, ...], axes: Any) -> jax.Array:
    """The number of each entry, in the order of memory."""
    where: dict[str, Any] = {"out_sharding": PartitionSpec(*axes)} if on_mesh() else {}
    found, stride = jnp.zeros((), jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        own = jax.lax.broadcasted_iota(jnp.uint32, shape, axis, **where)
        found, stride = found + own * np.uint32(stride), stride * shape[axis]
    return found


def _written_out(key: jax.Array, probability: Any, shape: tuple[int, ...]) -> bool:
    """Whether this is what JAX's bits are, and faster."""
    return (
        isinstance(probability, float)
        and jax.default_backend() == "cpu"
        and bool(jax.config.jax_threefry_partitionable)
        and str(jax.random.key_impl(key)) == "threefry2x32"
        and math.prod(shape) < 2**32
    )
