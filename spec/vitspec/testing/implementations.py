"""Implementations under test: what they must offer, and how they are called.

An implementation is any object with

- `name`, `version`: strings;
- `spec`: which function it claims to be, "vit" (`ViTSpec`), "vit-cls" (`ViTClsSpec`),
  "vision-transformer" (`VisionTransformer`, of the practical family; its configurations are
  `VisionTransformerConfig`), or "other", of which only identities can be checked;
- `dtype`: the precision that it computes in: "float64", "float32", "tf32", "bfloat16" or "float16".
  A tuple names several, the first of which is the default; only float64 and float32 can share an
  object, since the arrays' type tells them apart;
- `forward(config, params, images)`: images (B, C, H, W) -> logits (B, K), or a mapping of `logits`
  and any intermediate values by name (`vitspec.testing.reference.trace_taps`);
- `vjp(config, params, images, cotangent)`: cotangent (B, K) -> ({name: d_param}, d_images), the
  parameters' cotangents summed over the batch. Without it, as in an ONNX model or an engine in C++,
  only the forward is checked, and the verdict says so;
- `supports(config)`, if it cannot do all: None, or why not. The kit then draws cases that it can do
  (`vitspec.testing.drawing`);
- `closest(config)`, likewise: the nearest configuration that it can do, which the kit uses first;
- `supports_size(config, height, width)`, if a "vision-transformer" takes images of another size
  than its configuration's, with interpolated positions: None, or why not those. Without it only
  images of the configuration's size are given;
- `repeats`, "to rounding" if its sums run in an order that varies, as atomic additions on a GPU do.
  Without it, or with "exactly", the same inputs must give the same bits.

`params` is a flat dictionary, as `ViTSpec.to_flat()` makes it. All arrays that an implementation is
given are copies, NumPy's and read-only: float64 for float64, float32 for the others, with numbers
that its precision can hold. They need not be contiguous, but have no negative strides. One that
writes into them all the same is refused. What it returns may be any array that `np.asarray` takes,
of that very type for float64 and float32, of any float type for the others; it is copied at once.

Packages announce implementations in the entry-point group `vitspec.implementations`
(`vitspec.testing.finding`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from vitspec.testing.adapter_errors import AdapterError as AdapterError
from vitspec.testing.adapter_errors import guarded, shown
from vitspec.testing.arrays import given, is_float, is_real, to_numpy, written_into
from vitspec.testing.description import Description, describe
from vitspec.testing.families import FAMILIES, Config, Family
from vitspec.testing.layouts import laid_out
from vitspec.testing.precision import PRECISIONS, Precision
from vitspec.testing.reference import Flat, Point
from vitspec.typing import Array


class Implementation(Protocol):
    """The object that a user writes; nothing needs to inherit from this."""

    name: str
    version: str
    spec: str
    dtype: str | tuple[str, ...]

    def forward(self, config: Config, params: Mapping[str, Array], images: Array) -> Any:
        """Logits (B, K) of images (B, C, H, W)."""

    def vjp(
        self, config: Config, params: Mapping[str, Array], images: Array, cotangent: Array
    ) -> tuple[Mapping[str, Array], Array]:
        """The cotangents of the parameters by flat name, summed over the batch, and the images'."""


