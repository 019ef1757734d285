"""The activations: their formulas on the real numbers, their derivatives, how far they differ."""

import math

import numpy as np
import pytest
from hypothesis import given, settings

from vitspec import complex_step_derivative, distance_bound, from_reals, to_reals
from vitspec.layers.gelu import ACTIVATIONS, gelu, gelu_deriv, logistic
from vitspec.testing.strategies import seeds

NAMES = sorted(ACTIVATIONS)
BY_HAND = {
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "quick_gelu": lambda x: x / (1 + math.exp(-1.702 * x)),
    "relu": lambda x: max(x, 0.0),
}


def drawn(seed):
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.uniform(-9, 9, 40), rng.standard_normal(40), [0.0]])


@pytest.mark.parametrize("name", NAMES)
@given(seed=seeds)
@settings(max_examples=10)
def test_formula_and_derivative(name, seed):
    x = drawn(seed)
    function, deriv = ACTIVATIONS[name]
    # Absolute: far below 0 digits cancel; at 9, the largest entry, a rounding is 1.8e-15.
    np.testing.assert_allclose(function(x), [BY_HAND[name](v) for v in x], rtol=0, atol=4e-15)
    step = complex_step_derivative(function, x, np.ones_like(x))
    np.testing.assert_allclose(deriv(x), step, rtol=0, atol=4e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.longdouble])
@pytest.mark.parametrize("name", NAMES)
def test_every_float_is_near_the_reals(name, dtype):
    pytest.importorskip("flint", reason="real balls need the extra 'reals'")
    x = drawn(0).astype(dtype)
    for f in ACTIVATIONS[name]:
        value = f(x)
        assert value.dtype == dtype
        bound = 16 * np.finfo(dtype).eps * np.maximum(1, np.abs(x))
        distance = distance_bound(f(to_reals(x)), value)
        kink = (x == 0) & (name == "relu")  # in balls, relu' at 0 is anything from 0 to 1
        assert (distance <= bound)[~kink].all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gelu_keeps_its_digits_far_below_zero(dtype):
    """What is lost is x^2 units in the last place, by the rounding of the argument of erfc."""
    pytest.importorskip("flint", reason="real balls need the extra 'reals'")
    x = np.linspace(-12, 8, 400).astype(dtype)
    for f in (gelu, gelu_deriv):
        true = f(to_reals(x))
        allowed = (2 + 2 * x * x) * np.finfo(dtype).eps * np.abs(from_reals(true))
        if f is gelu_deriv:  # which is 0 near -0.75
            allowed += 2 * np.finfo(dtype).eps * (np.abs(x) < 2)
        assert (distance_bound(true, f(x)) <= allowed).all()


@pytest.mark.parametrize(("name", "distance"), [("gelu_tanh", 4.7e-4), ("quick_gelu", 2.0e-2)])
def test_how_far_the_approximations_are_from_gelu(name, distance):
    x = np.linspace(-10, 10, 20001)
    found = np.abs(ACTIVATIONS[name].function(x) - gelu(x)).max()
    assert 0.98 * distance < found < 1.02 * distance


def test_far_out_nothing_overflows():
    x = np.array([-1000.0, 1000.0])
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        np.testing.assert_array_equal(logistic(x), [0, 1])
        for name in NAMES:
            np.testing.assert_array_equal(ACTIVATIONS[name].function(x), [0, 1000])
            np.testing.assert_array_equal(ACTIVATIONS[name].deriv(x), [0, 1])
