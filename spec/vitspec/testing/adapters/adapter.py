"""What the implementations made of a PyTorch module, a JAX function and an NNX module share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Required, TypedDict

from vitspec.testing.adapters.maps import PRACTICAL_NAMES, SAME_NAMES
from vitspec.testing.adapters.name_maps import NameMap
from vitspec.testing.description import EXACTLY
from vitspec.testing.families import FAMILIES, MODELS
from vitspec.testing.precision import PRECISIONS
from vitspec.typing import Array

Supports = Callable[[Any], str | None]
Closest = Callable[[Any], Any]
SupportsSize = Callable[[Any, int, int], str | None]
Result = dict[str, Any]

KEPT = 16
"""Built models that are kept, each for one configuration and size of image."""


class Identity(TypedDict, total=False):
    """What is said of an implementation: the keywords that all adapters take.

    `name`, `version` and `spec` must be given.

    Attributes:
        name: what reports call it.
        version: likewise.
        spec: the function that it claims to be: "vit", "vit-cls" or "vision-transformer".
        dtype: the precision; or float32 and float64 (unless it is given), the default first.
            Parameters and images are converted to it.
        supports: called with a config; None, or why it does not compute such models.
        closest: called with a config; the nearest one that it can compute. Cases are then of such
            models, instead of passed over.
        supports_size: called with (config, height, width) of images that have another size than the
            config's; None, or why positions are not interpolated for them. Without it, no such
            images are given.
        repeats: "to rounding" if its sums run in an order that varies, so that two runs may differ
            by rounding; else "exactly".
    """

    name: Required[str]
    version: Required[str]
    spec: Required[str]
    dtype: str | tuple[str, ...]
    supports: Supports | None
    closest: Closest | None
    supports_size: SupportsSize | None
    repeats: str


@dataclass
class Model:
    """A model for one configuration: its own parameters, if it has any, and how to call it.

    Attributes:
        own: a module, or arrays by their names; None if it takes those of the name map.
        call: (parameters, images) -> logits, or a mapping with `logits` and taps.
    """

    own: Any
    call: Callable[[Any, Any], Any]


class Adapter:
    """An implementation: NumPy arrays by our names in, NumPy arrays by our names out.

    Attributes:
        name, version, spec, dtype, closest, supports_size, repeats: as in `Identity`.
        name_map: their names for the parameters; None if they use ours.
    """

    def __init__(
        self,
        model: Callable[..., Model],
        name_map: NameMap | None,
        *,
        name: str,
        version: str,
        spec: str,
        dtype: str | tuple[str, ...] = ("float32", "float64"),
        supports: Supports | None = None,
        closest: Closest | None = None,
        supports_size: SupportsSize | None = None,
        repeats: str = EXACTLY,
    ) -> None:
        self.name, self.version, self.spec, self.dtype = name, version, spec, dtype
        self.name_map = name_map
        self.closest, self.supports_size, self.repeats = closest, supports_size, repeats
        check_dtypes(dtype)
        if spec not in FAMILIES:  # a name map leads to the specification's names
            raise ValueError(f"spec: expected one of {', '.join(FAMILIES)}, got {spec!r}")
        self._model, self._supports = model, supports
        self._built = lru_cache(KEPT)(self._build)

    def supports(self, config: Any) -> str | None:
        """None, or why it does not compute models of this configuration."""
        return self._supports(config) if self._supports else None

    def forward(self, config: Any, params: Mapping[str, Array], images: Array) -> Result:
        """The logits (B, K) of images (B, C, H, W), by the name `logits`, and any taps."""
        raise NotImplementedError

    def vjp(
        self, config: Any, params: Mapping[str, Array], images: Array, cotangent: Array
    ) -> tuple[dict[str, Array], Array]:
        """The cotangents of the parameters, summed over the batch, and of the images."""
        raise NotImplementedError

    def precision(self, images: Array) -> str:
        """The precision to compute in, when the images are of this type."""
        dtypes = (self.dtype,) if isinstance(self.dtype, str) else self.dtype
        fitting = [name for name in dtypes if PRECISIONS[name].carrier == images.dtype.name]
        if not fitting:
            raise TypeError(f"{self.name} computes in {', '.join(dtypes)}, not in {images.dtype}")
        return fitting[0]

    def _build(
        self, config: Any, image_shape: tuple[int, int, int], precision: str
    ) -> tuple[Any, Any]:
        """What is kept for a configuration: here its model, and the name map bound to it."""
        model = self._model(config, *image_shape)  # first: it may refuse the configuration
        names = self.name_map or (SAME_NAMES if self.spec in MODELS else PRACTICAL_NAMES)
        return model, names.bind(config, *image_shape, cls=self.spec == "vit-cls")

    def __repr__(self) -> str:
        return f"<{self.name} {self.version} as {self.spec}, {self.dtype}>"


def check_dtypes(dtype: str | tuple[str, ...]) -> None:
    """Raise `ValueError` for an unknown precision, or several that arrays do not tell apart."""
    dtypes = (dtype,) if isinstance(dtype, str) else dtype
    if unknown := [name for name in dtypes if name not in PRECISIONS]:
        raise ValueError(f"dtype: expected some of {', '.join(PRECISIONS)}, got {unknown}")
    if not dtypes or (len(dtypes) > 1 and not all(PRECISIONS[name].own_type for name in dtypes)):
        raise ValueError(
            f"dtype: only float64 and float32 can share an object, got {dtypes}: arrays for the "
            "others are of float32 too; make one implementation for each"
        )


def split_output(output: Any) -> tuple[Any, dict[str, Any]]:
    """The logits, and the taps, of what a model returned: the logits, or a mapping of both."""
    if not isinstance(output, Mapping):
        return output, {}
    if "logits" not in output:
        raise TypeError(f"the model returned a mapping without 'logits': {', '.join(output)}")
    return output["logits"], {name: value for name, value in output.items() if name != "logits"}
