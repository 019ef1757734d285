"""Implementations under test: what they must offer, and how they are found.

An implementation is any object with

- `name`, `version`: strings;
- `spec`: which function it claims to be, "vit" (`ViTSpec`) or "vit-cls" (`ViTClsSpec`);
- `dtype`: the precision it computes in, "float32" or "float64";
- `forward(config, params, images)`: images (B, C, H, W) -> logits (B, K);
- `vjp(config, params, images, cotangent)`: cotangent (B, K) -> ({name: d_param}, d_images), the
  parameters' cotangents summed over the batch;
- `supports(config)`, optional: None, or why it cannot compute this configuration.

`params` is a flat dictionary, as `ViTSpec.to_flat()` makes it; all arrays are NumPy's, of `dtype`.

Packages announce implementations in the entry-point group `vitspec.implementations`.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    except ImportError as error:
        raise AdapterError(
            f"the implementation {name!r} does not load: {error}; "
            "is its extra installed? For vitfast: python -m pip install 'vitspec[fast]'"
        ) from error
    if implementation.spec not in MODELS:
        raise AdapterError(
            f"the implementation {name!r} claims to be {implementation.spec!r}; "
            f"expected one of {', '.join(MODELS)}"
        )
    return implementation


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
    except Exception as error:
        raise AdapterError(
            f"{implementation.name} raised {type(error).__name__} on {config!r} with an image of "
            f"shape {image.shape}: {error}"
        ) from error
    found = {"logits": logits, "image": d_images, **d_params}
    expected = {"logits": (1, config.num_classes), "image": (1, *image.shape)}
    expected |= {name: array.shape for name, array in params.items()}
    problems = [f"{name}: missing" for name in expected.keys() - found]
    problems += [f"{name}: unexpected" for name in found.keys() - expected]
    for name in expected.keys() & found.keys():
        got = np.asarray(found[name])
        if got.shape != tuple(expected[name]) or got.dtype != image.dtype:
            problems.append(
                f"{name}: expected {image.dtype} {tuple(expected[name])}, "
                f"got {got.dtype} {got.shape}"
            )
    if problems:
        raise AdapterError(f"{implementation.name} on {config!r}: " + "; ".join(sorted(problems)))
    single = {"logits": found["logits"][0], "image": found["image"][0]}
    return single | {name: np.asarray(found[name]) for name in params}
