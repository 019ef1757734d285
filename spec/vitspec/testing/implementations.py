"""Implementations under test: what they must offer, how they are found, how they are called.

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
  parameters' cotangents summed over the batch. Without it only the forward is checked;
- `supports(config)`, if it cannot do all: None, or why not;
- `closest(config)`, likewise: the nearest configuration that it can do. What the kit draws is then
  of such configurations, where it would be passed over;
- `supports_size(config, height, width)`, if a "vision-transformer" takes images of another size
  than its configuration's, with interpolated positions: None, or why not those. Without it only
  images of the configuration's size are given.

`params` is a flat dictionary, as `ViTSpec.to_flat()` makes it. All arrays that an implementation is
given are NumPy's and read-only: float64 for float64, float32 for the others, with numbers that its
precision can hold. What it returns may be any array that `np.asarray` takes, of that very type for
float64 and float32, of any float type for the others.

Packages announce implementations in the entry-point group `vitspec.implementations`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vitspec.testing.kinds import KINDS, Config
from vitspec.testing.precision import PRECISIONS, Precision
from vitspec.testing.reference import Flat, Point
from vitspec.typing import Array

GROUP = "vitspec.implementations"
PLANTED = "planted:"


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


# ---- finding -----------------------------------------------------------------------------------


def names() -> list[str]:
    """The names of the installed implementations."""
    return sorted(point.name for point in entry_points(group=GROUP))


def find(target: str) -> Any:
    """The implementation that `target` names, with what it must have.

    Args:
        target: an installed name; a peer (`vitspec peers` lists them); "module:attribute"; a file,
            "path/to/adapter.py" or "path/to/adapter.py:attribute"; or "planted:NAME[,NAME...]",
            the specification with mistakes of the catalogue. An attribute that is a class or a
            function without parameters is called. A file needs no attribute if it holds one
            implementation.

    Raises:
        AdapterError: there is none, it does not load, or it lacks something.
    """
    if target.startswith(PLANTED):
        return planted_implementation(target.removeprefix(PLANTED))
    points = entry_points(group=GROUP, name=target)
    try:
        if points:
            found = next(iter(points)).load()
        elif ".py" in target:
            found = _from_file(target)
        elif ":" in target:
            module_name, _, attribute = target.partition(":")
            if "" not in sys.path:
                sys.path.insert(0, "")  # as `python -m` does: the user's own module is here
            found = _attribute(importlib.import_module(module_name), attribute, target)
        else:
            found = _peer(target)
        if isinstance(found, type) or (callable(found) and not hasattr(found, "forward")):
            found = found()
    except AdapterError:
        raise
    except (Exception, SystemExit) as error:
        raise AdapterError(
            f"the implementation {target!r} does not load: {type(error).__name__}: {error}; "
            "is all that it needs installed? For vitfast: python -m pip install 'vitspec[fast]'"
        ) from error
    if problems := list(interface_problems(found)):
        raise AdapterError(f"the implementation {target!r}: " + "; ".join(problems))
    return found


def planted_implementation(mistakes: str) -> Any:
    """The specification with mistakes of the catalogue, for a first look at the kit.

    A mistake in the forward has the derivatives that automatic differentiation would give it.
    """
    from vitspec.testing.catalogue import deviation, deviations_of
    from vitspec.testing.reference import SpecImplementation

    try:
        named = [deviation(name.strip()) for name in mistakes.split(",")]
    except KeyError as error:
        raise AdapterError(str(error.args[0])) from error
    for spec in KINDS:
        shown = {d.name: d for d in deviations_of(spec, other_sizes=True)}
        if all(d.name in shown and spec in d.specs for d in named):
            forms = [shown[d.name].differentiated() or shown[d.name] for d in named]
            name = f"{PLANTED}{','.join(d.name for d in named)}"
            return SpecImplementation(spec, mistakes=forms, name=name)
    raise AdapterError(
        f"no model shows {mistakes}: the check has no mask and no decoder, and a model has one"
        " pooling"
    )


def _peer(target: str) -> Any:
    # Here, because the adapters are made with this module.
    from vitspec.testing.adapters.peers.registry import PEERS, MissingPeerError, load_peer

    if target not in PEERS:
        raise AdapterError(
            f"no implementation is named {target!r}; installed: {', '.join(names()) or 'none'};"
            " `vitspec peers` lists other libraries'; or give module:attribute, or a file"
        )
    try:
        return load_peer(target)
    except MissingPeerError as error:
        raise AdapterError(str(error)) from error


def _from_file(target: str) -> Any:
    stem, dot_py, attribute = target.partition(".py")
    path = Path(stem + dot_py)
    if not path.is_file():
        raise AdapterError(f"there is no file {path}; give path/to/adapter.py:attribute")
    spec = importlib.util.spec_from_file_location(f"vitspec_adapter_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise AdapterError(f"{path} is no Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.resolve().parent))  # as running the file would
    spec.loader.exec_module(module)
    if attribute.startswith(":") and len(attribute) > 1:
        return _attribute(module, attribute[1:], target)
    found = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (not isinstance(value, type) or value.__module__ == module.__name__)
        and hasattr(value, "forward")
        and hasattr(value, "spec")
    }
    objects = {n: v for n, v in found.items() if not isinstance(v, type)} or found
    if len(objects) != 1:
        raise AdapterError(
            f"{path} holds {len(objects)} implementations ({', '.join(objects) or 'none'}); "
            f"name one: {path}:ATTRIBUTE"
        )
    return next(iter(objects.values()))


def _attribute(module: Any, attribute: str, target: str) -> Any:
    for name in attribute.split("."):
        if not hasattr(module, name):
            raise AdapterError(f"{target!r}: there is no attribute {attribute!r}")
        module = getattr(module, name)
    return module


def interface_problems(implementation: Any) -> Iterator[str]:
    """What is missing of the attributes and methods that an implementation must have."""
    known = (*KINDS, "other")
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
    for method in ("vjp", "supports"):
        if not callable(getattr(implementation, method, len)):
            yield f"{method}: expected a method, or none"
    for method in ("closest", "supports_size"):
        if not callable(getattr(implementation, method, None) or len):
            yield f"{method}: expected a method, or none"


def dtypes_of(implementation: Any) -> tuple[Any, ...]:
    """The precisions that it names, the default first."""
    dtype = getattr(implementation, "dtype", None)
    return dtype if isinstance(dtype, tuple) else (dtype,)


def precision_of(implementation: Any, dtype: str | None = None) -> Precision:
    """The precision to check in: `dtype`, or the implementation's default.

    Raises:
        AdapterError: it does not compute in that.
    """
    known = dtypes_of(implementation)
    if dtype is not None and dtype not in known:
        raise AdapterError(
            f"{implementation.name} computes in {', '.join(map(str, known))}, not in {dtype}"
        )
    return PRECISIONS[dtype or known[0]]


def has_vjp(implementation: Any) -> bool:
    """Whether it has gradients."""
    return callable(getattr(implementation, "vjp", None))


def why_unsupported(implementation: Any, config: Config) -> str | None:
    """Why the implementation cannot do this configuration; None if it can."""
    supports = getattr(implementation, "supports", None)
    return _reason(implementation, "supports", config) if supports else None


def takes_other_sizes(implementation: Any) -> bool:
    """Whether it says that it takes images of another size than its configuration's."""
    kind = KINDS.get(implementation.spec)
    says_so = getattr(implementation, "supports_size", None) is not None
    return kind is not None and kind.interpolates and says_so


