"""What the implementations made of a PyTorch module, a JAX function and an NNX module share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from vitspec.testing.adapters.maps import PRACTICAL_NAMES, SAME_NAMES
from vitspec.testing.adapters.name_maps import BoundMap, NameMap
from vitspec.testing.families import FAMILIES, MODELS
from vitspec.testing.precision import PRECISIONS
from vitspec.typing import Array

Supports = Callable[[Any], str | None]
Closest = Callable[[Any], Any]
SupportsSize = Callable[[Any, int, int], str | None]
Result = dict[str, Any]

KEPT = 16
"""Built models that are kept, each for one configuration and size of image."""


class Adapter:
    """An implementation: NumPy arrays by our names in, NumPy arrays by our names out.

    Attributes:
        name, version: what reports call it.
        spec: the function that it claims to be: "vit", "vit-cls" or "vision-transformer".
        dtype: the precisions that it computes in, the default first.
        name_map: their names for the parameters; None if they use ours.
        closest: from a configuration to the nearest one that it can compute; None if it says none.
        supports_size: from a configuration and (H, W) to None, or why no images of that size, for
            which positions are interpolated; None if it takes the configuration's size alone.
    """

    def __init__(
        self,
        *,
        name: str,
        version: str,
        spec: str,
        dtype: str | tuple[str, ...],
        name_map: NameMap | None,
        supports: Supports | None,
        closest: Closest | None = None,
        supports_size: SupportsSize | None = None,
    ) -> None:
        self.name, self.version, self.spec = name, version, spec
        self.name_map = name_map
        self.dtype = dtype
        self.closest, self.supports_size = closest, supports_size
        check_dtypes(dtype)
        if spec not in FAMILIES:  # a name map leads to the specification's names
            raise ValueError(f"spec: expected one of {', '.join(FAMILIES)}, got {spec!r}")
        self._supports = supports
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

    def bound_map(self, config: Any, image_shape: tuple[int, int, int]) -> BoundMap:
        """The name map for a configuration and images (C, H, W)."""
        if self.spec not in MODELS:
            return (self.name_map or PRACTICAL_NAMES).bind_practical(config)
        return (self.name_map or SAME_NAMES).bind(config, *image_shape, cls=self.spec == "vit-cls")

    def precision(self, images: Array) -> str:
        """The precision to compute in, when the images are of this type."""
        dtypes = (self.dtype,) if isinstance(self.dtype, str) else self.dtype
        fitting = [name for name in dtypes if PRECISIONS[name].carrier == images.dtype.name]
        if not fitting:
            raise TypeError(f"{self.name} computes in {', '.join(dtypes)}, not in {images.dtype}")
        return fitting[0]

    def _build(self, config: Any, image_shape: tuple[int, int, int], precision: str) -> Any:
        """What is kept for a configuration."""
        raise NotImplementedError

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
