"""From the rows that a process reads to what a step takes."""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.sharding import NamedSharding, get_abstract_mesh

from vitfast.sharding import ShardingSpec, on_mesh, shard_images
from vitfast.training.state import Batch


def rows_of_process(sharding: ShardingSpec) -> tuple[int, int]:
    """Which part of each batch this process reads, and of how many.

    Processes whose devices differ only along the model axis read the same images.

    Raises:
        ValueError: there are several processes and no mesh, or one whose devices are in an order
            that gives a process images from here and there.
    """
    if not on_mesh():
        if jax.process_count() > 1:
            raise ValueError(
                f"there are {jax.process_count()} processes and no mesh: call fit inside "
                "jax.set_mesh(vitfast.make_mesh(...))"
            )
        return 0, 1
    mesh = get_abstract_mesh()
    parts = math.prod(mesh.shape[axis] for axis in sharding.batch_axes)
    target = NamedSharding(jax.sharding.get_mesh(), sharding.images)
    places = target.addressable_devices_indices_map((parts,)).values()
    own = sorted({rows.start or 0 for (rows,) in places})
    index, rest = divmod(own[0], len(own))
    if rest or parts % len(own) or own != list(range(own[0], own[0] + len(own))):
        raise ValueError(
            f"process {jax.process_index()} would have the parts {own} of {parts} of each batch; "
            "expected neighbours: order the devices of the mesh by process"
        )
    return index, parts // len(own)


def feed(batch: Any, sharding: ShardingSpec) -> Batch:
    """A process's rows of a batch, on its devices."""
    images, labels = batch
    return Batch(shard_images(images, sharding), shard_images(labels, sharding))
