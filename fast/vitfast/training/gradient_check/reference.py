"""The specification's gradient of a few images' loss, and what a precision may cost it.

The truth is `vitspec` in float64 at the step's own parameters: its losses, and its backward, which
is written by hand. What the step's precision costs is found as `vitspec check` finds it
(`vitspec.testing.tolerance`, `vitspec.testing.precision`): by runs of the specification whose
arithmetic errs. A price is the worst of all runs, so more runs never lower a bound: it is
enough to run until all tensors conform, one run nearly always, and only a tensor that does not
conform after `RUNS` of them departs.

A step in a low precision keeps its parameters in float32 and rounds them on the way in; so what the
precision cannot hold is moved there by up to a rounding. Its loss is computed in float32 of the
logits that it has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from vitfast.training.gradient_check.examples import Example
from vitfast.training.objectives import Classification, Objective
from vitspec.layers import losses
from vitspec.models.block import BlockFactors
from vitspec.models.conditions import Conditions
from vitspec.models.heads import Outputs
from vitspec.models.vision_transformer import VisionTransformer
from vitspec.testing import reference
from vitspec.testing.precision import PRECISIONS, NoisyArithmetic, Precision
from vitspec.testing.tolerance import Grade, Price, Sizes, distances, grade, sizes
from vitspec.typing import Array
from vitspec.vision_transformer_config import VisionTransformerConfig

Flat = dict[str, Array]
"""Gradients by their parameter's flat name."""

Planting = Callable[[], AbstractContextManager[Any]]
"""What the model, but not the loss, is evaluated in: mistakes of the catalogue, or nothing."""

RUNS = 12
"""Runs that err, at most."""

SMALL = 1_000_000
"""The number of parameters up to which the runs that err do so on top of float64."""


class Exact:
    """Arithmetic in float64."""

    def given(self, x: Array) -> Array:
        """A parameter, an image, factors."""
        return x.astype(np.float64, copy=False)

    def into_loss(self, x: Array) -> Array:
        """Outputs, as the loss reads them."""
        return x

    def out_of_loss(self, x: Array) -> Array:
        """Their cotangents, as the backward reads them."""
        return x


class Erring(Exact):
    """Arithmetic that errs as a precision does.

    Args:
        precision: which.
        rng: where errors are drawn from.
        alike: whether all rows err alike (`NoisyArithmetic`).
        carrier: NumPy's type that it is carried out in.
    """

    def __init__(
        self, precision: Precision, rng: np.random.Generator, alike: bool, carrier: str
    ) -> None:
        self.type, self.carrier = jnp.dtype(precision.name), np.dtype(carrier)
        self.arithmetic = NoisyArithmetic(precision, rng, alike)
        self.low = precision.u > PRECISIONS["float32"].u
        self.of_loss = NoisyArithmetic(PRECISIONS["float32"], rng) if self.low else self.arithmetic

    def given(self, x: Array) -> Array:
        """x, moved where the precision cannot hold it."""
        carried = x.astype(self.carrier)
        if x.dtype != self.type:
            held = x.astype(self.type).astype(x.dtype) == x
            if not held.all():
                moved = self.arithmetic.move_values(carried, np.abs(carried))
                carried = np.where(held, carried, moved)
        return self.arithmetic.array(carried)

    def into_loss(self, x: Array) -> Array:
        """x in float32 at least."""
        return self.of_loss.array(np.asarray(x))

    def out_of_loss(self, x: Array) -> Array:
        """x in the model's precision again."""
        plain = np.asarray(x)
        if self.low:
            plain = self.arithmetic.move_values(plain, np.abs(plain))
        return self.arithmetic.array(plain)


def evaluate(
    config: VisionTransformerConfig,
    flat: Mapping[str, Array],
    examples: Sequence[Example],
    objective: Objective,
    world: Exact,
    planting: Planting = nullcontext,
) -> tuple[float, Flat]:
    """The specification's loss, and its gradients by flat name: sums over the examples."""
    images = [world.given(example.image) for example in examples]
    conditions = [_given(example.conditions, world) for example in examples]
    with planting():
        model = VisionTransformer.from_flat(config, {n: world.given(p) for n, p in flat.items()})
        traces = [
            model.trace(image, own) for image, own in zip(images, conditions, strict=True)
        ]  # fmt: skip
    loss, cotangents = 0.0, []
    for example, trace in zip(examples, traces, strict=True):
        value, cotangent = _loss(config, objective, trace.outputs, example, world)
        loss += example.weight * value
        cotangents.append(cotangent)
    with planting():
        grads = [
            model.backward(image, conditions=own, trace=trace, **cotangent)[0].to_flat()
            for image, own, trace, cotangent in zip(
                images, conditions, traces, cotangents, strict=True
            )
        ]
        total = reference.sum_over_batch(grads)
    return loss, {name: np.asarray(value) for name, value in total.items()}


