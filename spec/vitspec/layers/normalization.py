"""Layer normalisation over the last axis of (n, D), D > 0.

For each row, with D entries:

    c    = x - mean(x)
    var  = mean((c - mean(c))^2)             population variance: divides by D
    std  = sqrt(max(max(var, 0) + eps, 0))   eps = 1e-6 unless given, inside the root
    xhat = c / std
    y    = xhat * gamma + beta

Lean centres the already centred rows again to take their variance. Over the real numbers mean(c) is
0 and neither maximum ever acts, so the derivatives are those of the plain formula:

    d_x = ((w - mean(w)) - xhat * mean(w * xhat)) / std,    w = d_y * gamma

The linear map from w to d_x is symmetric, so it serves the JVP too. (Lean multiplies by 1 / std
where this divides: the same but for rounding.)

Lean: `layerNorm`, `layerNormBackward`, `layerNormJvp` (`Layers/Normalization/Core.lean`).
"""

from __future__ import annotations

import numpy as np

from vitspec import scalars
from vitspec.errors import InvalidArray
from vitspec.scalars import EPSILON, mean
from vitspec.typing import Array, Scalar, typed


def normalize(x: Array, epsilon: str = EPSILON) -> tuple[Array, Array]:
    """The normalised rows xhat (n, D) and their standard deviations std (n, 1)."""
    if x.shape[-1] == 0:
        raise InvalidArray(f"layer_norm needs at least one feature, got shape {x.shape}")
    centred = x - mean(x, axis=-1, keepdims=True)
    twice_centred = centred - mean(centred, axis=-1, keepdims=True)
    variance = mean(twice_centred * twice_centred, axis=-1, keepdims=True)
    clamped = scalars.maximum_with_zero(variance) + scalars.scalar(epsilon, x.dtype)
    std = np.sqrt(scalars.maximum_with_zero(clamped))
    return centred / std, std


def normalize_derivative(xhat: Array, std: Array, w: Array) -> Array:
    """The derivative of xhat with respect to x, applied to w (n, D); it is symmetric."""
    centred = w - mean(w, axis=-1, keepdims=True)
    return (centred - xhat * mean(w * xhat, axis=-1, keepdims=True)) / std


@typed
def layer_norm(
    x: Scalar[Array, "n D"],
    gamma: Scalar[Array, "D"],
    beta: Scalar[Array, "D"],
    epsilon: str = EPSILON,
) -> Scalar[Array, "n D"]:
    """Each row of x normalised, scaled by gamma and shifted by beta; epsilon is a decimal."""
    xhat, _ = normalize(x, epsilon)
    return xhat * gamma + beta


@typed
def layer_norm_backward(
    x: Scalar[Array, "n D"],
    gamma: Scalar[Array, "D"],
    d_out: Scalar[Array, "n D"],
    epsilon: str = EPSILON,
) -> tuple[Scalar[Array, "n D"], Scalar[Array, "D"], Scalar[Array, "D"]]:
    """The cotangents (d_x, d_gamma, d_beta)."""
    xhat, std = normalize(x, epsilon)
    d_x = normalize_derivative(xhat, std, d_out * gamma)
    return d_x, scalars.total(d_out * xhat, axis=0), scalars.total(d_out, axis=0)


@typed
def layer_norm_jvp(
    x: Scalar[Array, "n D"],
    gamma: Scalar[Array, "D"],
    dx: Scalar[Array, "n D"],
    d_gamma: Scalar[Array, "D"],
    d_beta: Scalar[Array, "D"],
    epsilon: str = EPSILON,
) -> Scalar[Array, "n D"]:
    """The tangent of the output along (dx, d_gamma, d_beta)."""
    xhat, std = normalize(x, epsilon)
    return normalize_derivative(xhat, std, dx) * gamma + xhat * d_gamma + d_beta
