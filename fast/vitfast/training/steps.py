"""One step of training, as one program: loss, gradients, update.

    optimizer = optax.adamw(1e-3)
    step = make_train_step(optimizer)
    opt_state = optimizer.init(model)
    for images, labels in batches:
        model, opt_state, loss = step(model, opt_state, images, labels)

A model is a pytree, so Optax takes it as it is, and its state has the model's sharding. A step of a
`VisionTransformer` takes a key as well, without which nothing is left out by dropout:

        key, of_step = jax.random.split(key)
        model, opt_state, loss = step(model, opt_state, images, labels, of_step)

`make_update` makes the same step of a `TrainState`, as `vitfast.fit` takes it: with any objective,
figures to report, and the batch in parts whose gradients are averaged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, Int

from vitfast.sharding import reshape
from vitfast.training import objectives
from vitfast.training.objectives import Classification, Objective
from vitfast.training.state import TrainState, step_key
from vitfast.vision_transformer import VisionTransformer
from vitfast.vit import ViT

Loss = Callable[[jax.Array, Any], jax.Array]
"""A loss of logits (batch, classes) and labels: one number."""

Step = Any
"""A jitted function (model, opt_state, images, labels, key=None) -> (model, opt_state, loss)."""

Update = Any
"""A jitted function (state, batch) -> (state, figures)."""


def cross_entropy(
    logits: Float[jax.Array, "batch classes"], labels: Int[jax.Array, " batch"]
) -> Float[jax.Array, ""]:
    """The mean over the batch of -log softmax(logits)[label], in float32 at least.

    Args:
        logits: of any float type.
        labels: the number of each image's class, from 0.
    """
    return objectives.smoothed_cross_entropy(logits, labels, 0.0).mean()


def logits_of(model: ViT | VisionTransformer, images: Any, key: Any = None) -> jax.Array:
    """The logits of a model of either family.

    Args:
        model: a classifier.
        images: as it takes them.
        key: where dropout draws from, in a `VisionTransformer`; None is no dropout.

    Raises:
        ValueError: the model has no classifier, or no dropout to draw.
    """
    if key is not None and not isinstance(model, VisionTransformer):
        raise ValueError("key: a ViT has no dropout; expected None")
    return objectives.logits_of(model, images, key)


def make_train_step(optimizer: optax.GradientTransformation, loss: Loss = cross_entropy) -> Step:
    """A jitted function that takes one step.

    It compiles once for each model and shape, and then runs without tracing again. The model and
    the optimiser's state that it is given are donated: their memory becomes that of the new ones,
    and they cannot be used again.

    Args:
        optimizer: the update rule; `optimizer.init(model)` makes its state.
        loss: what to minimise.
    """

    def objective(model: Any, images: Any, labels: Any, key: Any) -> jax.Array:
        return loss(logits_of(model, images, key), labels)

    def step(model: Any, opt_state: Any, images: Any, labels: Any, key: Any = None) -> Any:
        value, gradients = jax.value_and_grad(objective)(model, images, labels, key)
        updates, opt_state = optimizer.update(gradients, opt_state, model)
        return optax.apply_updates(model, updates), opt_state, value

    return jax.jit(step, donate_argnums=(0, 1))


def make_update(
    optimizer: optax.GradientTransformation,
    objective: Objective | None = None,
    *,
    accumulation: int = 1,
    schedule: optax.Schedule | None = None,
) -> Update:
    """A jitted function that takes one step of a state: (state, batch) -> (state, figures).

    The state that it is given is donated. Figures are scalars on the device: the batch's `loss`
    before the update, `grad_norm` before any clipping, and the `learning_rate` if there is a
    schedule.

    Args:
        optimizer: the update rule.
        objective: what to minimise; None is classification.
        accumulation: into how many equal parts the batch is cut, whose gradients are averaged: the
            step needs the memory of one part. The gradient is that of the whole batch, but for what
            is random: each part draws from a key of its own.
        schedule: the learning rate by step, to report.
    """

    def update(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        loss, gradients = loss_and_gradients(
            state.model, batch, step_key(state), objective=objective, accumulation=accumulation
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.model)
        model = optax.apply_updates(state.model, updates)
        figures = {"loss": loss, "grad_norm": norm(gradients)}
        if schedule is not None:
            figures["learning_rate"] = jnp.asarray(schedule(state.step), jnp.float32)
        return TrainState(state.step + 1, model, opt_state, state.key), figures

    return jax.jit(update, donate_argnums=0)


def loss_and_gradients(
    model: Any,
    batch: Any,
    key: Any,
    weights: Any = None,
    *,
    objective: Objective | None = None,
    accumulation: int = 1,
) -> tuple[jax.Array, Any]:
    """The loss of a batch, and its gradient: a model whose parameters are derivatives.

    This is what `make_update` computes, inside of its program. Of several parts, part i has the
    rows i, i + accumulation, ..., so that on a mesh every device has its share of each, and draws
    from fold_in(key, i); a single one draws from the key itself.

    Args:
        model: of either family.
        batch: images (b, H, W, C) and labels (b,).
        key: where dropout and masks draw from; None is no dropout.
        weights: (b,) what multiplies the images' losses before they are added up; None is 1 / b.
        objective: what to minimise; None is classification.
        accumulation: into how many equal parts the batch is cut.
    """
    wanted, parts = objective or Classification(), accumulation

    def loss(model: Any, batch: Any, weights: Any, key: Any) -> jax.Array:
        losses = wanted.losses(model, batch, key)
        return losses.mean() / parts if weights is None else (losses * weights).sum()

    of_part = jax.value_and_grad(loss)
    if parts == 1:
        return of_part(model, tuple(batch), weights, key)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        number, rows, row_weights = part
        key_of_part = None if key is None else jax.random.fold_in(key, number)
        return jax.tree.map(jnp.add, total, of_part(model, rows, row_weights, key_of_part)), None

    cut = jax.tree.map(lambda rows: in_parts(jnp.asarray(rows), parts), (tuple(batch), weights))
    first = jax.tree.map(lambda rows: rows[0], cut)
    dtype = jax.eval_shape(loss, model, *first, key).dtype
    nothing = (jnp.zeros((), dtype), jax.tree.map(jnp.zeros_like, model))
    return jax.lax.scan(add, nothing, (jnp.arange(parts), *cut))[0]


def norm(tree: Any) -> jax.Array:
    """The square root of the sum of all squares."""
    return jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(tree)))


def in_parts(rows: jax.Array, parts: int) -> jax.Array:
    """(b, ...) as (parts, b / parts, ...): part i has the rows i, i + parts, ..."""
    return jnp.moveaxis(reshape(rows, len(rows) // parts, parts, *rows.shape[1:]), 1, 0)
