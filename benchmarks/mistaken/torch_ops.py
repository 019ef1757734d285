"""Layer normalisation, activations and products in PyTorch, with the mistakes that are made there.

Mistakes in a forward are differentiated by autograd. Mistakes in a backward are written as people
write them, in a `torch.autograd.Function`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import Tensor

Mistakes = frozenset[str]


def by_hand(forward: Callable[..., Tensor], backward: Callable[..., Any]) -> Callable[..., Tensor]:
    """A function of tensors whose backward is written by hand: (d_out, *inputs) -> gradients."""

    class ByHand(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Tensor) -> Tensor:
            ctx.save_for_backward(*inputs)
            return forward(*inputs)

        @staticmethod
        def backward(ctx: Any, d_out: Tensor) -> Any:
            return backward(d_out, *ctx.saved_tensors)

    return ByHand.apply


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
    x: Tensor, gamma: Tensor, beta: Tensor, eps: float, m: Mistakes, later: Tensor | None = None
) -> Tensor:
    """Of each row of x (B, n, D); `later` is what a mistaken backward takes for x."""
    for name in m & EPSILONS.keys():
        eps = EPSILONS[name]
    if "gamma-and-beta-gradients-missing" in m:
        gamma, beta = gamma.detach(), beta.detach()
    if later is not None:
        return by_hand(
            lambda x, gamma, beta, later: F.layer_norm(x, x.shape[-1:], gamma, beta, eps),
            lambda d_y, x, gamma, beta, later: (
                *layer_norm_backward(d_y, later, gamma, eps, m), None,
            ),
        )(x, gamma, beta, later)  # fmt: skip
    if m & NORM_BACKWARD:
        return by_hand(
            lambda x, gamma, beta: F.layer_norm(x, x.shape[-1:], gamma, beta, eps),
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


def normalize(x: Tensor, eps: float, m: Mistakes) -> Tensor:
    """Without gain and shift."""
    if "layer-norm-over-tokens" in m:
        return F.layer_norm(x.mT, x.shape[1:2], eps=eps).mT
    if "layer-norm-over-everything" in m:
        return F.layer_norm(x, x.shape[1:], eps=eps)
    if "layer-norm-not-centred" in m:
        return F.rms_norm(x, x.shape[-1:], eps=eps)
    mean = x.mean(-1, keepdim=True)
    if "layer-norm-eps-outside-root" in m:
        return (x - mean) / (x.std(-1, keepdim=True, correction=0) + eps)
    if "layer-norm-eps-as-floor" in m:
        variance = x.var(-1, keepdim=True, correction=0)
        return (x - mean) / torch.sqrt(variance.clamp(min=eps))
    if "layer-norm-sample-variance" in m:
        return (x - mean) / torch.sqrt(x.var(-1, keepdim=True) + eps)
    if "layer-norm-fast-variance" in m:
        variance = (x * x).mean(-1, keepdim=True) - mean**2
        return (x - mean) * torch.rsqrt(variance + eps)
    return F.layer_norm(x, x.shape[-1:], eps=eps)


def layer_norm_backward(
    d_y: Tensor, x: Tensor, gamma: Tensor, eps: float, m: Mistakes
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, gamma and beta, as they are written in fused kernels."""
    if "layer-norm-gradient-without-eps" in m:
        eps = 0.0
    mean = x.mean(-1, keepdim=True)
    std = torch.sqrt(x.var(-1, keepdim=True, correction=0) + eps)
    normed = (x - mean) / std
    d_normed = d_y if "layer-norm-gradient-without-gamma" in m else d_y * gamma
    mean_of = torch.sum if "layer-norm-gradient-with-sums" in m else torch.mean
    d_x = d_normed
    if "layer-norm-gradient-without-mean" not in m:
        d_x = d_x - mean_of(d_normed, -1, keepdim=True)
    if "layer-norm-gradient-without-projection" not in m:
        d_x = d_x - normed * mean_of(d_normed * normed, -1, keepdim=True)
    if "layer-norm-gradient-not-divided" not in m:
        d_x = d_x / std
    d_gamma = (d_y * (x if "gamma-gradient-not-normalised" in m else normed)).sum((0, 1))
    d_beta = d_y.sum((0, 1))
    if "gamma-and-beta-gradients-swapped" in m:
        d_gamma, d_beta = d_beta, d_gamma
    return d_x, d_gamma, d_beta


