"""What a run of training carries from step to step: `TrainState`, and what a step reads: `Batch`.

Everything that is random in step s is drawn from

    step_key(state) = fold_in(state.key, s)

so that the state of the random numbers is the key, which never changes, and the step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Batch(NamedTuple):
    """Some images and their classes; any other pair (images, labels) serves as well.

    Attributes:
        images: (b, H, W, C), channels last, as the model takes them.
        labels: (b,) the number of each image's class, from 0.
    """

    images: Any
    labels: Any


class TrainState(NamedTuple):
    """A pytree of arrays: all that an update changes, and the key.

    Attributes:
        step: how many updates have been made: int32, a scalar.
        model: the model, a pytree of its parameters.
        opt_state: the optimiser's.
        key: raw data of the run's key (uint32), as `jax.random.key_data` has it.
    """

    step: jax.Array
    model: Any
    opt_state: Any
    key: jax.Array


def new_state(
    model: Any, optimizer: optax.GradientTransformation, seed: int, *, copy: bool = True
) -> TrainState:
    """The state before the first step, on the mesh that is set, if one is.

    Args:
        model: initial parameters.
        optimizer: whose state is made.
        seed: of the run's key.
        copy: whether the parameters are copied, so that the model outlives the first update, which
            takes over the memory of its state.
    """

    def begin(model: Any) -> tuple[Any, Any, Any]:
        key = jax.random.key_data(jax.random.key(seed))
        return jnp.zeros((), jnp.int32), optimizer.init(model), key

    step, opt_state, key = jax.jit(begin)(model)
    own = jax.tree.map(jnp.copy, model) if copy else model
    state = TrainState(step, own, opt_state, key)
    if isinstance(step.sharding, jax.sharding.SingleDeviceSharding):
        # Bound to its device, as what is restored from a checkpoint is: one program serves both.
        return jax.device_put(state, step.sharding)
    return state


def step_key(state: TrainState) -> jax.Array:
    """The key of the step that comes next, as a typed key."""
    return jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
