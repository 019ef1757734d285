"""Scaled dot-product attention: what a model needs of one, and a plain one.

For each batch entry and head, with Q (T, h), K (S, h), V (S, h):

    S = Q K^T / sqrt(h)      A = softmax(S), or hard-masked (True = may attend)      out = A V

A query that may attend to nothing has output 0, and passes on cotangent 0.

The model calls a function of the type `AttentionFn`, which needs only to compute the above: the
plain one here, Tokamax's (`vitfast.tokamax_attention`), or anybody's.

Lean: `scaledDotProductAttention`.
"""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from vitfast.ops import accumulate
from vitspec.errors import InvalidArray


@typing.runtime_checkable
class AttentionFn(typing.Protocol):
    """A scaled dot-product attention. It must be hashable: it is a static part of a model."""

    def __call__(
        self,
        query: Float[jax.Array, "batch queries heads head_dim"],
        key: Float[jax.Array, "batch keys heads head_dim"],
        value: Float[jax.Array, "batch keys heads head_dim"],
        mask: Bool[jax.Array, "#batch #heads #queries #keys"] | None = None,
    ) -> Float[jax.Array, "batch queries heads head_dim"]:
        """The formula at the top of this module, with scale 1 / sqrt(head_dim)."""


@dataclass(frozen=True)
class PlainAttention:
    """An `AttentionFn` that writes the formula down, and on a CPU is the fastest.

    It keeps the exponentials of all scores, (batch, heads, queries, keys), for the backward.

    It has the weights, so it can multiply them: by `factors` F, out = (F * A) V, which are 0 or
    1 / (1 - p) under dropout. Factors have no derivative.

    Attributes:
        custom_vjp: whether the backward is the one written by hand; without it, forward mode works.
    """

    custom_vjp: bool = True

    takes_factors: typing.ClassVar[bool] = True
    """Whether it can be called with `factors`, which any attention may say of itself."""

    def __call__(
        self,
        query: Float[jax.Array, "batch queries heads head_dim"],
        key: Float[jax.Array, "batch keys heads head_dim"],
        value: Float[jax.Array, "batch keys heads head_dim"],
        mask: Bool[jax.Array, "#batch #heads #queries #keys"] | None = None,
        factors: Float[jax.Array, "#batch #heads #queries #keys"] | None = None,
    ) -> Float[jax.Array, "batch queries heads head_dim"]:
        """The attention of each query over all keys that the mask allows.

        Raises:
            InvalidArray: the mask is not Boolean.
        """
        check_mask(mask)
        width = value.shape[-1]
        scale = 1 / math.sqrt(query.shape[-1])
        if query.shape[-1] == 1:
            query, key, value = map(second_feature, (query, key, value))
        # Heads before rows: each head's product is then one of plain matrices, in place.
        q, k, v = map(_swap_heads_and_rows, (query * scale, key, value))
        attend = _attend_by_hand if self.custom_vjp else _attend
        if factors is not None:
            factors = jax.lax.stop_gradient(factors)
        return _swap_heads_and_rows(attend(q, k, v, mask, factors))[..., :width]


def attention_weights(
    query: Float[jax.Array, "batch queries heads head_dim"],
    key: Float[jax.Array, "batch keys heads head_dim"],
    mask: Bool[jax.Array, "#batch #heads #queries #keys"] | None = None,
) -> Float[jax.Array, "batch heads queries keys"]:
    """The weights A, which no fused attention ever has as a whole."""
    check_mask(mask)
    q, k = map(_swap_heads_and_rows, (query / math.sqrt(query.shape[-1]), key))
    exponentials, total = _exponentials(q, k, mask)
    return (exponentials / total).astype(query.dtype)


def _attend(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, factors: jax.Array | None
) -> jax.Array:
    return _attend_and_keep(q, k, v, mask, factors)[0]


_attend_by_hand = jax.custom_vjp(_attend)


def _attend_and_keep(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, factors: jax.Array | None
) -> Any:
    """The output (B, H, T, h), and what the backward needs."""
    exponentials, total = _exponentials(q, k, mask)
    exponentials = exponentials.astype(q.dtype)
    # Divided after the product: T h quotients for each head, not T S.
    out = (_matmul(_times(exponentials, factors), v) / total).astype(q.dtype)
    return out, (q, k, v, exponentials, total, out, factors)


def _attend_backward(saved: Any, d_out: jax.Array) -> Any:
    """The cotangents of Q, K and V.

    With E = exp(S - max), z its row sums, O = (F * E) V / z, and d = d_O / z:

    d_V = (F * E)^T d,    d_S = E (F * d V^T - sum(d O)),    d_Q = d_S K,    d_K = d_S^T Q
    """
    q, k, v, exponentials, total, out, factors = saved
    d = (d_out / total).astype(q.dtype)
    d_v = _matmul(_times(exponentials, factors).swapaxes(-1, -2), d)
    shift = (d.astype(total.dtype) * out).sum(axis=-1, keepdims=True)
    d_weights = _times(_matmul(d, v.swapaxes(-1, -2)), factors)
    d_scores = (exponentials * (d_weights - shift)).astype(q.dtype)
    d_q, d_k = _matmul(d_scores, k), _matmul(d_scores.swapaxes(-1, -2), q)
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None, None


def _times(x: jax.Array, factors: jax.Array | None) -> jax.Array:
    return x if factors is None else x * factors.astype(x.dtype)


_attend_by_hand.defvjp(_attend_and_keep, _attend_backward)


def _exponentials(
    q: jax.Array, k: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """exp(S - max of its row), 0 where masked, and its row sums, 1 where all of a row is masked."""
    scores = _matmul(q, k.swapaxes(-1, -2))
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    # A softmax ignores a shift of its row, hence so does its derivative.
    shifted = scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    exponentials = jnp.exp(shifted)
    if mask is None:
        return exponentials, exponentials.sum(axis=-1, keepdims=True)
    exponentials = jnp.where(mask, exponentials, 0)
    total = exponentials.sum(axis=-1, keepdims=True)
    return exponentials, jnp.where(total == 0, 1, total)


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """Products over the last two dimensions, in full precision, in float32 at least."""
    return accumulate(
        lambda a, b, dtype: jnp.matmul(a, b, precision="highest", preferred_element_type=dtype),
        a,
        b,
        jnp.promote_types(a.dtype, jnp.float32),
    )


def _swap_heads_and_rows(x: jax.Array) -> jax.Array:
    return x.transpose(0, 2, 1, 3)


def check_mask(mask: jax.Array | None) -> None:
    """Raise `InvalidArray` for a mask that is not Boolean."""
    if mask is not None and mask.dtype != bool:
        raise InvalidArray(
            f"mask: expected booleans, True = may attend, got {mask.dtype}; an additive mask "
            "becomes one by `mask == 0`"
        )


def second_feature(x: jax.Array) -> jax.Array:
    """Heads of width 1 with a second feature that is 0, which changes no number.

    On products over an axis of size 1, XLA's compiler for the CPU (jaxlib 0.10.2, 0.12.0) aborts
    from some forty tokens on.
    """
    return jnp.pad(x, [(0, 0)] * 3 + [(0, 1)])
