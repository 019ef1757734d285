"""ReLU and softmax.

    relu(z) = max(z, 0)                      relu'(z) = 1 if z > 0 else 0, so relu'(0) = 0
    softmax(x)_j = exp(x_j - m) / sum_k exp(x_k - m),   m = max_k x_k,   over the last axis

The Jacobian of the softmax, with y = softmax(x), sends v to y * (v - sum_j v_j y_j). It is
symmetric, so this one map is its VJP and its JVP.

A hard mask removes entries before the maximum is taken: their weight is exactly 0. A row whose
entries are all blocked is all zeros.

Lean: `reluSpec`, `reluDerivSpec`, `softmaxSpec`, `softmaxBackwardSpec` (`Layers/Activation.lean`);
`hardMaskedSoftmaxSpec`, `softmaxBackwardFromWeightsSpec` (`Layers/Attention.lean`).
"""

from __future__ import annotations

import numpy as np

from vitspec import scalars
from vitspec.typing import Array, Bool, Scalar, typed


@typed
def relu(z: Scalar[Array, "*n"]) -> Scalar[Array, "*n"]:
    """max(z, 0), entry by entry."""
    return scalars.maximum_with_zero(z)


@typed
def relu_deriv(z: Scalar[Array, "*n"]) -> Scalar[Array, "*n"]:
    """1 where z > 0, else 0: at the kink, 0."""
    return scalars.is_positive(z)


@typed
def relu_backward(z: Scalar[Array, "*n"], d_out: Scalar[Array, "*n"]) -> Scalar[Array, "*n"]:
    """The cotangent of z: relu'(z) * d_out."""
    return d_out * relu_deriv(z)


@typed
def relu_jvp(z: Scalar[Array, "*n"], dz: Scalar[Array, "*n"]) -> Scalar[Array, "*n"]:
    """The tangent of relu(z): relu'(z) * dz."""
    return dz * relu_deriv(z)


@typed
def softmax(x: Scalar[Array, "*rows n"]) -> Scalar[Array, "*rows n"]:
    """Softmax over the last axis, shifted by the row's maximum; an empty row stays empty."""
    if x.shape[-1] == 0:
        return x
    shifted = x - scalars.row_max(x)
    weights = np.exp(shifted, out=shifted)  # in place: the array is this function's own
    weights /= scalars.total(weights, axis=-1, keepdims=True)
    return weights


@typed
def hard_masked_softmax(
    x: Scalar[Array, "*rows n_q n_k"], mask: Bool[Array, "n_q n_k"]
) -> Scalar[Array, "*rows n_q n_k"]:
    """Softmax over the entries of each row that the mask allows (True = may attend).

    Returns:
        The weights: exactly 0 where blocked; a row without an allowed entry is all zeros, an empty
        row stays empty.
    """
    if x.shape[-1] == 0:
        return x
    zero, one = scalars.zeros((), x.dtype), scalars.ones((), x.dtype)
    row_max = scalars.row_max(x, where=mask)
    # A blocked score becomes its row's maximum: no overflow in a number that is thrown away.
    numerators = np.where(mask, np.exp(np.where(mask, x, row_max) - row_max), zero)
    sums = scalars.total(numerators, axis=-1, keepdims=True)
    return numerators / np.where(mask.any(axis=-1, keepdims=True), sums, one)


@typed
def softmax_backward_from_weights(
    weights: Scalar[Array, "*rows n"], d_weights: Scalar[Array, "*rows n"]
) -> Scalar[Array, "*rows n"]:
    """The cotangent of the scores, given the weights y: y * (d_weights - sum_j d_weights_j y_j).

    By symmetry also the tangent of the weights, given that of the scores. Masked softmax has the
    same derivative: a blocked weight is 0.
    """
    row_dots = scalars.total(d_weights * weights, axis=-1, keepdims=True)
    d_scores = d_weights - row_dots
    d_scores *= weights
    return d_scores


@typed
def softmax_backward(
    x: Scalar[Array, "*rows n"], d_out: Scalar[Array, "*rows n"]
) -> Scalar[Array, "*rows n"]:
    """The cotangent of x, given the cotangent of softmax(x)."""
    return softmax_backward_from_weights(softmax(x), d_out)


@typed
def softmax_jvp(
    x: Scalar[Array, "*rows n"], dx: Scalar[Array, "*rows n"]
) -> Scalar[Array, "*rows n"]:
    """The tangent of softmax(x), given the tangent of x: the Jacobian is symmetric."""
    return softmax_backward_from_weights(softmax(x), dx)
