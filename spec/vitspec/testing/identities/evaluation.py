"""An implementation at a point, and the noise of its results there.

How far rounding moves a result depends on the point: where much cancels, it is far more than the
unit roundoff. Nothing can be assumed of a model that we do not know, so the noise is measured: the
implementation runs again at neighbours of the point, every number of which lies one unit in the
last place away, with the cotangent at another scale. What its results change by is about what
rounding does to them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from vitspec.testing.implementations import AdapterError, Subject
from vitspec.testing.reference import Flat, Point
from vitspec.testing.trial import LAW_FACTOR, Trial
from vitspec.typing import Array

NEIGHBOURS = 3
"""How many neighbours of the point tell the noise."""
RESERVED = ("image", "logits", "cotangent")


class Evaluation(Trial):
    """A trial that needs no truth: runs of an implementation at a point and near it.

    Args:
        subject: has gradients.
        point: its parameters have any names but "image", "logits" and "cotangent". It is rounded to
            the subject's precision, and so is every other point at which it is evaluated.
        rng: draws the neighbours.

    Attributes:
        values: the results in float64: `logits`, the gradients by parameter, and `image`.
        noise: for each result, how far rounding moves its entries.
        nearby: likewise by the neighbours alone.
        again: the results of a second run.
    """

    def __init__(self, subject: Subject, point: Point, rng: np.random.Generator) -> None:
        if clash := sorted(point.params.keys() & set(RESERVED)):
            raise AdapterError(f"parameters must not be called {', '.join(clash)}")
        super().__init__(subject, point.rounded(subject.precision), rng)
        self.values = {name: leaf.astype(np.float64) for name, leaf in self.found.items()}
        self.again = self.evaluate(self.point)
        spread = {name: np.zeros_like(leaf) for name, leaf in self.values.items()}
        for _ in range(NEIGHBOURS):
            near = self._neighbour(rng)
            for name, leaf in self.values.items():
                spread[name] = np.maximum(spread[name], np.abs(near[name] - leaf))
        self.nearby = {name: _with_typical(leaf) for name, leaf in spread.items()}
        for name, leaf in self.values.items():
            spread[name] = np.maximum(spread[name], np.abs(self.again[name] - leaf))
        # An entry may stand still by chance, so its tensor's root mean square is its least noise.
        self.noise = {name: _with_typical(leaf) for name, leaf in spread.items()}

    def repeats_to_rounding(self, name: str) -> bool:
        """Whether two runs differ no more in a result than rounding at neighbours explains."""
        apart = np.abs(self.again[name] - self.values[name])
        return bool(np.all(apart <= LAW_FACTOR * self.nearby[name]))

    def forward(self, point: Point) -> Array:
        """The output at another point."""
        return self.subject.forward(point.rounded(self.precision))["logits"]

    def evaluate(self, point: Point) -> Flat:
        """The output, the gradients by parameter, and `image`, at another point."""
        point = point.rounded(self.precision)
        found = self.subject.evaluate(point)
        return {name: found[name] for name in ("logits", *point.params, "image")}

    def gradients(self, cotangent: Any) -> Flat:
        """The gradients by parameter, and `image`, for another cotangent."""
        found = super().gradients(cotangent)
        return {name: found[name] for name in (*self.point.params, "image")}

    def _neighbour(self, rng: np.random.Generator) -> Flat:
        """The results at a neighbour of the point."""

        def nudged(x: Array) -> Array:
            return x.astype(np.float64) * (1 + 2 * self.precision.u * rng.choice([-1, 1], x.shape))

        # The gradients are linear in the cotangent. Another scale of it draws the rounding of all
        # that is computed from it afresh, also in sums that the other numbers do not reach.
        a, point = rng.uniform(1, 2), self.point
        params = {name: nudged(leaf) for name, leaf in point.params.items()}
        images, cotangent = nudged(point.images), a * point.cotangent.astype(np.float64)
        found = self.evaluate(replace(point, params=params, images=images, cotangent=cotangent))
        return {n: x if n == "logits" else x.astype(np.float64) / a for n, x in found.items()}


def _with_typical(spread: Array) -> Array:
    """How far each entry moved, plus how far its tensor's entries do by root mean square."""
    return spread + np.sqrt(np.mean(spread**2)) if spread.size else spread
