"""An implementation at a point, and the noise of its results there.

How far rounding moves a result depends on the point: where much cancels, it is far more than the
unit roundoff. Nothing can be assumed of a model that we do not know, so the noise is measured: the
implementation runs again at neighbours of the point, every number of which lies one unit in the
last place away, with the cotangent at another scale. What its results change by is about what
rounding does to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vitspec.testing.implementations import AdapterError
from vitspec.testing.precision import PRECISIONS, Precision, rounded
from vitspec.typing import Array

Flat = dict[str, Array]

NEIGHBOURS = 3
"""How many neighbours of the point tell the noise."""
RESERVED = ("image", "logits", "cotangent")


class Evaluation:
    """Runs of an implementation at a point and near it.

    Args:
        implementation: has `forward` and `vjp`.
        config: handed on to it.
        params: by any names but "image", "logits" and "cotangent".
        images: any array whose first axis is the batch.
        cotangent: of the output, and of its shape.
        precision: what the implementation computes in.
        rng: draws the neighbours.

    Attributes:
        values: the results in float64: `logits`, `image`, and the gradients by parameter.
        noise: for each result, how far rounding moves its entries.
        raw, again: the results as they came, of two runs.
    """

    def __init__(
        self,
        implementation: Any,
        config: Any,
        params: Mapping[str, Array],
        images: Array,
        cotangent: Array,
        precision: Precision,
        rng: np.random.Generator,
    ) -> None:
        if clash := sorted(params.keys() & set(RESERVED)):
            raise AdapterError(f"parameters must not be called {', '.join(clash)}")
        self.implementation, self.config, self.precision = implementation, config, precision
        self.params = self._all(params)
        self.images, self.cotangent = (
            exact(images, self.precision),
            exact(cotangent, self.precision),
        )
        self.raw, self.again = (
            self.run(self.params, self.images, self.cotangent) for _ in range(2)
        )
        self.values = {name: leaf.astype(np.float64) for name, leaf in self.raw.items()}
        spread = {name: np.abs(self.again[name] - leaf) for name, leaf in self.values.items()}
        for _ in range(NEIGHBOURS):
            found = self._neighbour(rng)
            for name, leaf in self.values.items():
                spread[name] = np.maximum(spread[name], np.abs(found[name] - leaf))
        # An entry may stand still by chance, so its tensor's root mean square is its least noise.
        self.noise = {
            name: leaf + np.sqrt(np.mean(leaf**2)) if leaf.size else leaf
            for name, leaf in spread.items()
        }

    def forward(self, params: Mapping[str, Array], images: Array) -> Array:
        """The output, as it came, for numbers that are first rounded to the precision."""
        found = self._called("forward", self._all(params), exact(images, self.precision))
        logits = np.asarray(found["logits"] if isinstance(found, Mapping) else found)
        return self._checked("logits", logits, (len(images), *self.cotangent.shape[1:]))

    def vjp(self, params: Mapping[str, Array], images: Array, cotangent: Array) -> Flat:
        """The gradients by parameter, and `image`, as they came, for numbers rounded first."""
        given = self._all(params), exact(images, self.precision), exact(cotangent, self.precision)
        d_params, d_images = self._called("vjp", *given)
        if d_params.keys() != params.keys():
            missing = sorted(params.keys() - d_params.keys())
            extra = sorted(d_params.keys() - params.keys())
            raise AdapterError(
                f"{self.implementation.name}: vjp: missing gradients: {missing}, "
                f"unexpected: {extra}"
            )
        found = {n: self._checked(n, np.asarray(d_params[n]), params[n].shape) for n in params}
        return found | {"image": self._checked("image", np.asarray(d_images), images.shape)}

    def run(self, params: Mapping[str, Array], images: Array, cotangent: Array) -> Flat:
        """Output and gradients together."""
        return {"logits": self.forward(params, images)} | self.vjp(params, images, cotangent)

    def _called(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self.implementation, method)(self.config, *arguments)
        except Exception as error:
            raise AdapterError(
                f"{self.implementation.name}.{method} raised {type(error).__name__}: {error}"
            ) from error

    def _checked(self, name: str, found: Array, shape: tuple[int, ...]) -> Array:
        if found.shape != tuple(shape):
            raise AdapterError(
                f"{self.implementation.name}: {name}: expected shape {tuple(shape)}, "
                f"got {found.shape}"
            )
        return found

    def _all(self, params: Mapping[str, Array]) -> Flat:
        return {name: exact(leaf, self.precision) for name, leaf in params.items()}

    def _neighbour(self, rng: np.random.Generator) -> Flat:
        """The results at a neighbour of the point."""

        def nudged(x: Array) -> Array:
            return x.astype(np.float64) * (1 + 2 * self.precision.u * rng.choice([-1, 1], x.shape))

        # The gradients are linear in the cotangent. Another scale of it draws the rounding of all
        # that is computed from it afresh, also in sums that the other numbers do not reach.
        a = rng.uniform(1, 2)
        params = {name: nudged(leaf) for name, leaf in self.params.items()}
        found = self.run(params, nudged(self.images), a * self.cotangent.astype(np.float64))
        return {n: x if n == "logits" else x.astype(np.float64) / a for n, x in found.items()}


def precision_of(dtype: str) -> Precision:
    """The precision of this name.

    Raises:
        ValueError: there is none.
    """
    if dtype not in PRECISIONS:
        raise ValueError(f"dtype: expected one of {', '.join(PRECISIONS)}, got {dtype!r}")
    return PRECISIONS[dtype]


def exact(x: Array, precision: Precision) -> Array:
    """x rounded to a precision, read-only and in an array of its own."""
    array = rounded(np.asarray(x, np.float64), precision)
    array.setflags(write=False)
    return array
