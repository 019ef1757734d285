"""Layer normalisation, activations and products in PyTorch, with the mistakes that are made there.

Mistakes in a forward are differentiated by autograd. Mistakes in a backward are written as people
write them, in a `torch.autograd.Function`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
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
}


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float, m: Mistakes) -> Tensor:
    """Of each row of x (B, n, D)."""
    if "layer-norm-eps-1e-5" in m:
        eps = 1e-5
    if "layer-norm-eps-1e-6" in m:
        eps = 1e-6
    if "layer-norm-eps-1e-12" in m:
        eps = 1e-12
    if "gamma-and-beta-gradients-missing" in m:
        gamma, beta = gamma.detach(), beta.detach()
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
    mean = x.mean(-1, keepdim=True)
    std = torch.sqrt(x.var(-1, keepdim=True, correction=0) + eps)
    normed = (x - mean) / std
    d_normed = d_y if "layer-norm-gradient-without-gamma" in m else d_y * gamma
    d_x = d_normed
    if "layer-norm-gradient-without-mean" not in m:
        d_x = d_x - d_normed.mean(-1, keepdim=True)
    if "layer-norm-gradient-without-projection" not in m:
        d_x = d_x - normed * (d_normed * normed).mean(-1, keepdim=True)
    d_gamma = (d_y * (x if "gamma-gradient-not-normalised" in m else normed)).sum((0, 1))
    d_beta = d_y.sum((0, 1))
    if "gamma-and-beta-gradients-swapped" in m:
        d_gamma, d_beta = d_beta, d_gamma
    return d_x / std, d_gamma, d_beta


# ---- activations ---------------------------------------------------------------------------------


def activation(z: Tensor, name: str, m: Mistakes) -> Tensor:
    """The function that the configuration names, entry by entry."""
    if "activation-missing" in m:
        return z
    if name == "relu":
        return relu(z, m)
    if name == "gelu":
        return gelu(z, m)
    if name == "gelu_tanh":
        return F.gelu(z, approximate="none" if "gelu-exact-for-tanh" in m else "tanh")
    return quick_gelu(z)


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
    if "relu-gradient-replaces" in m:
        return by_hand(F.relu, lambda d_y, z: (z > 0).to(z.dtype))(z)
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
    return F.gelu(z)


def quick_gelu(z: Tensor) -> Tensor:
    """OpenAI's approximation."""
    return z * torch.sigmoid(1.702 * z)


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
    output = product + b2
    note("ffn.hidden", hidden)
    note("ffn.activated", activated)
    note("ffn.output", output)
    return output
