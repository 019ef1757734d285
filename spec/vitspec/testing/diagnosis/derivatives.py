"""The derivatives of a mistaken forward, as automatic differentiation gives them.

Frameworks differentiate the mistake too. Its derivatives need not be written down: along one
direction v they are Im f(x + i h v) / h, exact to rounding, whatever f is (the complex step). So
the implementation's gradient of each tensor is compared along random directions.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vitspec.testing.diagnosis.points import Sample
from vitspec.testing.reference import Point
from vitspec.typing import Array, shapes_unchecked

STEP = 1e-100
"""h; its square is nothing."""
DIRECTIONS = 2
"""For each tensor."""


def ratios(sample: Sample) -> dict[str, float]:
    """How far each gradient is from the derivative of the forward that is planted now.

    In units of about what the precision explains, as `Sample.rough_ratio` is.
    """
    rng = np.random.default_rng(len(sample.tensors))
    found = {}
    for name in sample.tensors:
        if name == "logits":
            continue
        value = sample.found[name]
        size = float(np.linalg.norm(value))
        noise = max(sample.prices[name].norm, sample.relative_prices[name] * size)
        bound = 4 * noise + 4 * sample.precision.u * size
        worst = 0.0
        for _ in range(DIRECTIONS):
            direction = rng.standard_normal(value.shape)
            direction /= np.linalg.norm(direction) or 1.0
            error = abs(float(np.vdot(value, direction)) - along(sample.point, {name: direction}))
            worst = max(worst, error / bound if bound else (np.inf if error else 0.0))
        found[name] = worst if np.isfinite(worst) else np.inf
    return found


def along(point: Point, directions: Mapping[str, Array]) -> float:
    """The derivative of <cotangent, logits> along directions of parameters and the images."""

    def moved(name: str, x: Array) -> Array:
        step = directions.get(name)
        return x.astype(np.complex128) + (0 if step is None else 1j * STEP * step)

    params = {name: moved(name, value) for name, value in point.params.items()}
    images = moved("image", point.images)
    total = 0.0
    with shapes_unchecked():
        model = point.model(params)
        for image, cotangent in zip(images, point.cotangent, strict=True):
            logits = model.trace(image, **point.call).logits
            total += float(np.vdot(cotangent.astype(np.float64), np.imag(logits)) / STEP)
    return total
