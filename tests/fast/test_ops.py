"""The operations: their hand-written derivatives are the specification's and JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.compare import assert_close
from vitfast.ops import AUTOMATIC, BY_HAND
from vitspec.layers import activation, normalization
from vitspec.layers.gelu import ACTIVATIONS

seeds = st.integers(0, 2**32 - 1)

SHAPES = {
    "one row": (1, 1, 5, 3),
    "few rows": (2, 7, 5, 3),
    "more rows than columns": (3, 20, 4, 6),
}
"""(batch, rows, D, F)."""


def vjp(function, arguments, d_out):
    """The output and the cotangents of all arguments, compiled."""

    @jax.jit
    def both(arguments, d_out):
        out, pullback = jax.vjp(function, *arguments)
        return out, pullback(d_out)

    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, both(arguments, d_out))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@given(seed=seeds)
@settings(max_examples=5)
def test_linear_s_cotangents_are_the_formula_s_and_jax_s(shape, seed):
    B, n, D, F = shape
    rng = np.random.default_rng(seed)
    x, w, b = rng.standard_normal((B, n, D)), rng.standard_normal((D, F)), rng.standard_normal(F)
    d_y = rng.standard_normal((B, n, F))
    y, (d_x, d_w, d_b) = vjp(BY_HAND.linear, (x, w, b), d_y)
    assert_close(y, np.einsum("bnd,df->bnf", x, w) + b, 1e-13, "y")
    assert_close(d_x, np.einsum("bnf,df->bnd", d_y, w), 1e-13, "d_x")
    assert_close(d_w, np.einsum("bnd,bnf->df", x, d_y), 1e-13, "d_w")
    assert_close(d_b, d_y.sum(axis=(0, 1)), 1e-13, "d_b")
    for mine, automatic in zip(
        (d_x, d_w, d_b), vjp(AUTOMATIC.linear, (x, w, b), d_y)[1], strict=True
    ):
        assert_close(mine, automatic, 1e-13, "JAX's own")


@given(seed=seeds, scale=st.sampled_from([1e-6, 1e-3, 1.0, 1e4]), shift=st.floats(-10, 10))
@settings(max_examples=25)
def test_layer_norm_s_cotangents_are_the_specification_s(seed, scale, shift):
    """Also where epsilon counts (small rows) and where the mean is far off 0."""
    rng = np.random.default_rng(seed)
    x = scale * (rng.standard_normal((2, 3, 5)) + shift)
    gamma, beta, d_y = rng.standard_normal(5), rng.standard_normal(5), rng.standard_normal(x.shape)
    y, (d_x, d_gamma, d_beta) = vjp(BY_HAND.layer_norm, (x, gamma, beta), d_y)
    truth = [
        normalization.layer_norm_backward(x_i, gamma, d_i) for x_i, d_i in zip(x, d_y, strict=True)
    ]
    assert_close(y, [normalization.layer_norm(x_i, gamma, beta) for x_i in x], 1e-12, "y")
    assert_close(d_x, [t[0] for t in truth], 1e-11, "d_x")
    assert_close(d_gamma, sum(t[1] for t in truth), 1e-12, "d_gamma")
    assert_close(d_beta, sum(t[2] for t in truth), 1e-12, "d_beta")
    automatic = vjp(AUTOMATIC.layer_norm, (x, gamma, beta), d_y)[1]
    assert_close(d_x, automatic[0], 1e-11, "JAX's own")


@given(seed=seeds)
@settings(max_examples=5)
def test_relu_s_cotangent_is_the_specification_s_and_0_at_0(seed):
    rng = np.random.default_rng(seed)
    x, d_y = rng.standard_normal((2, 3, 5)), rng.standard_normal((2, 3, 5))
    x[0, 1] = 0
    y, (d_x,) = vjp(BY_HAND.relu, (x,), d_y)
    np.testing.assert_array_equal(y, [activation.relu(x_i) for x_i in x])
    truth = [activation.relu_backward(x_i, d_i) for x_i, d_i in zip(x, d_y, strict=True)]
    np.testing.assert_array_equal(d_x, truth)
    np.testing.assert_array_equal(d_x, vjp(AUTOMATIC.relu, (x,), d_y)[1][0])


@given(seed=seeds, scale=st.sampled_from([1e-3, 1.0, 6.0]))
@settings(max_examples=10)
def test_gelu_s_derivative_is_jax_s_in_both_modes(seed, scale):
    rng = np.random.default_rng(seed)
    x, d_y = scale * rng.standard_normal((4, 50)), rng.standard_normal((4, 50))
    y, (d_x,) = vjp(BY_HAND.gelu, (x,), d_y)
    with jax.enable_x64(True):
        expected = np.asarray(jax.nn.gelu(x, approximate=False))
        _, forward = jax.jvp(AUTOMATIC.gelu, (jnp.asarray(x),), (jnp.asarray(d_y),))
    assert_close(y, expected, 1e-14, "y")
    assert_close(d_x, np.asarray(forward), 1e-14, "the same diagonal, forwards")


@pytest.mark.parametrize("name", ACTIVATIONS)
@given(seed=seeds, scale=st.sampled_from([1e-3, 1.0, 6.0]))
@settings(max_examples=5)
def test_activations_and_their_derivatives_are_the_specification_s(name, seed, scale):
    """To a few roundings of what they are made of: in the tails, 1 + tanh cancels."""
    rng = np.random.default_rng(seed)
    x = scale * rng.standard_normal(200)
    function, deriv = ACTIVATIONS[name]
    rounding = 4 * np.finfo(float).eps
    for ops in (BY_HAND, AUTOMATIC):
        y, (d_x,) = vjp(ops.activation(name), (x,), np.ones_like(x))
        assert (np.abs(y - function(x)) <= rounding * np.abs(x)).all()
        # The slope of u, below the tanh, grows with x squared.
        assert (np.abs(d_x - deriv(x)) <= rounding * (1 + np.abs(x)) ** 3).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gradients_of_weights_accumulate_in_the_weights_type(dtype):
    """Rounded to the activations' type, a sum over many rows would lose most of its digits."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 300, 4)), dtype)
    d_y = jnp.asarray(rng.standard_normal((2, 300, 6)), dtype)
    w = jnp.asarray(rng.standard_normal((4, 6)), "float32")
    y, pullback = jax.vjp(BY_HAND.linear, x, w)
    d_x, d_w = pullback(d_y)
    assert (y.dtype, d_x.dtype, d_w.dtype) == (x.dtype, x.dtype, w.dtype)
    exact = np.einsum("bnd,bnf->df", *(np.asarray(a, np.float64) for a in (x, d_y)))
    assert_close(np.asarray(d_w), exact, 1e-5, "d_w")


@pytest.mark.parametrize("ops", [BY_HAND, AUTOMATIC], ids=["by hand", "automatic"])
def test_layer_norm_of_large_float16_rows_does_not_overflow(ops):
    """Squares of 300 are beyond float16."""
    x = jnp.asarray(300 * np.random.default_rng(0).standard_normal((2, 3, 8)), jnp.float16)
    gamma, beta = jnp.ones(8), jnp.zeros(8)
    y = np.asarray(ops.layer_norm(x, gamma, beta), np.float64)
    exact = normalization.layer_norm(
        np.asarray(x, np.float64).reshape(6, 8), np.ones(8), np.zeros(8)
    )
    assert_close(y.reshape(6, 8), exact, 1e-3, "y")
