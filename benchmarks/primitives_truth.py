"""What the primitives of a Vision Transformer are, to more digits than any library returns.

`ONE_ARGUMENT` has each function of one number: its value in float64, accurate enough for 32 and 16
bits, its value as a ball of python-flint for float64, and the *scale* that an error of it is
measured by: an error is c u times the scale, u being the unit roundoff. The scale is

- |f|, the value itself, where nothing is added afterwards: exp, log, roots, quotients;
- 1 for erf, erfc, tanh and the logistic function, which a model adds to 1 or has made of such a
  sum, and for the derivatives of tanh and GELU;
- |x| for activations x P(x), whose second factor is at most 1;
- 1 + |x u'| for the derivatives of gelu_tanh and quick_gelu, which multiply x u' by the derivative
  of tanh u or of the logistic function of u, whose error is of 1; only where |u| <= 20 and <= 40,
  as beyond that tanh and the logistic function are 1 in every library.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

Function = Callable[[Any], Any]


@dataclass(frozen=True)
class Primitive:
    """A function of one number.

    Attributes:
        value: in float64, on arrays.
        ball: of one `flint.arb`.
        scale: what an error is relative to: "f", "1", "x", or "1 + |x u'|".
        side: the arguments that it is measured on: 1 for positive, -1 for negative, 0 for all.
        binades: the exponents of 2 between which every float32 is tried.
        function: its name in the libraries, if that is another one.
    """

    value: Function
    ball: Function
    scale: str
    side: int = 0
    binades: tuple[int, int] = (-10, 5)
    function: str = ""
    slope: Function | None = None

    def has(self, x: np.ndarray) -> np.ndarray:
        """Which of the arguments it is measured on."""
        return x * self.side > 0 if self.side else np.ones(x.shape, bool)

    def scales(self, x: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """What an error at each x is relative to."""
        if self.slope is not None:
            return 1 + np.abs(self.slope(x))
        return {"f": np.abs(truth), "1": np.ones_like(x), "x": np.abs(x)}[self.scale]


SLOPE, CUBIC, ROOT = 1.702, 0.044715, math.sqrt(2 / math.pi)


def _inner(x: Any) -> tuple[Any, Any]:
    """The argument u of gelu_tanh's tanh, and u'."""
    return ROOT * (x + CUBIC * x * x * x), ROOT * (1 + 3 * CUBIC * x * x)


def _gelu_deriv(x: Any) -> Any:
    return special.ndtr(x) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _gelu_tanh_deriv(x: Any) -> Any:
    u, slope = _inner(x)
    s, rest = special.expit(2 * u), special.expit(-2 * u)  # (1 + tanh u) / 2, and what 1 lacks
    return s + 2 * s * rest * (x * slope)


def _quick_gelu_deriv(x: Any) -> Any:
    s, rest = special.expit(SLOPE * x), special.expit(-SLOPE * x)
    return s + SLOPE * x * s * rest


def _ball_logistic(z: Any) -> Any:
    return 1 / (1 + (-z).exp())


def _ball_inner(x: Any) -> tuple[Any, Any]:
    from flint import arb

    root, cubic = (2 / arb.pi()).sqrt(), arb(44715) / 1000000
    return root * (x + cubic * x * x * x), root * (1 + 3 * cubic * x * x)


def _ball_gelu(x: Any) -> Any:
    from flint import arb

    return x * (-x / arb(2).sqrt()).erfc() / 2


def _ball_gelu_deriv(x: Any) -> Any:
    from flint import arb

    density = (-x * x / 2).exp() / (2 * arb.pi()).sqrt()
    return (-x / arb(2).sqrt()).erfc() / 2 + x * density


def _ball_gelu_tanh_deriv(x: Any) -> Any:
    u, slope = _ball_inner(x)
    s, rest = _ball_logistic(2 * u), _ball_logistic(-2 * u)
    return s + 2 * s * rest * x * slope


def _ball_quick_gelu_deriv(x: Any) -> Any:
    from flint import arb

    z = arb(1702) / 1000 * x
    return _ball_logistic(z) + z * _ball_logistic(z) * _ball_logistic(-z)


def _ball_quick_gelu(x: Any) -> Any:
    from flint import arb

    return x * _ball_logistic(arb(1702) / 1000 * x)


def _tanh_slope(x: np.ndarray) -> np.ndarray:
    """x u', where tanh u is not 1 in all libraries."""
    u, slope = _inner(x)
    return np.where(np.abs(u) <= 20, x * slope, 0)


def _quick_slope(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(SLOPE * x) <= 40, SLOPE * x, 0)


PERIODIC = (-2, 2)  # what happens in two binades happens in all, as 4 has a root and an inverse

ONE_ARGUMENT = {
    "gelu": Primitive(lambda x: x * special.ndtr(x), _ball_gelu, "x"),
    "gelu_derivative": Primitive(_gelu_deriv, _ball_gelu_deriv, "1"),
    "tanh": Primitive(np.tanh, lambda x: x.tanh(), "1"),
    "exp": Primitive(np.exp, lambda x: x.exp(), "f", side=-1, binades=(-10, 7)),
    "erf": Primitive(special.erf, lambda x: x.erf(), "1"),
    "erfc": Primitive(special.erfc, lambda x: x.erfc(), "1"),
    "gelu_tanh": Primitive(
        lambda x: x * special.expit(2 * _inner(x)[0]),
        lambda x: x * _ball_logistic(2 * _ball_inner(x)[0]),
        "x",
    ),
    "gelu_tanh_derivative": Primitive(
        _gelu_tanh_deriv, _ball_gelu_tanh_deriv, "1 + |x u'|", slope=_tanh_slope
    ),
    "sigmoid": Primitive(special.expit, _ball_logistic, "1"),
    "quick_gelu": Primitive(lambda x: x * special.expit(SLOPE * x), _ball_quick_gelu, "x"),
    "quick_gelu_derivative": Primitive(
        _quick_gelu_deriv, _ball_quick_gelu_deriv, "1 + |x u'|", slope=_quick_slope
    ),
    "tanh_derivative": Primitive(lambda x: np.cosh(x) ** -2, lambda x: x.cosh() ** -2, "1"),
    "exp_positive": Primitive(
        np.exp, lambda x: x.exp(), "f", side=1, binades=(-10, 7), function="exp"
    ),
    "log": Primitive(np.log, lambda x: x.log(), "f", side=1),
    "sqrt": Primitive(np.sqrt, lambda x: x.sqrt(), "f", side=1, binades=PERIODIC),
    "rsqrt": Primitive(
        lambda x: 1 / np.sqrt(x), lambda x: x.rsqrt(), "f", side=1, binades=PERIODIC
    ),
    "reciprocal": Primitive(lambda x: 1 / x, lambda x: 1 / x, "f", binades=PERIODIC),
}
