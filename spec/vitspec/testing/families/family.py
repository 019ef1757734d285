"""What a family of models is to the kit: one object that the checks, and everything else, ask.

A *family* is a function that an implementation may claim to compute: how its specification is built
from flat parameters, how cases of it are drawn, which configuration it has at full size, what it
must refuse, where a diagnosis looks, and which mistakes of the catalogue can show in it. Each
family's own part is in a file of its own; what families share is in this one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from vitspec.testing.catalogue import Deviation, deviations_of
from vitspec.typing import Array

Shape = tuple[int, ...]

FULL_SIZE_IMAGE = (3, 224, 224)
SMOKE_IMAGE = (2, 4, 6)
"""(C, H, W) of the photograph, and of the first images that an implementation is given."""

ORIENTATIONS = {"tall": (8, 2), "wide": (2, 8), "square": (4, 4)}
"""Rows and columns of positions. All have as many, which code that takes the root of their number
for both cannot tell apart."""

KINK_MARGIN = 1e-3
"""How far from 0 `Family.away_from_kinks` keeps the inputs of the ReLUs."""


class DrawnCase:
    """The base of all cases: draws every array from `seed`, in float64, the same on every call.

    A case is small to print and complete to reproduce: a model, images, cotangents and tangents,
    all drawn from one seed.
    """

    config: Any
    seed: int
    batch: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        raise NotImplementedError

    def model(self) -> Any:
        """The specification's record of the parameters."""
        raise NotImplementedError

    def image(self) -> Array:
        """(C, H, W), normal."""
        return self._rng(1).standard_normal(self.image_shape)

    def images(self) -> Array:
        """(B, C, H, W), normal; the first is `image()`."""
        return self._rng(1).standard_normal((self.batch, *self.image_shape))

    def d_logits(self) -> Array:
        """The cotangent of the logits, (K,), normal."""
        return self._rng(2).standard_normal(self.config.num_classes)

    def cotangent(self) -> Array:
        """The cotangents of the batch's logits, (B, K), normal; the first is `d_logits()`."""
        return self._rng(2).standard_normal((self.batch, self.config.num_classes))

    def tangent(self) -> Any:
        """A direction for the parameters: a model of normal numbers."""
        rng = self._rng(3)
        return self.model().map(lambda leaf: rng.standard_normal(leaf.shape))

    def d_image(self) -> Array:
        """A direction for the image, (C, H, W), normal."""
        return self._rng(4).standard_normal(self.image_shape)

    def _rng(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, stream])


