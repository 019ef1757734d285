"""Where a training step of Dive into Deep Learning's ViT goes: dropout, layers, products.

    python benchmarks/train_d2l.py [--repetitions 5] [--batch-size 128]

Steps of one batch at 96 x 96 that is on the device already, the rows taking turns. Other work on
the machine disturbs processor time little, unlike the time on the clock; the least of each counts.
"JAX's bernoulli" draws the same bits by `jax.random.bernoulli`; "products" are the matrix products
of the linear layers alone, forward and backward. Prints a Markdown table for docs/training.md.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from unittest import mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from vitfast import conditions
from vitfast.allocator import keep_freed_memory
from vitfast.training import TrainConfig, make_update, new_state
from vitfast.training.optimizers import make_optimizer
from vitfast.training.recipes import recipe
from vitfast.training.starting import fresh
from vitspec.vision_transformer_config import DropoutRates


def by_jax(key, probability, shape, axes):
    """What `vitfast.random_bits.kept` is bit for bit."""
    return jax.random.bernoulli(key, np.float32(probability), shape)


def steps_of(batch, *, kept=conditions.kept, dropout=None, scan_layers=True):
    """A task that takes one step, and the seconds that it takes to compile."""
    found = recipe("d2l")
    model = found.model if dropout is None else replace(found.model, dropout=dropout)
    training = dict(found.training) | {"batch_size": len(batch[0])}
    config = TrainConfig(**training)
    optimizer = make_optimizer(config)
    state = new_state(fresh(model, scan_layers=scan_layers), optimizer, 0)
    begin = time.perf_counter()
    with mock.patch.object(conditions, "kept", kept):
        update = make_update(optimizer, config.to_objective()).lower(state, batch).compile()
    seconds = time.perf_counter() - begin

    def step():
        nonlocal state
        state, _ = update(state, batch)
        jax.block_until_ready(state.model)

    return step, seconds


def products_of(batch_size, rng):
    """A task that multiplies what the linear layers do: y = x w, dx = dy w^T, dw = x^T dy."""
    c = recipe("d2l").model
    rows, D, F = batch_size * c.token_count, c.embed_dim, c.hidden_dim
    shapes = [(rows, D, D)] * 4 + [(rows, D, F), (rows, F, D)]
    shapes = shapes * c.num_layers + [(rows - batch_size, c.patch_h * c.patch_w, D)]
    given = [
        [jnp.asarray(rng.standard_normal(s, np.float32)) for s in ((r, a), (a, b), (r, b))]
        for r, a, b in shapes
    ]
    multiply = jax.jit(lambda x, w, d_y: (x @ w, d_y @ w.T, x.T @ d_y))
    return lambda: jax.block_until_ready([multiply(*one) for one in given])


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128)
    args = parser.parse_args()
    keep_freed_memory()
    rng = np.random.default_rng(0)
    images = rng.standard_normal((args.batch_size, 96, 96, 1), np.float32)
    batch = jnp.asarray(images), jnp.asarray(rng.integers(0, 10, args.batch_size))
    made = {
        "vitfast": steps_of(batch),
        "with JAX's bernoulli": steps_of(batch, kept=by_jax),
        "without dropout": steps_of(batch, dropout=DropoutRates()),
        "a list of layers": steps_of(batch, scan_layers=False),
        "products": (products_of(args.batch_size, rng), None),
    }
    for task, _ in made.values():
        task()
    found = dict.fromkeys(made, (float("inf"), float("inf")))
    for _ in range(args.repetitions):
        for name, (task, _) in made.items():
            before = time.process_time(), time.perf_counter()
            task()
            spent = time.process_time() - before[0], time.perf_counter() - before[1]
            found[name] = tuple(map(min, found[name], spent))
    print(
        "| step of | processor ms | ms on the clock | s to compile |\n| --- | ---: | ---: | ---: |"
    )
    for name, (processor, clock) in found.items():
        compiled = "" if made[name][1] is None else f"{made[name][1]:.1f}"
        print(f"| {name} | {1e3 * processor:,.0f} | {1e3 * clock:,.0f} | {compiled} |")
    print(f"\n{os.cpu_count()} cores; load while it ran: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