class Subject:
    """An implementation in one precision: the kit calls its methods here alone.

    Its logits and gradients are NumPy's, of the names, shapes and types that they must have;
    whatever it raises is an `AdapterError` that says where. It is given copies, and what it returns
    is copied at once.

    Args:
        implementation: the user's object.
        dtype: the precision to check in; None for the implementation's default.

    Attributes:
        description: what it says of itself.
        name, version, spec: of the description.
        precision: what it is checked in.
        has_vjp: whether it has gradients.
        repeats: whether it says that it repeats exactly, or to rounding.

    Raises:
        AdapterError: it is no implementation, or does not compute in that precision.
    """

    def __init__(self, implementation: Any, dtype: str | None = None) -> None:
        self._implementation = implementation
        self._take(describe(implementation), dtype)

    def _take(self, description: Description, dtype: str | None) -> None:
        """Be the subject of this description."""
        self.description = description
        self.name, self.version, self.spec = description.name, description.version, description.spec
        known = description.dtypes
        if dtype is not None and dtype not in known:
            raise AdapterError(f"{self.name} computes in {', '.join(known)}, not in {dtype}")
        self.precision: Precision = PRECISIONS[dtype or known[0]]
        self.has_vjp = "vjp" in description.methods
        self.repeats = description.repeats

    @property
    def family(self) -> Family:
        """The family of the function that it claims to be.

        Raises:
            AdapterError: it claims to be one that vitspec has no specification of.
        """
        if self.spec not in FAMILIES:
            raise AdapterError(
                f"{self.name} is of a function that vitspec has no specification of; "
                "only its identities can be checked: --identities"
            )
        return FAMILIES[self.spec]

    @property
    def finer_dtypes(self) -> list[str]:
        """Those of its precisions that are finer than this one."""
        return [d for d in self.description.dtypes if PRECISIONS[d].u < self.precision.u]

    # ---- what it can do ------------------------------------------------------------------------

    def why_unsupported(self, config: Config) -> str | None:
        """Why the implementation cannot do this configuration; None if it can."""
        return self.reason("supports", config)

    @property
    def takes_other_sizes(self) -> bool:
        """Whether it says that it takes images of another size than its configuration's."""
        return self.description.takes_other_sizes

    def why_size_unsupported(self, config: Config, size: tuple[int, int]) -> str | None:
        """Why it takes no images (H, W) of another size than the configuration's."""
        if not self.takes_other_sizes:
            return "it does not say that it interpolates positions (supports_size)"
        return self.reason("supports_size", config, *size)

    def reason(self, method: str, config: Config, *size: int) -> str | None:
        """What a method says that returns None or why not."""
        if method not in self.description.methods:
            return None
        with self.guarded(method, config):
            said = getattr(self._implementation, method)(copy.copy(config), *size)
        if said is None:
            return None
        if isinstance(said, str):
            return str.__str__(said)
        raise AdapterError(f"{self.name}.{method} must return None or why not, got {shown(said)}")

    def closest(self, config: Config) -> Config:
        """The nearest configuration that the implementation says it can do; else this one."""
        if "closest" not in self.description.methods:
            return config
        with self.guarded("closest", config):
            found = self._implementation.closest(copy.copy(config))
        if type(found) is not type(config):
            raise AdapterError(
                f"{self.name}.closest must return a {type(config).__name__}, got {shown(found)}"
            )
        if not config.violations() and (broken := found.violations()):
            raise AdapterError(
                f"{self.name}.closest returned an ill-formed configuration: {'; '.join(broken)}"
            )
        return found

    def without_vjp(self) -> Subject:
        """The same implementation, taken to have a forward only."""
        other = copy.copy(self)
        other.has_vjp = False
        return other

    def in_precision(self, dtype: str) -> Subject:
        """The same implementation in another of its precisions."""
        other = copy.copy(self)
        other.precision = PRECISIONS[dtype]
        return other

    # ---- what it computes ----------------------------------------------------------------------

    def forward(self, point: Point) -> Flat:
        """The logits, and the intermediate values that the implementation exposes.

        Raises:
            AdapterError: it raised, wrote into what it was given, or returned another shape or
                type.
        """

        def call(config: Any, params: Flat, images: Array, cotangent: Array) -> Flat:
            returned = self._implementation.forward(config, params, images)
            return _flat(returned if isinstance(returned, Mapping) else {"logits": returned})

        found = self._called("forward", point, call)
        taps = {name: found.pop(name) for name in list(found) if name != "logits"}
        if strange := [f"{n}: {x.dtype}" for n, x in taps.items() if not is_real(x.dtype)]:
            raise AdapterError(f"{self.name}.forward gave no real numbers: {', '.join(strange)}")
        if self.spec in FAMILIES and (taken := taps.keys() & {"image", *point.params}):
            raise AdapterError(
                f"{self.name}.forward returned {', '.join(sorted(taken)[:3])}, names of gradients; "
                "call an intermediate value something else"
            )
        return self._checked("forward", found, {"logits": point.cotangent.shape}, point) | taps

    def vjp(self, point: Point) -> Flat:
        """The cotangents of the images (`image`) and of every parameter.

        Raises:
            AdapterError: it raised, wrote into what it was given, or returned other names, shapes
                or types.
        """

        def call(config: Any, params: Flat, images: Array, cotangent: Array) -> Flat:
            d_params, d_images = self._implementation.vjp(config, params, images, cotangent)
            return _flat(d_params) | {"image": to_numpy(d_images)}

        found = self._called("vjp", point, call)
        expected = {name: array.shape for name, array in point.params.items()}
        return self._checked("vjp", found, {"image": point.images.shape} | expected, point)

    def evaluate(self, point: Point) -> Flat:
        """The logits, the taps, and the cotangents if it has any."""
        return self.forward(point) | (self.vjp(point) if self.has_vjp else {})

    def layer(self, name: str, arguments: Flat, settings: Mapping[str, Any]) -> Flat:
        """What a single layer that it offers returns, as it is."""
        with self.guarded(f"layers[{name!r}]"):
            own = {argument: given(array) for argument, array in arguments.items()}
            return _flat(dict(self._implementation.layers[name](**own, **settings)))

    def example(self, rng: np.random.Generator) -> tuple[Any, Flat, Array, tuple[int, ...]]:
        """A point of an implementation of another function: its own `example`.

        Returns:
            The configuration, parameters and images rounded to the precision, and the shape of the
            logits there.
        """
        with self.guarded("example"):
            config, params, images = self._implementation.example(rng)
            exact = {n: x.astype(np.float64) for n, x in _flat(params).items()}
            images = to_numpy(images).astype(np.float64)
        point = Point(self.spec, config, exact, images, np.zeros(())).rounded(self.precision)

        def call(config: Any, params: Flat, images: Array, cotangent: Array) -> Flat:
            output = self._implementation.forward(config, params, images)
            return {"logits": to_numpy(output["logits"] if isinstance(output, Mapping) else output)}

        logits = self._called("forward", point, call)["logits"]
        return config, point.params, point.images, logits.shape

    @property
    def naming(self) -> Any:
        """Its own `Naming` of its parameters, or None."""
        with self.guarded("naming"):
            return getattr(self._implementation, "naming", None)

    def guarded(self, method: str, where: Any = None) -> guarded:
        """Turn whatever the implementation raises into an `AdapterError` that says where."""
        return guarded(f"{self.name}.{method}", where)

    def _called(self, method: str, point: Point, call: Callable[..., Flat]) -> Flat:
        """What a call with copies of the point's arrays returns, copied.

        Raises:
            AdapterError: it raised, or wrote into the arrays.
        """
        own = {"images": point.images, "cotangent": point.cotangent}
        params = {n: laid_out(given(array), point.layout) for n, array in point.params.items()}
        others = {n: laid_out(given(array), point.layout) for n, array in own.items()}
        with self.guarded(method, point):
            config = copy.copy(point.config) if self.spec in FAMILIES else point.config
            found = call(config, dict(params), others["images"], others["cotangent"])
        if written := written_into(own, others) + written_into(point.params, params):
            more = f" and {len(written) - 1} more" if len(written) > 1 else ""
            raise AdapterError(
                f"{self.name}.{method} writes into its argument {written[0]}{more}; it must leave "
                "what it is given as it is, and compute on a copy (in PyTorch torch.tensor copies, "
                "torch.from_numpy does not)"
            )
        return found

    def _checked(
        self, method: str, found: Flat, expected: Mapping[str, tuple[int, ...]], point: Point
    ) -> Flat:
        """What was found, in the order expected and in a type that NumPy can compute with.

        Raises:
            AdapterError: names, shapes or types differ; at most eight are listed.
        """
        precision = self.precision
        # A function without a specification is compared only with itself: any float type will do.
        exactly = precision.own_type and self.spec in FAMILIES
        kind = precision.carrier if exactly else "float"
        problems = [f"{n}: missing, expected shape {expected[n]}" for n in expected.keys() - found]
        problems += [f"{name}: unexpected name" for name in found.keys() - expected]
        for name in expected.keys() & found.keys():
            got = found[name]
            right = got.dtype == precision.carrier if exactly else is_float(got.dtype)
            if got.shape != tuple(expected[name]) or not right:
                problems.append(
                    f"{name}: expected {kind} {tuple(expected[name])}, got {got.dtype} {got.shape}"
                )
        if problems:
            shown = sorted(problems)[:8] + (["..."] if len(problems) > 8 else [])
            raise AdapterError(f"{self.name}.{method} returned on {point}: " + "; ".join(shown))
        if precision.own_type:
            return {name: found[name] for name in expected}
        return {name: found[name].astype(np.float64) for name in expected}


def _flat(returned: Mapping[Any, Any]) -> Flat:
    """Arrays by name, each NumPy's own and nobody else's: nothing below computes with others."""
    return {str(name): to_numpy(value) for name, value in returned.items()}
