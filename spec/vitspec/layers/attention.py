"""Scaled dot-product attention, with Boolean masks.

Q (n_q, d), K (n_k, d), V (n_k, e), with the scale c = 1 / sqrt(d):

    S = c Q K^T          A = softmax(S), or hard-masked (True = may attend)          out = A V

Leading axes, such as heads, run side by side; all share one mask.

Backward, given g = d_out, with row sums over keys:

    dA = g V^T     dV = A^T g     dS = A * (dA - sum(dA * A)) * c     dQ = dS K     dK = dS^T Q

where dS, with its factor c, is the cotangent of Q K^T. (In Lean V is as wide as Q and K.)

Lean: `attentionScaleDenom`, `allTrueMask`, `allFalseMask`, `causalMask`, `futureMask`,
`scaledDotProductAttention`, `scaledDotProductAttentionBackward`, `scaledDotProductAttentionJvp`
(`Layers/Attention.lean`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vitspec import scalars
from vitspec.errors import InvalidArray
from vitspec.layers.activation import hard_masked_softmax, softmax, softmax_backward_from_weights
from vitspec.scalars import matmul
from vitspec.typing import Array, Bool, Scalar, typed


def all_true_mask(n_q: int, n_k: int) -> Bool[Array, "n_q n_k"]:
    """Every query may attend to every key."""
    return np.ones((n_q, n_k), bool)


def all_false_mask(n_q: int, n_k: int) -> Bool[Array, "n_q n_k"]:
    """No query may attend to any key."""
    return np.zeros((n_q, n_k), bool)


def causal_mask(n: int) -> Bool[Array, "n n"]:
    """Query i may attend to key j where j <= i: itself and the past."""
    return np.tri(n, dtype=bool)


def future_mask(n: int) -> Bool[Array, "n n"]:
    """Query i may attend to key j where i < j: strictly the future."""
    return ~np.tri(n, dtype=bool)


def attention_scale_denom(d: int, dtype: np.dtype) -> Any:
    """sqrt(d); 1 for d = 0, where no column carries the scores anywhere."""
    return np.sqrt(scalars.scalar(max(d, 1), dtype))


def require_queries_and_keys(q: Array, k: Array) -> None:
    """Raise `InvalidArray` if there is no query or no key."""
    if q.shape[-2] == 0 or k.shape[-2] == 0:
        raise InvalidArray(
            f"attention needs at least one query and one key, got {q.shape[-2]} and {k.shape[-2]}"
        )


@typed
def attention_weights(
    q: Scalar[Array, "*heads n_q d"],
    k: Scalar[Array, "*heads n_k d"],
    mask: Bool[Array, "n_q n_k"] | None = None,
) -> Scalar[Array, "*heads n_q n_k"]:
    """A = softmax(c Q K^T), hard-masked if there is a mask.

    Raises:
        InvalidArray: there is no query or no key.
    """
    require_queries_and_keys(q, k)
    scale = 1 / attention_scale_denom(q.shape[-1], q.dtype)
    scores = matmul(q, k.swapaxes(-1, -2))
    scores *= scale  # in place: the array is this function's own
    return softmax(scores) if mask is None else hard_masked_softmax(scores, mask)


@typed
def scaled_dot_product_attention(
    q: Scalar[Array, "*heads n_q d"],
    k: Scalar[Array, "*heads n_k d"],
    v: Scalar[Array, "*heads n_k e"],
    mask: Bool[Array, "n_q n_k"] | None = None,
) -> Scalar[Array, "*heads n_q e"]:
    """A V, with A from `attention_weights`."""
    return matmul(attention_weights(q, k, mask), v)


@typed
def scaled_dot_product_attention_backward(
    q: Scalar[Array, "*heads n_q d"],
    k: Scalar[Array, "*heads n_k d"],
    v: Scalar[Array, "*heads n_k e"],
    d_out: Scalar[Array, "*heads n_q e"],
    mask: Bool[Array, "n_q n_k"] | None = None,
    weights: Scalar[Array, "*heads n_q n_k"] | None = None,
) -> tuple[
    Scalar[Array, "*heads n_q d"], Scalar[Array, "*heads n_k d"], Scalar[Array, "*heads n_k e"]
]:
    """The cotangents (d_q, d_k, d_v); `weights` saves computing A again."""
    require_queries_and_keys(q, k)
    weights = attention_weights(q, k, mask) if weights is None else weights
    scale = 1 / attention_scale_denom(q.shape[-1], q.dtype)
    d_weights = matmul(d_out, v.swapaxes(-1, -2))
    d_scores = softmax_backward_from_weights(weights, d_weights)
    d_scores *= scale
    d_v = matmul(weights.swapaxes(-1, -2), d_out)
    return matmul(d_scores, k), matmul(d_scores.swapaxes(-1, -2), q), d_v


@typed
def scaled_dot_product_attention_jvp(
    q: Scalar[Array, "*heads n_q d"],
    k: Scalar[Array, "*heads n_k d"],
    v: Scalar[Array, "*heads n_k e"],
    dq: Scalar[Array, "*heads n_q d"],
    dk: Scalar[Array, "*heads n_k d"],
    dv: Scalar[Array, "*heads n_k e"],
    mask: Bool[Array, "n_q n_k"] | None = None,
    weights: Scalar[Array, "*heads n_q n_k"] | None = None,
) -> Scalar[Array, "*heads n_q e"]:
    """The tangent of the output along (dq, dk, dv); `weights` saves computing A again."""
    require_queries_and_keys(q, k)
    weights = attention_weights(q, k, mask) if weights is None else weights
    scale = 1 / attention_scale_denom(q.shape[-1], q.dtype)
    d_scores = (matmul(dq, k.swapaxes(-1, -2)) + matmul(q, dk.swapaxes(-1, -2))) * scale
    d_weights = softmax_backward_from_weights(weights, d_scores)
    return matmul(d_weights, v) + matmul(weights, dv)
