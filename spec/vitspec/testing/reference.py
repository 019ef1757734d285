"""The specification on a batch, by flat names: the truth, its price, an implementation of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, reduce
from typing import Any

import numpy as np

from vitspec.records import Record
from vitspec.testing.catalogue import planted
from vitspec.testing.catalogue.planting import Plantable, anything_planted
from vitspec.testing.families import FAMILIES, KINK_MARGIN, AnyCase, Config
from vitspec.testing.layouts import CONTIGUOUS
from vitspec.testing.noise import Noise
from vitspec.testing.precision import (
    PRECISIONS,
    NoisyArithmetic,
    Precision,
    RoundingArithmetic,
    rounded,
)  # fmt: skip
from vitspec.testing.tolerance import Price, Sizes, distances, sizes
from vitspec.testing.variants import FUSED
from vitspec.typing import Array, shapes_unchecked

ALGORITHMS = 4
"""Ways of computing the specification that noisy runs take in turns."""
CASE_RUNS = 8
"""Noisy runs of a small point, where each is a small sample of rounding."""
MORE_RUNS = 16
"""Further ones, where something stands out."""

Flat = dict[str, Array]
"""Arrays by name: `logits`, `image` (the images' gradient), gradients by their parameter's name."""


@dataclass(frozen=True)
class Point:
    """A model, images and a cotangent: where an implementation is evaluated.

    Attributes:
        spec: a name of `vitspec.testing.families.FAMILIES`: "vit", "vit-cls" or
            "vision-transformer"; "other" for a function of the user's own.
        config: the model's configuration.
        params: the parameters by flat name.
        images: (B, C, H, W).
        cotangent: of the logits, (B, K).
        layout: in which order of the memory an implementation is given the arrays.
    """

    spec: str
    config: Any
    params: Flat
    images: Array
    cotangent: Array
    layout: str = CONTIGUOUS

    def __str__(self) -> str:
        """A point in words."""
        return f"{self.config!r} with images of shape {self.images.shape}"

    @classmethod
    def of(cls, case: AnyCase) -> Point:
        """The point of a case, in float64."""
        params = case.model().to_flat()
        return cls(case.spec, case.config, params, case.images(), case.cotangent())

    def rounded(self, precision: Precision) -> Point:
        """The point with numbers that are exact in a precision, in read-only arrays."""
        point = replace(
            self,
            params={name: rounded(leaf, precision) for name, leaf in self.params.items()},
            images=rounded(self.images, precision),
            cotangent=rounded(self.cotangent, precision),
        )
        for array in (*point.params.values(), point.images, point.cotangent):
            array.setflags(write=False)
        return point

    def moved(self, rng: np.random.Generator, by: float, whole: bool = False) -> Point:
        """A neighbouring point: every number times 1 + h, h between by / 2 and by in size.

        Args:
            rng: where h is drawn from.
            by: how far.
            whole: whether each parameter, and the images, keep their structure: all entries of an
                array move by one h. The cotangent's move one by one in any case.
        """

        def move(x: Array, whole: bool = whole) -> Array:
            shape = () if whole else x.shape
            h = rng.uniform(by / 2, by, shape) * rng.choice([-1, 1], shape)
            return x * (1 + h)

        params = {name: move(leaf.astype(np.float64)) for name, leaf in self.params.items()}
        images = move(self.images.astype(np.float64))
        cotangent = move(self.cotangent.astype(np.float64), whole=False)
        return replace(self, params=params, images=images, cotangent=cotangent)

    def away_from_kinks(self, margin: float = KINK_MARGIN) -> Point:
        """The point with biases b1 moved so that no ReLU's input is within `margin` of 0."""
        family = FAMILIES[self.spec]
        model = family.away_from_kinks(self.model(self.params), self.images, margin)
        return replace(self, params=model.to_flat())

    def model(self, params: Mapping[str, Array]) -> Any:
        """The specification's model with these parameters, for images of this size."""
        return FAMILIES[self.spec].model(self.config, params, self.images.shape[1:])

    @property
    def call(self) -> dict[str, Any]:
        """What a call of the model on these images is given besides, by keyword."""
        return FAMILIES[self.spec].call(self.config, self.images.shape[1:])


def evaluate_spec(point: Point, dtype: Any = np.float64, taps: bool = False) -> Flat:
    """Logits and all cotangents by the specification, and its intermediate values if asked for."""
    convert = lambda x: x.astype(dtype, copy=False)  # noqa: E731
    return _evaluate(point, convert, taps)


def evaluate_in(
    arithmetic: NoisyArithmetic, point: Point, taps: bool = False, dtype: Any = np.float64
) -> Flat:
    """The same in arithmetic of another kind; `dtype` is what that computes in."""
    found = _evaluate(point, lambda x: arithmetic.array(x.astype(dtype)), taps)
    return {name: np.asarray(value) for name, value in found.items()}


def _evaluate(point: Point, convert: Any, taps: bool) -> Flat:
    model = point.model({name: convert(leaf) for name, leaf in point.params.items()})
    images, cotangent = convert(point.images), convert(point.cotangent)
    with shapes_unchecked():  # the model has checked its parameters
        traces = [model.trace(image, **point.call) for image in images]
        pairs = [
            model.backward(image, d_logits, trace=trace, **point.call)
            for image, d_logits, trace in zip(images, cotangent, traces, strict=True)
        ]
    found = {"logits": np.stack([trace.logits for trace in traces])}
    found["image"] = np.stack([d_image for _, d_image in pairs])
    found |= sum_over_batch([grads.to_flat() for grads, _ in pairs])
    if taps:
        flats = [trace_taps(trace) for trace in traces]
        found |= {name: np.stack([flat[name] for flat in flats]) for name in flats[0]}
    return found


def sum_over_batch(gradients: Sequence[Mapping[str, Array]]) -> Flat:
    """The parameters' gradients, added up over the images of a batch."""
    return {name: reduce(np.add, [one[name] for one in gradients]) for name in gradients[0]}


def trace_taps(trace: Any) -> Flat:
    """A model's intermediate values by name, in the order in which they are computed."""
    taps: Flat = {}
    for field in fields(trace):
        value = getattr(trace, field.name)
        if field.name == "layers":
            for i, layer in enumerate(value):
                taps |= {f"encoder.layers.{i}.{name}": leaf for name, leaf in _leaves(layer)}
        elif field.name not in ("logits", "outputs"):  # these are no intermediate values
            taps[field.name] = value
    return taps


def _leaves(record: Record) -> list[tuple[str, Array]]:
    leaves = []
    for field in fields(record):  # type: ignore[arg-type]
        value = getattr(record, field.name)
        if isinstance(value, Record):
            leaves += [(f"{field.name}.{name}", leaf) for name, leaf in _leaves(value)]
        elif field.name != "input":  # the layer before has it as its output
            leaves.append((field.name, value))
    return leaves


def noisy_runs(
    point: Point,
    precision: Precision,
    runs: int,
    rng: np.random.Generator,
    dtype: Any = np.float64,
    taps: bool = False,
) -> Iterator[Flat]:
    """Runs of the specification that err as a precision does, by the usual algorithms in turns.

    The algorithms are the textbook's attention and that of fused kernels, each with rows that err
    alike and rows that do not: `ALGORITHMS` of them.

    Args:
        point: where; exact in the precision.
        precision: what the runs err like.
        runs: how many.
        rng: where the errors are drawn from.
        dtype: what the runs compute in, before they err; float32 halves the time.
        taps: whether to have the intermediate values.
    """
    for run in range(runs):
        fused, alike = ((0, 0), (1, 1), (0, 1), (1, 0))[run % ALGORITHMS]
        arithmetic = NoisyArithmetic(precision, rng, alike=bool(alike))
        # What is planted, as a diagnosis does, may not reach into fused attention.
        with planted(*[FUSED] * (fused and not anything_planted())):
            found = evaluate_in(arithmetic, point, taps, dtype)
        yield found


def noise_of_spec(
    point: Point,
    truth: Flat,
    precision: Precision,
    runs: int,
    rng: np.random.Generator,
    taps: bool = False,
) -> dict[str, Noise]:
    """The noise of every tensor at a small point; the arguments are those of `noisy_runs`."""
    found = list(noisy_runs(point, precision, runs, rng, taps=taps))
    return {
        name: Noise.of(value, [run[name] for run in found], ALGORITHMS, precision)
        for name, value in truth.items()
    }


def price_spec(
    point: Point,
    truth: Flat,
    precision: Precision,
    runs: int,
    rng: np.random.Generator,
    dtype: Any = np.float64,
    taps: bool = False,
) -> dict[str, Price]:
    """The price of every tensor; no run is kept, so that this can be done at full size."""
    noise: dict[str, list[Sizes]] = {name: [] for name in truth}
    for found in noisy_runs(point, precision, runs, rng, dtype, taps):
        for name, value in truth.items():
            noise[name].append(distances(found[name], value))
    return {n: Price.of(sizes(truth[n]), noise[n], precision.u) for n in truth}


class Reference:
    """What is true at a point and what a precision costs there, each computed once, for everybody.

    Args:
        point: where; exact in the precision.
        precision: what is priced.
        rng: of the noise.
        runs: the number of noisy runs.
        taps: whether intermediate values are included.

    Attributes:
        small: whether the runs can be kept, entry by entry.
    """

    def __init__(
        self, point: Point, precision: Precision, rng: np.random.Generator, runs: int, taps: bool
    ) -> None:
        self.point, self.precision, self.runs, self.taps = point, precision, runs, taps
        self._rng, self._more_rng = rng.spawn(2)
        self.small = runs >= CASE_RUNS

    @cached_property
    def truth(self) -> Flat:
        """What the specification computes in float64."""
        return evaluate_spec(self.point, taps=self.taps)

    @cached_property
    def noises(self) -> dict[str, Noise]:
        """What the precision costs each entry, if the point is small."""
        return self._noises(self.runs, self._rng)

    @cached_property
    def more_noises(self) -> dict[str, Noise]:
        """The same by more runs."""
        more = self._noises(MORE_RUNS, self._more_rng)
        return {name: noise.and_more(more[name]) for name, noise in self.noises.items()}

    @cached_property
    def rounded(self) -> Flat:
        """What the specification computes where every operation is rounded to the precision."""
        return evaluate_in(RoundingArithmetic(self.precision), self.point, self.taps)

    def _noises(self, runs: int, rng: np.random.Generator) -> dict[str, Noise]:
        return noise_of_spec(self.point, self.truth, self.precision, runs, rng, self.taps)

    @cached_property
    def prices(self) -> dict[str, Price]:
        """What the precision costs each tensor."""
        if self.small:
            return {name: noise.price() for name, noise in self.noises.items()}
        # At full size float32 halves the time, and the noise is larger than its own rounding.
        how = (self.precision, self.runs, self._rng, self.precision.carrier, self.taps)
        return price_spec(self.point, self.truth, *how)


class SpecImplementation:
    """The specification as an implementation, perhaps with mistakes of the catalogue in it.

    Args:
        spec: "vit", "vit-cls" or "vision-transformer".
        dtype: the precision that it computes in, of `vitspec.testing.precision.PRECISIONS`.
        mistakes: what is planted while it runs, of the catalogue or not.
        name: what reports call it.
    """

    version = "1"

    def __init__(
        self,
        spec: str = "vit",
        dtype: str | tuple[str, ...] = ("float32", "float64"),
        mistakes: Sequence[Plantable] = (),
        name: str = "",
    ) -> None:
        self.spec, self.dtype, self.mistakes = spec, dtype, tuple(mistakes)
        self.name = name or "+".join([spec, *(m.name for m in mistakes)])

    def supports_size(self, config: Config, height: int, width: int) -> str | None:
        """None: positions are interpolated for any size."""
        return None

    def forward(self, config: Config, params: Mapping[str, Array], images: Array) -> Flat:
        """The logits, and every intermediate value."""
        zeros = np.zeros((len(images), config.num_classes), images.dtype)
        point = Point(self.spec, config, dict(params), images, zeros)
        # Mistakes may divide by zero.
        with planted(*self.mistakes), np.errstate(all="ignore"), shapes_unchecked():
            model = point.model({n: self._own(p) for n, p in params.items()})
            traces = [model.trace(self._own(image), **point.call) for image in images]
        logits = np.stack([trace.logits for trace in traces])
        flats = [trace_taps(trace) for trace in traces]
        return {"logits": logits} | {n: np.stack([f[n] for f in flats]) for n in flats[0]}

    def vjp(
        self, config: Config, params: Mapping[str, Array], images: Array, cotangent: Array
    ) -> tuple[Flat, Array]:
        """The cotangents of the parameters, summed over the batch, and of the images."""
        point = Point(self.spec, config, dict(params), images, cotangent)
        with planted(*self.mistakes), np.errstate(all="ignore"):
            found = _evaluate(point, self._own, taps=False)
        plain = {name: np.asarray(value) for name, value in found.items()}
        return {name: plain[name] for name in params}, plain["image"]

    def _own(self, x: Array) -> Array:
        """x in this implementation's arithmetic: NumPy's own for float32 and float64."""
        if isinstance(self.dtype, tuple) or PRECISIONS[self.dtype].own_type:
            return x
        return RoundingArithmetic(PRECISIONS[self.dtype]).array(x.astype(np.float64))
