"""How good a model is on a split of a dataset: loss, accuracy, confusion matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from vitfast.sharding import on_mesh, shard_images
from vitfast.training.objectives import (
    Classification,
    MaskedImageModelling,
    Objective,
    logits_of,
    smoothed_cross_entropy,
)


class Evaluation(NamedTuple):
    """Of all images of a split, without dropout and augmentation.

    Attributes:
        loss: the mean of the images'; without label smoothing.
        accuracy: the part of the images whose class has the largest logit; None without classes.
        confusion: (K, K) counts: [i, j] images of class i were taken for class j; None likewise.
    """

    loss: float
    accuracy: float | None
    confusion: np.ndarray | None

    @property
    def score(self) -> float:
        """The larger, the better: the accuracy; without one, minus the loss."""
        return -self.loss if self.accuracy is None else self.accuracy


class Totals(NamedTuple):
    """Sums over images: their losses, how many, and the confusion matrix."""

    loss: Any
    count: Any
    confusion: Any


Batches = Iterable[tuple[Any, Any, Any]]
"""Images, labels, and weights that are 1, or 0 for a row that only fills the last batch."""


def make_evaluate(objective: Objective) -> Callable[[Any, Batches], Evaluation]:
    """A function (model, batches) -> Evaluation, which compiles once for each shape.

    Args:
        objective: what is trained. Masked image modelling has the same masks each time.
    """
    of_batch = jax.jit(
        _classified if isinstance(objective, Classification) else _reconstructed(objective)
    )

    def evaluate(model: Any, batches: Batches) -> Evaluation:
        totals = None
        for number, rows in enumerate(batches):
            images, labels, weights = (shard_images(one, model.sharding) for one in rows)
            found = of_batch(model, images, labels, weights, number)
            totals = found if totals is None else jax.tree.map(jnp.add, totals, found)
        assert totals is not None
        count = float(totals.count)
        loss = float(totals.loss) / count
        if totals.confusion is None:
            return Evaluation(loss, None, None)
        confusion = np.asarray(totals.confusion)
        return Evaluation(loss, float(np.trace(confusion) / count), confusion)

    return evaluate


def _classified(model: Any, images: Any, labels: Any, weights: Any, number: Any) -> Totals:
    logits = logits_of(model, jnp.asarray(images, model.param_dtype))
    losses = smoothed_cross_entropy(logits, labels, 0.0)
    K = logits.shape[-1]
    true = jax.nn.one_hot(labels, K) * weights[:, None]
    found = jax.nn.one_hot(logits.argmax(axis=-1), K)
    where: dict[str, Any] = {"out_sharding": PartitionSpec(None, None)} if on_mesh() else {}
    confusion = jnp.einsum("bi,bj->ij", true, found, precision="highest", **where)
    counts = jnp.round(confusion).astype(jnp.int32)
    return Totals((losses * weights).sum(), weights.sum(), counts)


def _reconstructed(objective: MaskedImageModelling) -> Callable[..., Totals]:
    def of_batch(model: Any, images: Any, labels: Any, weights: Any, number: Any) -> Totals:
        of_masks = jax.random.fold_in(jax.random.key(0), number)
        losses = objective.losses_of(model, images, of_masks, None)
        return Totals((losses * weights).sum(), weights.sum(), None)

    return of_batch


# ---- a part of the training images, held out -----------------------------------------------------


def hold_out(split: Any, fraction: float, seed: int) -> tuple[Any, Any]:
    """The split without some of its images, and with these alone; of each class the same part.

    Args:
        split: a `vitfast.data.Split`.
        fraction: of the images of each class, rounded.
        seed: of the choice.

    Raises:
        ValueError: nothing would be held out, or nothing left.
    """
    labels = np.asarray(split.labels)
    drawn = np.random.default_rng(seed).permutation(len(labels))
    held = np.zeros(len(labels), bool)
    for k in np.unique(labels):
        own = drawn[labels[drawn] == k]
        held[own[: round(fraction * len(own))]] = True
    if held.all() or not held.any():
        raise ValueError(
            f"validation_fraction {fraction}: of {len(labels)} training images, {held.sum()} would "
            "be held out; expected some, and some that are left"
        )
    return split.take(np.flatnonzero(~held)), split.take(np.flatnonzero(held))