# ---- activations ---------------------------------------------------------------------------------


def activation(z: Tensor, name: str, m: Mistakes) -> Tensor:
    """The function that the configuration names, entry by entry."""
    if "activation-missing" in m:
        return z
    if "activation-silu" in m:
        return F.silu(z)
    if "activation-relu" in m:
        return F.relu(z)
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


def slope(z: Tensor, name: str) -> Tensor:
    """The derivative of the right activation."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        return torch.autograd.grad(activation(z, name, frozenset()).sum(), z)[0]


def relu(z: Tensor, m: Mistakes) -> Tensor:
    """The Lean mirror's activation, and one of the practical family's."""
    if "activation-gelu" in m:
        return F.gelu(z)
    if "activation-gelu-tanh" in m:
        return F.gelu(z, approximate="tanh")
    if "activation-quick-gelu" in m:
        return quick_gelu(z)
    if "relu-gradient-of-the-identity" in m:
        return by_hand(F.relu, lambda d_y, z: d_y)(z)
    return F.relu(z)


def gelu(z: Tensor, m: Mistakes) -> Tensor:
    """The exact one."""
    if "gelu-tanh" in m:
        return F.gelu(z, approximate="tanh")
    if "gelu-quick" in m:
        return quick_gelu(z)
    if "gelu-gradient-without-density" in m:
        return by_hand(F.gelu, lambda d_y, z: d_y * (1 + torch.erf(z / math.sqrt(2))) / 2)(z)
    if "gelu-gradient-of-tanh" in m:
        return by_hand(
            F.gelu, lambda d_y, z: torch.ops.aten.gelu_backward(d_y, z, approximate="tanh")
        )(z)
    if "gelu-erf-not-scaled" in m:
        return z * (1 + torch.erf(z)) / 2
    if m & GELU_BACKWARD:
        return by_hand(F.gelu, lambda d_y, z: d_y * gelu_slope(z, m))(z)
    return F.gelu(z)


GELU_BACKWARD = {
    "gelu-gradient-of-quick",
    "gelu-gradient-density-not-normalised",
    "gelu-gradient-factor-misplaced",
}


def gelu_slope(z: Tensor, m: Mistakes) -> Tensor:
    """The exact GELU's derivative, as it is written by hand."""
    if "gelu-gradient-of-quick" in m:
        s = torch.sigmoid(1.702 * z)
        return s + 1.702 * z * s * (1 - s)
    below, density = 1 + torch.erf(z / math.sqrt(2)), torch.exp(-z * z / 2)
    if "gelu-gradient-density-not-normalised" in m:
        return below / 2 + z * density
    return 0.5 * (below + z * density / math.sqrt(2 * math.pi))  # the factor is misplaced


def gelu_tanh(z: Tensor, m: Mistakes) -> Tensor:
    """The approximation by tanh."""
    if "gelu-exact-for-tanh" in m:
        return F.gelu(z)
    scale = math.sqrt(2 / math.pi)
    if "gelu-tanh-without-cube" in m:
        return z * (1 + torch.tanh(scale * z)) / 2
    if "gelu-tanh-gradient-without-3" in m:

        def backward(d_y: Tensor, z: Tensor) -> Tensor:
            t = torch.tanh(scale * (z + 0.044715 * z**3))
            inner = scale * (1 + 0.044715 * z**2)
            return d_y * ((1 + t) / 2 + z * (1 - t * t) * inner / 2)

        return by_hand(lambda z: F.gelu(z, approximate="tanh"), backward)(z)
    return F.gelu(z, approximate="tanh")


def quick_gelu(z: Tensor, by: float = 1.702) -> Tensor:
    """OpenAI's approximation."""
    return z * torch.sigmoid(by * z)


# ---- the feed-forward ----------------------------------------------------------------------------


def add_bias(x: Tensor, bias: Tensor, averaged: bool) -> Tensor:
    """Whose gradient is added up over the tokens, or is their mean by mistake."""
    if averaged:
        return by_hand(torch.add, lambda d_y, x, b: (d_y, d_y.mean(1).sum(0)))(x, bias)
    return x + bias


def feed_forward(
    x: Tensor, p: dict[str, Tensor], act: str, m: Mistakes, note: Callable[[str, Tensor], None]
) -> Tensor:
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
            lambda d_y, a, z, w: (d_y @ w.mT, None, torch.einsum("bnf,bnd->fd", z, d_y)),
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
