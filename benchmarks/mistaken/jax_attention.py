"""Attention with several heads in JAX, with the mistakes that are made there."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

from mistaken.jax_ops import Mistakes, add_bias, by_hand

Params = dict[str, Array]
Note = Callable[[str, Array], None]


def attention(
    x: Array,
    p: Params,
    heads: int,
    m: Mistakes,
    note: Note,
    later: Array | None = None,
    unnormed: Array | None = None,
) -> Array:
    """Of the rows of x (B, n, D) to each other; biases where there are some.

    Args:
        x: the input.
        p: the layer's parameters.
        heads: how many.
        m: the mistakes.
        note: what is told of intermediate values.
        later: the layer's output, which a mistaken backward takes for its input.
        unnormed: what keys and values are made of by mistake.
    """
    # Self-attention reads its input three times.
    to_keys = to_values = x if unnormed is None else unnormed
    if "attention-gradient-without-key-path" in m:
        to_keys = stop_gradient(to_keys)
    if "attention-gradient-without-value-path" in m:
        to_values = stop_gradient(to_values)
    q = projection(x, p, "q", heads, m, later)
    k = projection(to_keys, p, "k", heads, m, later)
    v = projection(to_values, p, "v", heads, m, later)
    if "fused-qkv-by-head" in m:
        fused = jnp.concatenate([q, k, v], axis=-1)
        fused = fused.reshape(*x.shape[:2], heads, 3, -1)
        q, k, v = (fused[..., i, :].reshape(q.shape) for i in range(3))
    if "queries-and-keys-swapped" in m:
        q, k = k, q
    if "keys-and-values-swapped" in m:
        k, v = v, k
    if "head-count-and-head-dim-exchanged" in m:
        heads = max(q.shape[-1] // heads, 1)
    q, k, v = (split(y, heads, m) for y in (q, k, v))
    weights = softmax(scores(q, k, heads, m), m)
    if "attention-scale-after-softmax" in m:
        weights = weights * q.shape[-1] ** -0.5
    context = combine(averaged(weights, v, m), m)
    output = context
    if "output-projection-missing" in m:  # the Lean mirror's heads may be narrower than the rows
        output = jnp.pad(context, ((0, 0), (0, 0), (0, x.shape[-1] - context.shape[-1])))
    else:
        wo = p["mha.wo"]
        output = context @ (wo.mT.reshape(wo.shape) if "output-weight-transposed" in m else wo)
        if "mha.bo" in p and "output-bias-missing" not in m:
            output = output + p["mha.bo"]
    taps = {"q": q, "k": k, "v": v, "weights": weights, "concat": context, "output": output}
    for name, value in taps.items():
        note(f"mha.{name}", value)
    return output


LEFT_OUT = {
    "q": {"qkv-biases-missing", "query-bias-missing"},
    "k": {"qkv-biases-missing"},
    "v": {"qkv-biases-missing", "value-bias-missing"},
}


def projection(
    x: Array, p: Params, which: str, heads: int, m: Mistakes, later: Array | None
) -> Array:
    """Queries, keys or values."""
    weight, bias = p[f"mha.w{which}"], p.get(f"mha.b{which}")
    if bias is not None and "query-and-value-biases-swapped" in m:
        bias = p[{"q": "mha.bv", "k": "mha.bk", "v": "mha.bq"}[which]]
    if bias is not None and "fused-bias-by-head" in m:
        fused = jnp.concatenate([p[f"mha.b{c}"] for c in "qkv"]).reshape(heads, 3, -1)
        bias = fused[:, "qkv".index(which)].flatten()
    if "attention-weights-transposed" in m:  # nn.Linear has (out, in)
        weight = weight.reshape(weight.shape[::-1]).mT
    if later is not None:
        y = by_hand(
            lambda x, later, w: x @ w,
            lambda d_y, x, later, w: (d_y @ w.mT, None, jnp.einsum("bni,bnj->ij", later, d_y)),
        )(x, later, weight)
    else:
        y = x @ weight
    if bias is None or m & LEFT_OUT[which]:
        return y
    return add_bias(y, bias, which == "v" and "value-bias-gradient-averaged" in m)


def split(y: Array, heads: int, m: Mistakes) -> Array:
    """(B, n, I) -> (B, H, n, d)."""
    B, n, I = y.shape  # noqa: E741
    d = I // heads
    if "heads-split-by-raw-reshape" in m:
        return y.reshape(B, heads, n, d)
    if "attention-across-heads" in m:  # nobody brings the heads in front of the tokens
        return y.reshape(B, n, heads, d)
    if "heads-interleaved" in m:
        return y.reshape(B, n, d, heads).transpose(0, 3, 1, 2)
    return y.reshape(B, n, heads, d).swapaxes(1, 2)


def combine(y: Array, m: Mistakes) -> Array:
    """(B, H, n, d) -> (B, n, I)."""
    if "attention-across-heads" in m:
        return y.reshape(*y.shape[:2], -1)
    B, heads, n, d = y.shape
    if "heads-combined-by-raw-reshape" in m:
        return y.reshape(B, n, heads * d)
    return y.swapaxes(1, 2).reshape(B, n, heads * d)


def scores(q: Array, k: Array, heads: int, m: Mistakes) -> Array:
    """Q K^T, scaled."""
    d = max(q.shape[-1], 1)
    scale = 1 / math.sqrt(d)
    if "key-gradient-not-scaled" in m:
        return by_hand(
            lambda q, k: (q @ k.mT) * scale, lambda d_s, q, k: (d_s @ k * scale, d_s.mT @ q)
        )(q, k)
    if "attention-gradient-scores-transposed" in m:
        product = by_hand(
            lambda q, k: q @ k.mT, lambda d_s, q, k: (d_s.mT @ k, d_s @ q)
        )(q, k)  # fmt: skip
    elif "query-and-key-gradients-swapped" in m:
        product = by_hand(
            lambda q, k: q @ k.mT, lambda d_s, q, k: (d_s.mT @ q, d_s @ k)
        )(q, k)  # fmt: skip
    else:
        product = q @ k.mT
    if m & {"attention-scale-missing", "attention-scale-after-softmax"}:
        return product
    if "attention-scale-by-head-dim" in m:
        return product / d
    if "attention-scale-by-embed-dim" in m:
        return product * (heads * d) ** -0.5
    if "attention-scale-inverted" in m:
        return product * math.sqrt(d)
    if "attention-scale-by-head-count" in m:
        return product / math.sqrt(heads)
    if "attention-scale-of-padded-head-dim" in m:
        return product / math.sqrt(8 * math.ceil(d / 8))
    if "attention-gradient-scale-missing" in m:
        return by_hand(lambda s: s * scale, lambda d_s, s: d_s)(product)
    if "attention-gradient-scale-twice" in m:
        return by_hand(lambda s: s * scale, lambda d_s, s: d_s * scale * scale)(product)
    return product * scale


SOFTMAX_BACKWARD = {
    "softmax-gradient-without-row-dot",
    "softmax-gradient-of-the-diagonal",
    "softmax-gradient-over-queries",
}


def softmax(s: Array, m: Mistakes) -> Array:
    """Over the keys."""
    if "attention-causal" in m:
        s = jnp.where(jnp.tril(jnp.ones(s.shape[-2:], bool)), s, -jnp.inf)
    if "attention-in-windows" in m:
        window = jnp.arange(s.shape[-1]) // 4
        s = jnp.where(window[:, None] == window, s, -jnp.inf)
    if "softmax-missing" in m:
        return s
    if "softmax-over-heads" in m:
        return jax.nn.softmax(s, axis=1)
    if "softmax-denominator-plus-one" in m:
        e = jnp.exp(s)
        return e / (1 + e.sum(-1, keepdims=True))
    if "softmax-over-queries" in m:
        return jax.nn.softmax(s, axis=-2)
    if "softmax-shifted-by-columns" in m:  # the row's maximum, without keepdims=True
        e = jnp.exp(s - s.max(-1)[..., None, :])
        return e / e.sum(-1, keepdims=True)
    if "softmax-not-shifted" in m:
        e = jnp.exp(s)
        return e / e.sum(-1, keepdims=True)
    if m & SOFTMAX_BACKWARD:
        return by_hand(lambda s: jax.nn.softmax(s), lambda d_a, s: softmax_backward(d_a, s, m))(s)
    weights = jax.nn.softmax(s, axis=-1)
    return stop_gradient(weights) if "attention-weights-constant" in m else weights


def softmax_backward(d_a: Array, s: Array, m: Mistakes) -> Array:
    """As it is written by hand."""
    a = jax.nn.softmax(s)
    if "softmax-gradient-without-row-dot" in m:
        return d_a * a
    if "softmax-gradient-of-the-diagonal" in m:
        return d_a * a * (1 - a)
    return a * (d_a - (d_a * a).sum(-2, keepdims=True))  # over queries


def averaged(weights: Array, v: Array, m: Mistakes) -> Array:
    """A V."""
    if "value-gradient-weights-not-transposed" in m:
        return by_hand(jnp.matmul, lambda d_y, a, v: (d_y @ v.mT, a @ d_y))(weights, v)
    if "attention-applied-transposed" in m:
        return weights.mT @ v
    return weights @ v
