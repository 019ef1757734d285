"""Implementations under test: what they must offer, and how they are found.

An implementation is any object with

- `name`, `version`: strings;
- `spec`: which function it claims to be, "vit" (`ViTSpec`) or "vit-cls" (`ViTClsSpec`);
- `dtype`: the precision it computes in, "float32" or "float64";
- `forward(config, params, images)`: images (B, C, H, W) -> logits (B, K);
- `vjp(config, params, images, cotangent)`: cotangent (B, K) -> ({name: d_param}, d_images), the
  parameters' cotangents summed over the batch.
`params` is a flat dictionary, as `ViTSpec.to_flat()` makes it. All arrays that it is given are
NumPy's, of `dtype`, and read-only; what it returns may be any array that `np.asarray` takes.

Packages announce implementations in the entry-point group `vitspec.implementations`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any, Protocol

import numpy as np

from vitspec.config import ViTConfig
from vitspec.testing.cases import MODELS
from vitspec.typing import Array

GROUP = "vitspec.implementations"


class Implementation(Protocol):
    """The object that a user writes; nothing needs to inherit from this."""

    name: str
    version: str
    spec: str
    dtype: str

    def forward(self, config: ViTConfig, params: Mapping[str, Array], images: Array) -> Array:
        """Logits (B, K) of images (B, C, H, W)."""

    def vjp(
        self, config: ViTConfig, params: Mapping[str, Array], images: Array, cotangent: Array
    ) -> tuple[Mapping[str, Array], Array]:
        """The cotangents of the parameters by flat name, summed over the batch, and the images'."""


class AdapterError(RuntimeError):
    """The implementation did not do what an implementation must; it was not graded."""


def names() -> list[str]:
    """The names of the installed implementations."""
    return sorted(point.name for point in entry_points(group=GROUP))


def load(name: str) -> Any:
    """The installed implementation of this name.

    Raises:
        AdapterError: there is none, or it does not load.
    """
    points = entry_points(group=GROUP, name=name)
    if not points:
        raise AdapterError(
            f"no implementation is named {name!r}; installed: {', '.join(names()) or 'none'}"
        )
    try:
        implementation = next(iter(points)).load()
    except (Exception, SystemExit) as error:
        raise AdapterError(
            f"the implementation {name!r} does not load: {type(error).__name__}: {error}; "
            "is its extra installed? For vitfast: python -m pip install 'vitspec[fast]'"
        ) from error
    if problems := list(_interface_problems(implementation)):
        raise AdapterError(f"the implementation {name!r}: " + "; ".join(problems))
    return implementation


def _interface_problems(implementation: Any) -> Iterator[str]:
    """What is missing of the attributes and methods that an implementation must have."""
    choices = {"spec": tuple(MODELS), "dtype": ("float32", "float64")}
    for attribute, known in choices.items():
        if (value := getattr(implementation, attribute, None)) not in known:
            yield f"{attribute}: expected one of {', '.join(known)}, got {value!r}"
    for attribute in ("name", "version"):
        if not isinstance(value := getattr(implementation, attribute, None), str):
            yield f"{attribute}: expected a string, got {value!r}"
    for method in ("forward", "vjp"):
        if not callable(getattr(implementation, method, None)):
            yield f"{method}: expected a method"


def evaluate(
    implementation: Any,
    config: ViTConfig,
    params: Mapping[str, Array],
    image: Array,
    d_logits: Array,
) -> dict[str, Array]:
    """Logits, the image's cotangent (`image`) and every parameter's, of one image.

    Raises:
        AdapterError: the implementation raised, or returned other names, shapes or dtypes.
    """
    try:
        logits = implementation.forward(config, params, image[None])
        d_params, d_images = implementation.vjp(config, params, image[None], d_logits[None])
        # Other frameworks' arrays become NumPy's here, so that nothing below computes with theirs.
        found = {"logits": np.asarray(logits), "image": np.asarray(d_images)}
        found |= {name: np.asarray(value) for name, value in d_params.items()}
    except (Exception, SystemExit) as error:
        raise AdapterError(
            f"{implementation.name} raised {type(error).__name__} on {config!r} with an image of "
            f"shape {image.shape}: {error}"
        ) from error
    expected = {"logits": (1, config.num_classes), "image": (1, *image.shape)}
    expected |= {name: array.shape for name, array in params.items()}
    problems = [f"{name}: missing" for name in expected.keys() - found]
    problems += [f"{name}: unexpected" for name in found.keys() - expected]
    for name in expected.keys() & found.keys():
        got = found[name]
        if got.shape != tuple(expected[name]) or got.dtype != image.dtype:
            problems.append(
                f"{name}: expected {image.dtype} {tuple(expected[name])}, "
                f"got {got.dtype} {got.shape}"
            )
    if problems:
        raise AdapterError(f"{implementation.name} on {config!r}: " + "; ".join(sorted(problems)))
    single = {"logits": found["logits"][0], "image": found["image"][0]}
    return single | {name: found[name] for name in params}
