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
given are NumPy's and read-only: float64 for float64, float32 for the others, with numbers that its
precision can hold. They need not be contiguous, but have no negative strides. What it returns may
be any array that `np.asarray` takes, of that very type for float64 and float32, of any float type
for the others.

Packages announce implementations in the entry-point group `vitspec.implementations`
(`vitspec.testing.finding`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import Any, Protocol

import numpy as np

from vitspec.testing.families import FAMILIES, Config, Family
from vitspec.testing.layouts import laid_out
from vitspec.testing.precision import PRECISIONS, Precision
from vitspec.testing.reference import Flat, Point
from vitspec.typing import Array

EXACTLY, TO_ROUNDING = "exactly", "to rounding"
"""How an implementation may say that it repeats."""


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


class AdapterError(RuntimeError):
    """The implementation did not do what an implementation must; it was not graded."""


def interface_problems(implementation: Any) -> Iterator[str]:
    """What is missing of the attributes and methods that an implementation must have."""
    known = (*FAMILIES, "other")
    if (spec := getattr(implementation, "spec", None)) not in known:
        yield f"spec: expected one of {', '.join(known)}, got {spec!r}"
    dtypes = dtypes_of(implementation)
    if not dtypes or not all(isinstance(d, str) and d in PRECISIONS for d in dtypes):
        got = getattr(implementation, "dtype", None)
        yield f"dtype: expected one of {', '.join(PRECISIONS)}, got {got!r}"
    elif len(dtypes) > 1 and not all(PRECISIONS[d].own_type for d in dtypes):
        yield f"dtype: only float64 and float32 can share an object, got {dtypes!r}"
    for attribute in ("name", "version"):
        if not isinstance(value := getattr(implementation, attribute, None), str):
            yield f"{attribute}: expected a string, got {value!r}"
    if not callable(getattr(implementation, "forward", None)):
        yield "forward: expected a method"
    if (repeats := getattr(implementation, "repeats", EXACTLY)) not in (EXACTLY, TO_ROUNDING):
        yield f"repeats: expected {EXACTLY!r} or {TO_ROUNDING!r}, got {repeats!r}"
    for method in ("vjp", "supports", "closest", "supports_size"):
        value = getattr(implementation, method, None)
        if value is not None and not callable(value):
            yield f"{method}: expected a method, or none"


def dtypes_of(implementation: Any) -> tuple[Any, ...]:
    """The precisions that it names, the default first."""
    dtype = getattr(implementation, "dtype", None)
    return dtype if isinstance(dtype, tuple) else (dtype,)


def takes_other_sizes(implementation: Any) -> bool:
    """Whether it says that it takes images of another size than its configuration's."""
    family = FAMILIES.get(getattr(implementation, "spec", ""))
    says_so = getattr(implementation, "supports_size", None) is not None
    return family is not None and family.interpolates and says_so


class Subject:
    """An implementation in one precision: the kit calls its `forward` and `vjp` here alone.

    Its logits and gradients are NumPy's, of the names, shapes and types that they must have;
    whatever it raises is an `AdapterError` that says where.

    Args:
        implementation: the user's object.
        dtype: the precision to check in; None for the implementation's default.

    Attributes:
        implementation, name, version, spec: the object, and what it says of itself.
        precision: what it is checked in.
        has_vjp: whether it has gradients.
        repeats: whether it says that it repeats exactly, or to rounding.

    Raises:
        AdapterError: it is no implementation, or does not compute in that precision.
    """

    def __init__(self, implementation: Any, dtype: str | None = None) -> None:
        if problems := list(interface_problems(implementation)):
            raise AdapterError("; ".join(problems))
        self.implementation = implementation
        self.name, self.version = implementation.name, implementation.version
        self.spec = implementation.spec
        known = dtypes_of(implementation)
        if dtype is not None and dtype not in known:
            raise AdapterError(f"{self.name} computes in {', '.join(known)}, not in {dtype}")
        self.precision: Precision = PRECISIONS[dtype or known[0]]
        self.has_vjp = callable(getattr(implementation, "vjp", None))
        self.repeats: str = getattr(implementation, "repeats", EXACTLY)

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
        known = dtypes_of(self.implementation)
        return [d for d in known if PRECISIONS[d].u < self.precision.u]

    # ---- what it can do ------------------------------------------------------------------------

    def why_unsupported(self, config: Config) -> str | None:
        """Why the implementation cannot do this configuration; None if it can."""
        return self._reason("supports", config)

    @property
    def takes_other_sizes(self) -> bool:
        """Whether it says that it takes images of another size than its configuration's."""
        return takes_other_sizes(self.implementation)

    def why_size_unsupported(self, config: Config, size: tuple[int, int]) -> str | None:
        """Why it takes no images (H, W) of another size than the configuration's."""
        if not self.takes_other_sizes:
            return "it does not say that it interpolates positions (supports_size)"
        return self._reason("supports_size", config, *size)

    def _reason(self, method: str, config: Config, *size: int) -> str | None:
        """What a method says that returns None or why not."""
        if getattr(self.implementation, method, None) is None:
            return None
        with self.guarded(method, config):
            reason = getattr(self.implementation, method)(config, *size)
        if reason is None or isinstance(reason, str):
            return reason
        raise AdapterError(f"{self.name}.{method} must return None or why not, got {reason!r}")

    def closest(self, config: Config) -> Config:
        """The nearest configuration that the implementation says it can do; else this one."""
        method = getattr(self.implementation, "closest", None)
        if method is None:
            return config
        with self.guarded("closest", config):
            found = method(config)
        if not isinstance(found, type(config)):
            raise AdapterError(
                f"{self.name}.closest must return a {type(config).__name__}, got {found!r}"
            )
        if not config.violations() and (broken := found.violations()):
            raise AdapterError(
                f"{self.name}.closest returned an ill-formed configuration: {'; '.join(broken)}"
            )
        return found

    def without_vjp(self) -> Subject:
        """The same implementation, taken to have a forward only."""
        other = copy(self)
        other.has_vjp = False
        return other

    # ---- what it computes ----------------------------------------------------------------------

    def forward(self, point: Point) -> Flat:
        """The logits, and the intermediate values that the implementation exposes.

        Raises:
            AdapterError: it raised, or returned another shape or type.
        """
        with self.guarded("forward", point):
            params, images, _ = _arguments(point)
            returned = self.implementation.forward(point.config, params, images)
            # Other frameworks' arrays become NumPy's here: nothing below computes with theirs.
            if isinstance(returned, Mapping):
                found = {str(name): to_numpy(value) for name, value in returned.items()}
            else:
                found = {"logits": to_numpy(returned)}
        taps = {name: found.pop(name) for name in found.keys() - {"logits"}}
        return self._checked("forward", found, {"logits": point.cotangent.shape}, point) | taps

    def vjp(self, point: Point) -> Flat:
        """The cotangents of the images (`image`) and of every parameter.

        Raises:
            AdapterError: it raised, or returned other names, shapes or types.
        """
        with self.guarded("vjp", point):
            d_params, d_images = self.implementation.vjp(point.config, *_arguments(point))
            found = {str(name): to_numpy(value) for name, value in d_params.items()}
            found["image"] = to_numpy(d_images)
        expected = {name: array.shape for name, array in point.params.items()}
        return self._checked("vjp", found, {"image": point.images.shape} | expected, point)

    def evaluate(self, point: Point) -> Flat:
        """The logits, the taps, and the cotangents if it has any."""
        return self.forward(point) | (self.vjp(point) if self.has_vjp else {})

    @contextmanager
    def guarded(self, method: str, where: Any) -> Iterator[None]:
        """Turn whatever the implementation raises into an `AdapterError` that says where.

        Only `AdapterError` and `KeyboardInterrupt` pass unchanged.
        """
        try:
            yield
        except AdapterError:
            raise
        except (Exception, SystemExit) as error:
            text = " ".join(str(error).split())
            raise AdapterError(
                f"{self.name}.{method} raised {type(error).__name__} on {where}: {text}"
            ) from error

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
            right = got.dtype == precision.carrier if exactly else _is_float(got.dtype)
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


def _arguments(point: Point) -> tuple[Flat, Array, Array]:
    """The parameters, the images and the cotangent, as the point says that they lie in memory."""
    params = {name: laid_out(array, point.layout) for name, array in point.params.items()}
    return params, laid_out(point.images, point.layout), laid_out(point.cotangent, point.layout)


def to_numpy(value: Any) -> Array:
    """Any framework's array as NumPy's; one that still records gradients is detached first."""
    if hasattr(value, "detach"):
        value = value.detach()
    if hasattr(value, "cpu"):
        value = value.cpu()
    if "bfloat16" in str(getattr(value, "dtype", "")) and hasattr(value, "float"):
        value = value.float()  # PyTorch's bfloat16 has no NumPy type
    return np.asarray(value)


def _is_float(dtype: Any) -> bool:
    return np.issubdtype(dtype, np.floating) or "float" in str(dtype)