def why_size_unsupported(implementation: Any, config: Config, size: tuple[int, int]) -> str | None:
    """Why the implementation takes no images (H, W) of another size than the configuration's."""
    if not takes_other_sizes(implementation):
        return "it does not say that it interpolates positions (supports_size)"
    return _reason(implementation, "supports_size", config, *size)


def _reason(implementation: Any, method: str, config: Config, *size: int) -> str | None:
    """What a method says that returns None or why not."""
    with guarded(implementation, method, config):
        reason = getattr(implementation, method)(config, *size)
    if reason is None or isinstance(reason, str):
        return reason
    raise AdapterError(
        f"{implementation.name}.{method} must return None or why not, got {reason!r}"
    )


def closest(implementation: Any, config: Config) -> Config:
    """The nearest configuration that the implementation says it can do; else this one."""
    method = getattr(implementation, "closest", None)
    if method is None:
        return config
    with guarded(implementation, "closest", config):
        found = method(config)
    if not isinstance(found, type(config)):
        raise AdapterError(
            f"{implementation.name}.closest must return a {type(config).__name__}, got {found!r}"
        )
    return found


# ---- calling -----------------------------------------------------------------------------------


class guarded:  # noqa: N801 - a context manager, used like a function
    """Turn whatever an implementation raises into an `AdapterError` that says where."""

    def __init__(self, implementation: Any, method: str, where: Any) -> None:
        self.where = f"{implementation.name}.{method}", where

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        """Let only `KeyboardInterrupt` and our own errors pass as they are."""
        if isinstance(error, (Exception, SystemExit)) and not isinstance(error, AdapterError):
            method, where = self.where
            text = " ".join(str(error).split())
            text = text if len(text) <= 300 else text[:297] + "..."
            raise AdapterError(
                f"{method} raised {type(error).__name__} on {where}: {text}"
            ) from error


