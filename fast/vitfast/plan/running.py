"""A step, run here and timed: what a prediction is tested against."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np

from vitfast.memory import OPTIMIZERS
from vitfast.plan.job import SHARDING, Job
from vitfast.plan.program import new_model
from vitfast.sharding import make_mesh, shard_images
from vitfast.training import make_train_step


def time_step(job: Job, steps: int = 5) -> list[float]:
    """The seconds of each of so many steps, after two, with random images.

    Raises:
        ValueError: the mesh has another number of devices than there are.
    """
    c, rng = job.config, np.random.default_rng(0)
    with jax.set_mesh(make_mesh(data=job.data, fsdp=job.fsdp, model=job.model)):
        optimizer = OPTIMIZERS[job.optimizer](1e-4)
        model = new_model(job)
        state = optimizer.init(model)
        shape = (job.batch, c.image_h, c.image_w, c.in_channels)
        images = shard_images(
            jnp.asarray(rng.standard_normal(shape, np.float32), jnp.dtype(job.dtype)), SHARDING
        )
        labels = shard_images(rng.integers(0, c.num_classes, job.batch).astype(np.int32), SHARDING)
        step = make_train_step(optimizer)
        seconds = []
        for _ in range(2 + steps):
            start = time.perf_counter()
            model, state, loss = step(model, state, images, labels)
            jax.block_until_ready(loss)
            jax.block_until_ready(state)
            seconds.append(time.perf_counter() - start)
    return seconds[2:]
