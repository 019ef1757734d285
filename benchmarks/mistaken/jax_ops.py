"""Layer normalisation, activations and products in JAX, with the mistakes that are made there.

Mistakes in a forward are differentiated by JAX. Mistakes in a backward are written as people write
them, with `jax.custom_vjp`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

Mistakes = frozenset[str]


def by_hand(forward: Callable[..., Array], backward: Callable[..., Any]) -> Callable[..., Array]:
    """A function of tensors whose backward is written by hand: (d_out, *inputs) -> gradients."""

    def gradients(inputs: tuple[Array, ...], d_out: Array) -> tuple[Array, ...]:
        found = backward(d_out, *inputs)
        found = found if isinstance(found, tuple) else (found,)
        pairs = zip(inputs, found, strict=True)
        return tuple(jnp.zeros_like(x) if d_x is None else d_x for x, d_x in pairs)

    function = jax.custom_vjp(forward)
    function.defvjp(lambda *inputs: (forward(*inputs), inputs), gradients)
    return function


# ---- layer normalisation -------------------------------------------------------------------------

NORM_BACKWARD = {
    "layer-norm-gradient-without-projection",
    "layer-norm-gradient-without-mean",
    "layer-norm-gradient-without-gamma",
    "gamma-gradient-not-normalised",
    "gamma-and-beta-gradients-swapped",
    "layer-norm-gradient-with-sums",
    "layer-norm-gradient-not-divided",
    "layer-norm-gradient-without-eps",
}
EPSILONS = {
    "layer-norm-eps-1e-3": 1e-3,
    "layer-norm-eps-1e-5": 1e-5,
    "layer-norm-eps-1e-6": 1e-6,
    "layer-norm-eps-1e-12": 1e-12,
}


def layer_norm(
    x: Array, gamma: Array, beta: Array, eps: float, m: Mistakes, later: Array | None = None
) -> Array:
    """Of each row of x (B, n, D); `later` is what a mistaken backward takes for x."""
    for name in m & EPSILONS.keys():
        eps = EPSILONS[name]
    if "gamma-and-beta-gradients-missing" in m:
        gamma, beta = stop_gradient(gamma), stop_gradient(beta)
    if later is not None:
        return by_hand(
            lambda x, gamma, beta, later: standardize(x, -1, eps) * gamma + beta,
            lambda d_y, x, gamma, beta, later: (
                *layer_norm_backward(d_y, later, gamma, eps, m), None,
            ),
        )(x, gamma, beta, later)  # fmt: skip
    if m & NORM_BACKWARD:
        return by_hand(
            lambda x, gamma, beta: standardize(x, -1, eps) * gamma + beta,
            lambda d_y, x, gamma, beta: layer_norm_backward(d_y, x, gamma, eps, m),
        )(x, gamma, beta)
    normed = normalize(x, eps, m)
    if "layer-norm-gamma-plus-one" in m:
        gamma = 1 + gamma
    if "layer-norm-without-shift" in m:
        return normed * gamma
    if "layer-norm-shift-before-scale" in m:
        return (normed + beta) * gamma
    return normed * gamma + beta


def normalize(x: Array, eps: float, m: Mistakes) -> Array:
    """Without gain and shift."""
    if "layer-norm-over-tokens" in m:
        return standardize(x, 1, eps)
    if "layer-norm-over-everything" in m:
        return standardize(x, (1, 2), eps)
    if "layer-norm-not-centred" in m:
        return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + eps)
    mean = x.mean(-1, keepdims=True)
    if "layer-norm-eps-outside-root" in m:
        return (x - mean) / (x.std(-1, keepdims=True) + eps)
    if "layer-norm-eps-as-floor" in m:
        variance = x.var(-1, keepdims=True)
        return (x - mean) / jnp.sqrt(jnp.maximum(variance, eps))
    if "layer-norm-sample-variance" in m:
        return (x - mean) / jnp.sqrt(x.var(-1, keepdims=True, ddof=1) + eps)
    if "layer-norm-fast-variance" in m:
        variance = (x * x).mean(-1, keepdims=True) - mean**2
        return (x - mean) * jax.lax.rsqrt(variance + eps)
    return standardize(x, -1, eps)


def standardize(x: Array, axis: int | tuple[int, int], eps: float) -> Array:
    """To mean 0 and variance 1 along some axes."""
    return (x - x.mean(axis, keepdims=True)) / jnp.sqrt(x.var(axis, keepdims=True) + eps)


def layer_norm_backward(
    d_y: Array, x: Array, gamma: Array, eps: float, m: Mistakes
) -> tuple[Array, Array, Array]:
    """The gradients of x, gamma and beta, as they are written in fused kernels."""
    if "layer-norm-gradient-without-eps" in m:
        eps = 0.0
    mean = x.mean(-1, keepdims=True)
    std = jnp.sqrt(x.var(-1, keepdims=True) + eps)
    normed = (x - mean) / std
    d_normed = d_y if "layer-norm-gradient-without-gamma" in m else d_y * gamma
    mean_of = jnp.sum if "layer-norm-gradient-with-sums" in m else jnp.mean
    d_x = d_normed
    if "layer-norm-gradient-without-mean" not in m:
        d_x = d_x - mean_of(d_normed, -1, keepdims=True)
    if "layer-norm-gradient-without-projection" not in m:
        d_x = d_x - normed * mean_of(d_normed * normed, -1, keepdims=True)
    if "layer-norm-gradient-not-divided" not in m:
        d_x = d_x / std
    d_gamma = (d_y * (x if "gamma-gradient-not-normalised" in m else normed)).sum((0, 1))
    d_beta = d_y.sum((0, 1))
    if "gamma-and-beta-gradients-swapped" in m:
        d_gamma, d_beta = d_beta, d_gamma
    return d_x, d_gamma, d_beta


# ---- activations ---------------------------------------------------------------------------------


def activation(z: Array, name: str, m: Mistakes) -> Array:
    """The function that the configuration names, entry by entry."""
    if "activation-missing" in m:
        return z
    if "activation-silu" in m:
        return jax.nn.silu(z)
    if "activation-relu" in m:
        return jax.nn.relu(z)
    if "relu-gradient-replaces" in m:
        right = m - {"relu-gradient-replaces"}
        return by_hand(
            lambda z: activation(z, name, right), lambda d_y, z: slope(z, name)
        )(z)  # fmt: skip
    if name == "relu":
        return relu(z, m)
    if name == "gelu":
        return gelu(z, m)
    if name == "gelu_tanh":
        return gelu_tanh(z, m)
    return quick_gelu(z, 1.72 if "quick-gelu-slope-1-72" in m else 1.702)


def slope(z: Array, name: str) -> Array:
    """The derivative of the right activation."""
    return jax.grad(lambda z: activation(z, name, frozenset()).sum())(z)


def relu(z: Array, m: Mistakes) -> Array:
    """The Lean mirror's activation, and one of the practical family's."""
    if "activation-gelu" in m:
        return exact_gelu(z)
    if "activation-gelu-tanh" in m:
        return jax.nn.gelu(z)
    if "activation-quick-gelu" in m:
        return quick_gelu(z)
    if "relu-gradient-of-the-identity" in m:
        return by_hand(jax.nn.relu, lambda d_y, z: d_y)(z)
    return jax.nn.relu(z)


def exact_gelu(z: Array) -> Array:
    """JAX's default is the approximation."""
    return jax.nn.gelu(z, approximate=False)


