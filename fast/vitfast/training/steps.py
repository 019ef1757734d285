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
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, Int

from vitfast.vision_transformer import VisionTransformer
from vitfast.vit import ViT

Loss = Callable[[jax.Array, Any], jax.Array]
"""A loss of logits (batch, classes) and labels: one number."""

Step = Any
"""A jitted function (model, opt_state, images, labels, key=None) -> (model, opt_state, loss)."""


def cross_entropy(
    logits: Float[jax.Array, "batch classes"], labels: Int[jax.Array, " batch"]
) -> Float[jax.Array, ""]:
    """The mean over the batch of -log softmax(logits)[label], in float32 at least.

    Args:
        logits: of any float type.
        labels: the number of each image's class, from 0.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def logits_of(model: ViT | VisionTransformer, images: Any, key: Any = None) -> jax.Array:
    """The logits of a model of either family.

    Args:
        model: a classifier.
        images: as it takes them.
        key: where dropout draws from, in a `VisionTransformer`; None is no dropout.

    Raises:
        ValueError: the model has no classifier, or no dropout to draw.
    """
    if isinstance(model, VisionTransformer):
        logits = model(images, rngs=key).logits
        if logits is None:
            raise ValueError("model: expected a classifier, got one without (num_classes is 0)")
        return logits
    if key is not None:
        raise ValueError("key: a ViT has no dropout; expected None")
    return model(images)


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
