"""The activations of the feed-forward: GELU, two approximations of it, and ReLU.

    gelu(x)       = x P(x),   P(x) = erfc(-x / sqrt 2) / 2, the normal distribution function
    gelu_tanh(x)  = x (1 + tanh u) / 2,   u = sqrt(2 / pi) (x + 0.044715 x^3)
    quick_gelu(x) = x s(1.702 x),   s(z) = 1 / (1 + exp(-z))

and their derivatives, with the normal density p(x) = exp(-x^2 / 2) / sqrt(2 pi):

    gelu'       = P + x p
    gelu_tanh'  = (1 + t) / 2 + x (1 - t^2) sqrt(2 / pi) (1 + 3 * 0.044715 x^2) / 2,   t = tanh u
    quick_gelu' = s + 1.702 x s (1 - s)

They differ by up to 4.7e-4 (tanh) and 2.0e-2 (quick): taking one for another is the commonest
mistake in ports of ViTs.

Source: Hendrycks and Gimpel, 1606.08415.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from vitspec import scalars
from vitspec.layers.activation import relu, relu_deriv
from vitspec.scalars import scalar
from vitspec.typing import Array, Scalar, typed


@typed
def gelu(x: Scalar[Array, "*n"]) -> Scalar[Array, "*n"]:
    """x P(x)."""
    return x * normal_distribution(x)


@typed
def gelu_deriv(x: Scalar[Array, "*n"]) -> Scalar[Array, "*n"]:
    """P(x) + x p(x)."""
    density = np.exp(x * x / -2) / np.sqrt(2 * scalars.pi(x.dtype))
    return normal_distribution(x) + x * density


def normal_distribution(x: Array) -> Array:
    """P(x): the share of the standard normal distribution below x.

    By erfc of -x, not by 1 + erf(x): far below 0 that would be 1 - 1, with no digit left.
    """
    return scalars.erfc(x / -np.sqrt(scalar(2, x.dtype))) / 2


@typed
def gelu_tanh(x: Scalar[Array, "*n"]) -> Scalar[Array, "*n"]:
    """x (1 + tanh u) / 2."""
    t, _ = _tanh_and_slope(x)
    return x * (1 + t) / 2


@typed
def gelu_tanh_deriv(x: Scalar[Array, "*n"]) -> Scalar[Array, "*n"]:
    """(1 + t) / 2 + x (1 - t^2) u' / 2."""
    t, slope = _tanh_and_slope(x)
    return (1 + t) / 2 + x * (1 - t * t) * slope / 2


def _tanh_and_slope(x: Array) -> tuple[Array, Array]:
    """tanh u and u', the derivative of u by x."""
    scale = np.sqrt(2 / scalars.pi(x.dtype))
    cubic = scalar("0.044715", x.dtype)
    return np.tanh(scale * (x + cubic * x * x * x)), scale * (1 + 3 * cubic * x * x)


@typed
def quick_gelu(x: Scalar[Array, "*n"]) -> Scalar[Array, "*n"]:
    """x s(1.702 x)."""
    return x * logistic(scalar("1.702", x.dtype) * x)


@typed
def quick_gelu_deriv(x: Scalar[Array, "*n"]) -> Scalar[Array, "*n"]:
    """s + 1.702 x s (1 - s), with s at 1.702 x."""
    slope = scalar("1.702", x.dtype)
    s = logistic(slope * x)
    return s + slope * x * s * (1 - s)


def logistic(z: Array) -> Array:
    """1 / (1 + exp(-z)), as (1 + tanh(z / 2)) / 2, which never overflows."""
    return (1 + np.tanh(z / 2)) / 2


class Pair(NamedTuple):
    """A function of one number, entry by entry, and its derivative."""

    function: Callable[[Array], Array]
    deriv: Callable[[Array], Array]


ACTIVATIONS: Mapping[str, Pair] = {
    "gelu": Pair(gelu, gelu_deriv),
    "gelu_tanh": Pair(gelu_tanh, gelu_tanh_deriv),
    "quick_gelu": Pair(quick_gelu, quick_gelu_deriv),
    "relu": Pair(relu, relu_deriv),
}
"""By the name that configurations have for them."""