def gelu(z: Array, m: Mistakes) -> Array:
    """The exact one."""
    if "gelu-tanh" in m:
        return jax.nn.gelu(z)
    if "gelu-quick" in m:
        return quick_gelu(z)
    if "gelu-gradient-without-density" in m:
        return by_hand(exact_gelu, lambda d_y, z: d_y * (1 + jax.lax.erf(z / math.sqrt(2))) / 2)(z)
    if "gelu-gradient-of-tanh" in m:
        return by_hand(exact_gelu, lambda d_y, z: d_y * slope(z, "gelu_tanh"))(z)
    if "gelu-erf-not-scaled" in m:
        return z * (1 + jax.lax.erf(z)) / 2
    if m & GELU_BACKWARD:
        return by_hand(exact_gelu, lambda d_y, z: d_y * gelu_slope(z, m))(z)
    return exact_gelu(z)


GELU_BACKWARD = {
    "gelu-gradient-of-quick",
    "gelu-gradient-density-not-normalised",
    "gelu-gradient-factor-misplaced",
}


def gelu_slope(z: Array, m: Mistakes) -> Array:
    """The exact GELU's derivative, as it is written by hand."""
    if "gelu-gradient-of-quick" in m:
        s = jax.nn.sigmoid(1.702 * z)
        return s + 1.702 * z * s * (1 - s)
    below, density = 1 + jax.lax.erf(z / math.sqrt(2)), jnp.exp(-z * z / 2)
    if "gelu-gradient-density-not-normalised" in m:
        return below / 2 + z * density
    return 0.5 * (below + z * density / math.sqrt(2 * math.pi))  # the factor is misplaced


