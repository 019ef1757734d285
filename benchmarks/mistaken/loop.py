"""What is done with the gradients around a model, with the mistakes that are made there.

These are mistakes of training loops and of code that hands gradients on, not of a model: they are
the same in every framework.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Gradients = dict[str, np.ndarray]
Vjp = Callable[[np.ndarray, np.ndarray], tuple[Gradients, np.ndarray]]
"""From images and the cotangent of their logits to the gradients of parameters and images."""


def gradients(
    vjp: Vjp,
    images: np.ndarray,
    cotangent: np.ndarray,
    config: Any,
    params: Mapping[str, np.ndarray],
    m: frozenset[str],
) -> tuple[Gradients, np.ndarray]:
    """The gradients as this code has them."""
    B = len(images)
    if "batch-loss-averaged" in m:
        cotangent = cotangent / B
    if "loss-scale-left-in" in m:
        cotangent = cotangent * 65536
    grads, d_images = vjp(images, cotangent)
    if "batch-gradients-averaged" in m:
        grads = {name: grad / B for name, grad in grads.items()}
    if m & {"batch-last-image-only", "batch-gradients-not-zeroed"}:
        grads = image_by_image(vjp, images, cotangent, m)
    if "batch-images-gradient-summed" in m:
        d_images = np.broadcast_to(d_images.sum(axis=0), d_images.shape).copy()
    grads = handed_on(grads, config, m)
    if "gradients-clipped-by-norm" in m:
        norm = np.sqrt(sum(np.sum(grad**2) for grad in grads.values()))
        factor = min(1, 1 / (norm + 1e-6))
        grads = {name: (grad * factor).astype(grad.dtype) for name, grad in grads.items()}
    if "gradients-clipped-by-value" in m:
        grads = {name: grad.clip(-1, 1) for name, grad in grads.items()}
    if "weight-decay-in-the-gradient" in m:
        grads = {name: grad + grad.dtype.type(0.1) * params[name] for name, grad in grads.items()}
    return grads, d_images


def image_by_image(
    vjp: Vjp, images: np.ndarray, cotangent: np.ndarray, m: frozenset[str]
) -> Gradients:
    """One backward for each image, as where gradients are accumulated over small batches."""
    total: Gradients = {}
    left: Gradients = {}
    for i in range(len(images)):
        found, _ = vjp(images[i : i + 1], cotangent[i : i + 1])
        if "batch-last-image-only" in m:
            total = found
        if "batch-gradients-not-zeroed" in m:
            left = _sum(left, found)  # what the backward adds to, and nobody sets to zero
            total = _sum(total, left)
    return total


def handed_on(grads: Mapping[str, np.ndarray], config: Any, m: frozenset[str]) -> Gradients:
    """The gradients by parameter, some under another one's name."""
    found = dict(grads)
    for i in range(config.num_layers):
        layer = f"encoder.layers.{i}"
        if "value-weight-gets-key-gradient" in m:
            found[f"{layer}.mha.wv"] = grads[f"{layer}.mha.wk"]
        if "key-bias-gets-query-gradient" in m and f"{layer}.mha.bk" in grads:
            found[f"{layer}.mha.bk"] = grads[f"{layer}.mha.bq"]
        if "encoder-gradients-reversed" in m:
            other = f"encoder.layers.{config.num_layers - 1 - i}"
            own = [name for name in grads if name.startswith(f"{layer}.")]
            found |= {name: grads[other + name.removeprefix(layer)] for name in own}
    return found


def _sum(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> Gradients:
    return {name: a[name] + grad if name in a else grad for name, grad in b.items()}