def _loss(
    config: VisionTransformerConfig,
    objective: Objective,
    outputs: Outputs,
    example: Example,
    world: Exact,
) -> tuple[float, dict[str, Array]]:
    """An image's loss, and the cotangent of the output that it is of, times its weight."""
    found: Any = outputs
    if isinstance(objective, Classification):
        logits, smoothing = world.into_loss(found.logits), repr(float(objective.label_smoothing))
        value = losses.cross_entropy(logits, example.label, smoothing)
        slope = losses.cross_entropy_backward(logits, example.label, smoothing)
        return float(value), {"d_logits": world.out_of_loss(slope * example.weight)}
    pixels = world.into_loss(found.reconstruction)
    wanted = example.image[:, : pixels.shape[1], : pixels.shape[2]].astype(pixels.dtype)
    mask = masked_pixels(config, example.conditions.masked_patches)
    value = losses.masked_error(wanted, pixels, mask)
    slope = losses.masked_error_backward(wanted, pixels, mask)
    return float(value), {"d_reconstruction": world.out_of_loss(slope * example.weight)}


def masked_pixels(config: VisionTransformerConfig, masked: Any) -> Array:
    """(g_h S, g_w S) Booleans: the pixels of masked patches (T,)."""
    S = config.decoder_stride
    return np.kron(np.reshape(masked, config.grid), np.ones((S, S), bool)).astype(bool)


def _given(conditions: Conditions, world: Exact) -> Conditions:
    def of(x: Array | None) -> Array | None:
        return None if x is None else world.given(x)

    blocks = conditions.block_factors
    if blocks is not None:
        names = ("attention_weights", "attention", "hidden", "mlp")
        blocks = tuple(BlockFactors(**{n: of(getattr(b, n)) for n in names}) for b in blocks)
    return replace(
        conditions, embedding_factors=of(conditions.embedding_factors), block_factors=blocks
    )


class Reference:
    """The specification at one point: the gradients in float64, and what a precision costs them.

    Args:
        config: the model's.
        flat: the parameters by flat name, as the step has them.
        examples: the images.
        objective: what is minimised.
        precision: the step's.
        rng: where the errors of the runs are drawn from.
    """

    def __init__(
        self,
        config: VisionTransformerConfig,
        flat: Mapping[str, Array],
        examples: Sequence[Example],
        objective: Objective,
        precision: Precision,
        rng: np.random.Generator,
    ) -> None:
        self.config, self.flat, self.examples = config, flat, examples
        self.objective, self.precision, self.rng = objective, precision, rng
        small = sum(leaf.size for leaf in flat.values()) <= SMALL
        self.carrier = "float64" if small else precision.carrier
        self.loss, self.truth = self.gradients(Exact())
        self.sizes = {name: sizes(value) for name, value in self.truth.items()}
        self.noise: dict[str, list[Sizes]] = {name: [] for name in self.truth}

    @property
    def runs(self) -> int:
        """How many runs that err there have been."""
        return len(next(iter(self.noise.values())))

    def gradients(self, world: Exact, planting: Planting = nullcontext) -> tuple[float, Flat]:
        """The loss and the gradients in some arithmetic, perhaps with mistakes."""
        return evaluate(
            self.config, self.flat, self.examples, self.objective, world, planting
        )  # fmt: skip

    def run(self) -> None:
        """One more run that errs."""
        world = Erring(self.precision, self.rng, self.runs % 2 == 1, self.carrier)
        _, found = self.gradients(world)
        for name, value in self.truth.items():
            self.noise[name].append(distances(found[name], value))

    def price(self, name: str) -> Price:
        """What the precision costs a tensor, by the runs so far."""
        return Price.of(self.sizes[name], self.noise[name], self.precision.u)

    def grades(self, found: Mapping[str, Array]) -> list[Grade]:
        """The verdict on every gradient, furthest over its bound first; runs as often as needed."""
        if self.runs == 0:
            self.run()
        while True:
            grades = [
                grade(name, found[name], truth, self.price(name))
                for name, truth in self.truth.items()
            ]
            if all(one.conforms for one in grades) or self.runs >= RUNS:
                return sorted(grades, key=lambda g: (g.conforms, -g.ratio))
            self.run()