@dataclass(frozen=True)
class Family(ABC):
    """What the kit wants of a family of models.

    Attributes:
        name: what an implementation claims to be.
        config_type: of its configurations.
        full_size: the configuration of ViT-Base/16, on images of `FULL_SIZE_IMAGE`.
        smoke_configs: one-block models, then ViT-Base/16, tried in turn until the implementation
            supports one.
        ill_formed: for each rule of the configuration, what breaks it in the first of
            `smoke_configs`.
        telling_cases: where a diagnosis looks: every mistake shows in one of them, and no two
            mistakes look alike in all of them. The last case is what everybody supports.
        backward_order: the parameters' names, without the layer, in the order in which a backward
            gets to their gradients; the layers' come last layer first.
        interpolates: whether there are positions for images of another size.
        options: what is no size: groups of choices, one of which a configuration has of each.
    """

    interpolates: ClassVar[bool] = False
    options: ClassVar[tuple[tuple[Mapping[str, Any], ...], ...]] = ()

    name: str
    config_type: type[Any]
    full_size: Any
    smoke_configs: tuple[Any, ...]
    ill_formed: Mapping[str, Mapping[str, Any]]
    telling_cases: tuple[Any, ...]
    backward_order: tuple[str, ...]

    # ---- the specification ---------------------------------------------------------------------

    @abstractmethod
    def model(self, config: Any, params: Mapping[str, Array], image_shape: Shape) -> Any:
        """The specification's record of these parameters."""

    def call(self, config: Any, image_shape: Shape) -> dict[str, Any]:
        """Extra keyword arguments for calling the model on images of this size."""
        return {}

    @abstractmethod
    def full_size_parameters(self, config: Any, rng: np.random.Generator) -> dict[str, Array]:
        """Fresh parameters by flat name, for images of `FULL_SIZE_IMAGE`."""

    @abstractmethod
    def any_shapes(self, config: Any) -> dict[str, Shape]:
        """The parameters' shapes that even an ill-formed configuration asks for."""

    @abstractmethod
    def grid(self, config: Any, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches."""

    @abstractmethod
    def patches_can_move(self, config: Any) -> bool:
        """Whether each pixel is of one patch at most, at whatever place in the image."""

    @abstractmethod
    def cls_rows(self, config: Any) -> int:
        """How many tokens stand for no patch."""

    def mistakes(self, other_sizes: bool = False) -> tuple[Deviation, ...]:
        """The mistakes of the catalogue that can show in it, as they are planted there.

        Args:
            other_sizes: whether images may have another size than the configuration's.
        """
        return deviations_of(self.name, other_sizes)

    # ---- cases ---------------------------------------------------------------------------------

    @abstractmethod
    def smoke_case(self, config: Any) -> Any:
        """Two images, of full size for `full_size`, else of `SMOKE_IMAGE` (or the config's)."""

    @abstractmethod
    def random_case(self, rng: np.random.Generator) -> Any:
        """A small random case, with one to three images."""

    @abstractmethod
    def tiled_case(self, rng: np.random.Generator) -> Any:
        """A small random case whose patches tile the image, so that they can be moved."""

    @abstractmethod
    def ordinary_case(self, rng: np.random.Generator, wanted: Mapping[str, Any]) -> Any:
        """A small random case of ordinary numbers, with one image and, if nobody wants more, layer.

        Args:
            rng: what it is drawn from.
            wanted: values of fields, as far as its configuration has them.
        """

    def interpolated_case(self, rng: np.random.Generator, orientation: str = "") -> Any:
        """A small random case with images of another size, where positions are interpolated.

        Args:
            rng: what it is drawn from.
            orientation: of the grid of positions: one of `ORIENTATIONS`, or any.
        """
        raise NotImplementedError(f"the positions of {self.name} are of one size")

    def telling_interpolated_case(self) -> Any:
        """Where a diagnosis looks at interpolated positions."""
        raise NotImplementedError(f"the positions of {self.name} are of one size")

    @abstractmethod
    def with_config(self, case: Any, config: Any) -> Any:
        """The case with a configuration of the user's."""

    @abstractmethod
    def friendlier(self, case: Any) -> Iterator[Any]:
        """The case, then the same with one after the other of its oddities removed."""

    # ---- kinks ---------------------------------------------------------------------------------

    @abstractmethod
    def has_kinks(self, model: Any) -> bool:
        """Whether its activation is the ReLU."""

    @abstractmethod
    def embed(self, model: Any, image: Array) -> Array:
        """The encoder's input."""

    @abstractmethod
    def layer_trace(self, layer: Any, x: Array) -> Any:
        """The intermediate values of one layer, `ffn.hidden` and `output` among them."""

    def away_from_kinks(self, model: Any, images: Array, margin: float = KINK_MARGIN) -> Any:
        """The model with biases b1 moved a little, so that no ReLU's input is near 0 here.

        At 0 the derivative of the ReLU jumps. Where rounding takes an input across, a correct
        implementation computes the other one-sided derivative, far from this one: in float32 a
        ViT-Base/16 has several such inputs among its seven million. So gradients are compared where
        they exist with room to spare. For each hidden feature the bias moves 0 to the middle of the
        nearest gap between the tokens' values that is wide enough; this shifts most by less than
        1e-2. A model whose activation has no kink is returned as it is.

        Args:
            model: the specification's record of the parameters.
            images: (B, C, H, W).
            margin: how near is too near.
        """
        if not self.has_kinks(model):
            return model

        def traces(_: int, layer: Any, sequences: Sequence[Array]) -> list[Any]:
            return [self.layer_trace(layer, x) for x in sequences]

        def clear(b1: Array, hidden: Array) -> Array:
            return b1 - nearest_gap(hidden, margin)

        sequences = [self.embed(model, image) for image in images]
        layers = off_kinks(model.encoder.layers, sequences, traces, clear)
        return replace(model, encoder=replace(model.encoder, layers=layers))


def off_kinks(
    layers: Sequence[Any],
    sequences: Sequence[Array],
    traces: Callable[[int, Any, Sequence[Array]], Sequence[Any]],
    clear: Callable[[Array, Array], Array],
) -> tuple[Any, ...]:
    """The layers with biases b1 moved, each at the sequences that the moved ones before it give.

    Args:
        layers: of an encoder; each has `ffn.b1`.
        sequences: the encoder's inputs, (n, D) each.
        traces: the intermediate values (`ffn.hidden`, `output`) of layer i at all sequences.
        clear: from b1 and the hidden values of all rows to the b1 that keeps these off 0.
    """
    moved: list[Any] = []
    for i, layer in enumerate(layers):
        hidden = np.concatenate([trace.ffn.hidden for trace in traces(i, layer, sequences)])
        moved.append(replace(layer, ffn=replace(layer.ffn, b1=clear(layer.ffn.b1, hidden))))
        sequences = [trace.output for trace in traces(i, moved[-1], sequences)]
    return tuple(moved)


def nearest_gap(values: Array, margin: float = KINK_MARGIN) -> Array:
    """For each column of (n, F), the number nearest to 0 that is `margin` from every entry."""
    low, high = np.sort(values, axis=0) - margin, np.sort(values, axis=0) + margin
    # A number is free if it lies between one value's upper and the next value's lower margin.
    infinite = np.full((1, values.shape[1]), np.inf)
    start, end = np.concatenate([-infinite, high]), np.concatenate([low, infinite])
    nearest = np.clip(0.0, start, end)  # where start > end the gap is too narrow
    distance = np.where(start <= end, np.abs(nearest), np.inf)
    return np.take_along_axis(nearest, distance.argmin(axis=0)[None], axis=0)[0]
