"""The losses of training, on one image; a batch's loss is the mean of its images'.

With logits z (K,) and p = softmax(z):

    cross_entropy   -sum_k t_k log p_k,   t_k = (1 - e) [k = label] + e / K  d_z = p - t
    squared_error   sum_k (z_k - t_k)^2 / K                                 d_z = 2 (z - t) / K
    binary          sum_k (softplus(z_k) - t_k z_k) / K,                    d_z = (s(z) - t) / K
                    softplus(z) = log(1 + exp z), s its derivative, the logistic function

and, for masked image modelling, with pixels x, their reconstruction r (C, H, W) and a mask m (H, W)
that is 1 on masked patches:

    masked_error    sum |x - r| m / (sum m + 1e-5) / C            d_r = sign(r - x) m / (...) / C

Source: Hugging Face's `ViTForImageClassification` (one class: squared error; labels that are
numbers for each class: binary) and `ViTForMaskedImageModeling`; label smoothing e: Szegedy et al.,
1512.00567.
"""

from __future__ import annotations

import numpy as np

from vitspec import scalars
from vitspec.errors import InvalidArray
from vitspec.layers.activation import softmax
from vitspec.layers.gelu import logistic
from vitspec.scalars import scalar, total
from vitspec.typing import Array, Bool, Scalar, typed


@typed
def cross_entropy(
    logits: Scalar[Array, "K"], label: int, smoothing: str = "0"
) -> Scalar[Array, ""]:
    """The cross entropy with the label's class, of which all classes share the part `smoothing`."""
    shifted = logits - scalars.row_max(logits)
    log_p = shifted - np.log(total(np.exp(shifted), axis=0))
    return np.asarray(-total(smooth_target(logits, label, smoothing) * log_p, axis=0))


@typed
def cross_entropy_backward(
    logits: Scalar[Array, "K"], label: int, smoothing: str = "0"
) -> Scalar[Array, "K"]:
    """The gradient p - t of the logits."""
    return softmax(logits) - smooth_target(logits, label, smoothing)


def smooth_target(logits: Array, label: int, smoothing: str) -> Array:
    """t: 1 - e on the label, and e / K on every class; `smoothing` is a decimal.

    Raises:
        InvalidArray: there is no such class.
    """
    K = logits.shape[0]
    if not 0 <= label < K:
        raise InvalidArray(f"label: expected a class from 0 to {K - 1}, got {label}")
    e, target = scalar(smoothing, logits.dtype), scalars.zeros((K,), logits.dtype)
    target[label] = target[label] + 1 - e
    return target + e / K


@typed
def squared_error(logits: Scalar[Array, "K"], target: Scalar[Array, "K"]) -> Scalar[Array, ""]:
    """The mean over the classes of (z - t)^2."""
    return np.asarray(scalars.mean((logits - target) * (logits - target), axis=0))


@typed
def squared_error_backward(
    logits: Scalar[Array, "K"], target: Scalar[Array, "K"]
) -> Scalar[Array, "K"]:
    """The gradient 2 (z - t) / K of the logits."""
    return 2 * (logits - target) / logits.shape[0]


@typed
def binary_cross_entropy(
    logits: Scalar[Array, "K"], target: Scalar[Array, "K"]
) -> Scalar[Array, ""]:
    """The mean over the classes of the cross entropy of each with its own target from 0 to 1.

    softplus(z) = (z + |z|) / 2 + log(1 + exp(-|z|)), where nothing overflows, and the derivative at
    0 is 1/2 though that of |z| is taken to be 0.
    """
    size = logits * scalars.sign(logits)
    softplus = (logits + size) / 2 + np.log1p(np.exp(-size))
    return np.asarray(scalars.mean(softplus - target * logits, axis=0))


@typed
def binary_cross_entropy_backward(
    logits: Scalar[Array, "K"], target: Scalar[Array, "K"]
) -> Scalar[Array, "K"]:
    """The gradient (s(z) - t) / K of the logits."""
    return (logistic(logits) - target) / logits.shape[0]


@typed
def masked_error(
    pixels: Scalar[Array, "C H W"], reconstruction: Scalar[Array, "C H W"], mask: Bool[Array, "H W"]
) -> Scalar[Array, ""]:
    """The mean absolute error of the masked pixels; exactly 0 if none is masked."""
    error = reconstruction - pixels
    share = _share(mask, pixels)
    return np.asarray(total((error * scalars.sign(error) * share).reshape(-1), axis=0))


@typed
def masked_error_backward(
    pixels: Scalar[Array, "C H W"], reconstruction: Scalar[Array, "C H W"], mask: Bool[Array, "H W"]
) -> Scalar[Array, "C H W"]:
    """The gradient of the reconstruction; that of the pixels is its opposite."""
    return scalars.sign(reconstruction - pixels) * _share(mask, pixels)


def _share(mask: Array, pixels: Array) -> Array:
    """m / (sum m + 1e-5) / C."""
    dtype, C = pixels.dtype, pixels.shape[0]
    count = scalar(int(mask.sum()), dtype) + scalar("1e-5", dtype)
    return np.where(mask, scalars.ones((), dtype), scalars.zeros((), dtype)) / count / C
