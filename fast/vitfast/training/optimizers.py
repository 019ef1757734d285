"""Optax's optimisers and schedules, as a `TrainConfig` asks for them.

    gradient -> (of the backbone, if it is frozen: 0) -> clipped to clip_norm -> AdamW or SGD

    AdamW    Loshchilov and Hutter, 1711.05101: p <- p - rate (m / (sqrt(v) + 1e-8) + decay p)
    SGD      p <- p - rate b,   b <- momentum b + gradient + decay p        (PyTorch's order)

The rate at step s (from 0) of S, with W steps of warm-up and peak r:

    s < W        r (s + 1) / (W + 1)
    constant     r
    linear       r (S - s) / (S - W)
    cosine       r (1 + cos(pi (s - W) / (S - W))) / 2
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vitfast.convert import dotted
from vitfast.training.config import TrainConfig

HEADS = ("head.", "pooler.", "decoder.")
"""What the names of the heads' parameters begin with."""

DECAYED = ("kernel", "weights", "wq", "wk", "wv", "wo", "w1", "w2")
"""The last part of the names of parameters that decay: the matrices, and the kernel."""


def make_schedule(config: TrainConfig, steps: int) -> optax.Schedule:
    """The learning rate by step.

    Args:
        config: has the peak, the kind and the warm-up.
        steps: how many there are in all.
    """
    peak, W = config.learning_rate, config.warmup_steps
    rest = max(steps - W, 1)
    after = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
    }[config.schedule]
    chosen = after
    if W:
        warmup = optax.linear_schedule(peak / (W + 1), peak, W)
        chosen = optax.join_schedules([warmup, after], [W])
    # An integer step divided by an integer is float32 in JAX, even where float64 is on.
    return lambda step: chosen(jnp.asarray(step, float))


def make_optimizer(
    config: TrainConfig, schedule: optax.Schedule | float | None = None
) -> optax.GradientTransformation:
    """The update rule.

    Args:
        config: which one.
        schedule: the learning rate by step, or one number; None is `config.learning_rate`.
    """
    rate = config.learning_rate if schedule is None else schedule
    frozen = config.freeze_backbone
    decays = _where(lambda name: decayed(name) and not (frozen and backbone(name)))
    parts: list[optax.GradientTransformation] = []
    if frozen:
        parts.append(optax.masked(optax.set_to_zero(), _where(backbone)))
    if config.clip_norm is not None:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    if config.optimizer == "adamw":
        parts.append(
            optax.adamw(
                rate, config.beta1, config.beta2, weight_decay=config.weight_decay, mask=decays
            )
        )
    else:
        if config.weight_decay:
            parts.append(optax.add_decayed_weights(config.weight_decay, decays))
        parts.append(optax.sgd(rate, momentum=config.momentum or None))
    return optax.chain(*parts)


def decayed(name: str) -> bool:
    """Whether a parameter of this flat name decays: matrices do, and the patches' kernel.

    >>> decayed("encoder.layers.0.ffn.w1"), decayed("encoder.layers.0.norm1_gamma")
    (True, False)
    """
    return name.rsplit(".", maxsplit=1)[-1] in DECAYED


def backbone(name: str) -> bool:
    """Whether a parameter of this flat name is not a head's."""
    return not name.startswith(HEADS)


def _where(holds: Callable[[str], bool]) -> Callable[[Any], Any]:
    """A mask as Optax takes it: whether it holds for the name of each leaf of a model."""

    def mask(model: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: holds(dotted(path)), model)

    return mask