def gelu_tanh(z: Array, m: Mistakes) -> Array:
    """The approximation by tanh."""
    if "gelu-exact-for-tanh" in m:
        return exact_gelu(z)
    scale = math.sqrt(2 / math.pi)
    if "gelu-tanh-without-cube" in m:
        return z * (1 + jnp.tanh(scale * z)) / 2
    if "gelu-tanh-gradient-without-3" in m:

        def backward(d_y: Array, z: Array) -> Array:
            t = jnp.tanh(scale * (z + 0.044715 * z**3))
            inner = scale * (1 + 0.044715 * z**2)
            return d_y * ((1 + t) / 2 + z * (1 - t * t) * inner / 2)

        return by_hand(lambda z: jax.nn.gelu(z), backward)(z)
    return jax.nn.gelu(z)


def quick_gelu(z: Array, by: float = 1.702) -> Array:
    """OpenAI's approximation."""
    return z * jax.nn.sigmoid(by * z)


# ---- the feed-forward ----------------------------------------------------------------------------


def add_bias(x: Array, bias: Array, averaged: bool) -> Array:
    """Whose gradient is added up over the tokens, or is their mean by mistake."""
    if averaged:
        return by_hand(jnp.add, lambda d_y, x, b: (d_y, d_y.mean(1).sum(0)))(x, bias)
    return x + bias


def feed_forward(
    x: Array, p: dict[str, Array], act: str, m: Mistakes, note: Callable[[str, Array], None]
) -> Array:
    """Two products with an activation between them."""
    w1, w2, b1, b2 = (p[f"ffn.{name}"] for name in ("w1", "w2", "b1", "b2"))
    if "feed-forward-weight-transposed" in m:  # nn.Linear has (out, in)
        w1 = w1.reshape(w1.shape[::-1]).mT
    if "feed-forward-second-weight-transposed" in m:
        w2 = w2.mT.reshape(w2.shape)
    hidden = x @ w1
    if "feed-forward-bias-missing" not in m:
        hidden = add_bias(hidden, b1, "bias-gradient-averaged" in m)
    activated = activation(hidden, act, m)
    if "weight-gradient-of-the-pre-activation" in m:
        product = by_hand(
            lambda a, z, w: a @ w,
            lambda d_y, a, z, w: (d_y @ w.mT, None, jnp.einsum("bnf,bnd->fd", z, d_y)),
        )(activated, hidden, w2)
    else:
        product = activated @ w2
    output = product if "feed-forward-second-bias-missing" in m else product + b2
    if "activation-after-the-second-matrix" in m:
        output = activation(output, act, m)
    note("ffn.hidden", hidden)
    note("ffn.activated", activated)
    note("ffn.output", output)
    return output