def forward(implementation: Any, point: Point, precision: Precision) -> Flat:
    """The logits, and the intermediate values that the implementation exposes.

    Raises:
        AdapterError: it raised, or returned another shape or type.
    """
    where = describe(point)
    with guarded(implementation, "forward", where):
        returned = implementation.forward(point.config, point.params, point.images)
        # Other frameworks' arrays become NumPy's here: nothing below computes with theirs.
        if isinstance(returned, Mapping):
            found = {str(name): to_numpy(value) for name, value in returned.items()}
        else:
            found = {"logits": to_numpy(returned)}
    expected = {"logits": (len(point.images), point.config.num_classes)}
    taps = {name: found.pop(name) for name in found.keys() - {"logits"}}
    _require(implementation, "forward", found, expected, precision, where)
    return {"logits": _widened(found["logits"], precision)} | taps


def vjp(implementation: Any, point: Point, precision: Precision) -> Flat:
    """The cotangents of the images (`image`) and of every parameter.

    Raises:
        AdapterError: it raised, or returned other names, shapes or types.
    """
    where = describe(point)
    with guarded(implementation, "vjp", where):
        d_params, d_images = implementation.vjp(
            point.config, point.params, point.images, point.cotangent
        )
        found = {str(name): to_numpy(value) for name, value in d_params.items()}
        found["image"] = to_numpy(d_images)
    expected = {"image": point.images.shape}
    expected |= {name: array.shape for name, array in point.params.items()}
    _require(implementation, "vjp", found, expected, precision, where)
    return {name: _widened(found[name], precision) for name in expected}


def to_numpy(value: Any) -> Array:
    """Any framework's array as NumPy's; one that still records gradients is detached first."""
    if hasattr(value, "detach"):
        value = value.detach()
    if hasattr(value, "cpu"):
        value = value.cpu()
    if "bfloat16" in str(getattr(value, "dtype", "")) and hasattr(value, "float"):
        value = value.float()  # PyTorch's bfloat16 has no NumPy type
    return np.asarray(value)


def describe(point: Point) -> str:
    """A point in words."""
    return f"{point.config!r} with images of shape {point.images.shape}"


def _require(
    implementation: Any,
    method: str,
    found: Flat,
    expected: Mapping[str, tuple[int, ...]],
    precision: Precision,
    where: str,
) -> None:
    problems = [f"{name}: missing, expected shape {expected[name]}"
                for name in expected.keys() - found]  # fmt: skip
    problems += [f"{name}: unexpected name" for name in found.keys() - expected]
    for name in expected.keys() & found.keys():
        got = found[name]
        kind = precision.carrier if precision.own_type else "float"
        right = got.dtype == precision.carrier if precision.own_type else _is_float(got.dtype)
        if got.shape != tuple(expected[name]) or not right:
            problems.append(
                f"{name}: expected {kind} {tuple(expected[name])}, got {got.dtype} {got.shape}"
            )
    if problems:
        shown = sorted(problems)[:8] + (["..."] if len(problems) > 8 else [])
        raise AdapterError(
            f"{implementation.name}.{method} returned on {where}: " + "; ".join(shown)
        )


def _is_float(dtype: Any) -> bool:
    return np.issubdtype(dtype, np.floating) or "float" in str(dtype)


def _widened(value: Array, precision: Precision) -> Array:
    """The array in a type that NumPy can compute with."""
    return value if precision.own_type else value.astype(np.float64)
