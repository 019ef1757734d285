"""An implementation, as the kit wants it, of a model with mistakes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from mistaken.loop import gradients
from mistaken.names import check_names
from vitspec.testing.adapters import from_jax, from_torch_function


class Mistaken:
    """A model of a framework with mistakes in it.

    Args:
        framework: "torch" or "jax".
        spec: the family.
        mistakes: their names.
        taps: whether it shows its intermediate values.
    """

    version = "1"
    dtype = ("float64", "float32")

    def __init__(self, framework: str, spec: str, mistakes: frozenset[str], taps: bool) -> None:
        self.spec, self.mistakes = spec, mistakes
        self.name = "+".join([f"{framework} {spec}", *sorted(mistakes)])
        self._adapter: Any = _adapter(framework, spec, mistakes, taps)
        if spec == "vision-transformer":
            self.supports_size = self._supports_size

    def supports(self, config: Any) -> str | None:
        """None, or the rule that a configuration breaks."""
        return (config.violations() or [None])[0]

    def _supports_size(self, config: Any, height: int, width: int) -> str | None:
        """None: positions are interpolated for all sizes."""
        return None

    def forward(self, config: Any, params: Mapping[str, Any], images: np.ndarray) -> Any:
        """The logits, and intermediate values."""
        return self._adapter.forward(config, params, images)

    def vjp(
        self, config: Any, params: Mapping[str, Any], images: np.ndarray, cotangent: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The gradients."""
        vjp = partial(self._adapter.vjp, config, params)
        return gradients(vjp, images, cotangent, config, params, self.mistakes)


def implementation(
    framework: str, spec: str, mistakes: Iterable[str] = (), taps: bool = True
) -> Mistaken:
    """The model of a family in a framework, with these mistakes.

    Raises:
        KeyError: one is not made in this family.
    """
    chosen = frozenset(mistakes)
    check_names(spec, chosen)
    return Mistaken(framework, spec, chosen, taps)


def _adapter(framework: str, spec: str, mistakes: frozenset[str], taps: bool) -> Any:
    model: Any
    if framework == "torch":
        from mistaken.torch_models import model
    else:
        from mistaken.jax_models import model

    def function(config: Any, params: Any, images: Any) -> Any:
        found = model(spec, config, dict(params), images, mistakes)
        return found if taps else found["logits"]

    identity: Any = {"name": framework, "version": "1", "spec": spec,
                     "dtype": Mistaken.dtype}  # fmt: skip
    if framework == "torch":
        return from_torch_function(function, **identity)
    # Operation by operation: compiling a program for each mistake would take far longer.
    return from_jax(function, jit=False, **identity)
