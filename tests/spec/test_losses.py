"""The losses: against sums written out by hand, and their gradients against the complex step."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.compare import assert_close
from vitspec import InvalidArray, complex_step_derivative, distance_bound, to_reals
from vitspec.layers import losses
from vitspec.testing.strategies import seeds

sizes = st.integers(1, 7)
smoothings = st.sampled_from(["0", "0.1", "0.37", "1"])


def drawn(K, seed):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(K), rng.uniform(0, 1, K), int(rng.integers(K))


def gradient(f, x):
    """Entry by entry, by the complex step."""
    directions = np.eye(x.size).reshape(x.size, *x.shape)
    return np.array([complex_step_derivative(f, x, v) for v in directions]).reshape(x.shape)


@given(sizes, seeds, smoothings)
def test_cross_entropy(K, seed, smoothing):
    z, _, label = drawn(K, seed)
    e = float(smoothing)
    log_p = [v - math.log(sum(math.exp(w) for w in z)) for v in z]
    by_hand = (1 - e) * -log_p[label] + e * sum(-v for v in log_p) / K
    value = losses.cross_entropy(z, label, smoothing)
    assert value.shape == ()
    assert abs(value - by_hand) <= 1e-13
    found = losses.cross_entropy_backward(z, label, smoothing)
    step = gradient(lambda x: losses.cross_entropy(x, label, smoothing), z)
    # Absolute: a probability less a target cancels; both are at most 1.
    np.testing.assert_allclose(found, step, rtol=0, atol=1e-14)
    np.testing.assert_allclose(found.sum(), 0, atol=1e-14)  # a shift of all logits changes nothing


def test_smoothing_gives_every_class_its_share():
    target = losses.smooth_target(np.zeros(5), 2, "0.1")
    np.testing.assert_allclose(target, [0.02, 0.02, 0.92, 0.02, 0.02], rtol=1e-15)


@given(sizes, seeds)
def test_squared_error(K, seed):
    z, target, _ = drawn(K, seed)
    by_hand = sum((a - b) ** 2 for a, b in zip(z, target, strict=True)) / K
    assert_close(losses.squared_error(z, target), by_hand, 1e-14)
    found = losses.squared_error_backward(z, target)
    assert_close(
        found, gradient(lambda x: losses.squared_error(x, target.astype(complex)), z), 1e-14
    )
    assert_close(found, 2 * (z - target) / K, 1e-15)


@given(sizes, seeds)
def test_binary_cross_entropy(K, seed):
    z, target, _ = drawn(K, seed)
    z[0] = 0.0  # a head that starts at 0
    share = [1 / (1 + math.exp(-v)) for v in z]
    by_hand = -sum(
        t * math.log(p) + (1 - t) * math.log(1 - p) for t, p in zip(target, share, strict=True)
    )
    assert_close(losses.binary_cross_entropy(z, target), by_hand / K, 1e-13)
    found = losses.binary_cross_entropy_backward(z, target)
    step = gradient(lambda x: losses.binary_cross_entropy(x, target.astype(complex)), z)
    np.testing.assert_allclose(found, step, rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.longdouble])
def test_far_out_nothing_overflows(dtype):
    z, target = np.array([-900, 900, 0], dtype), np.array([1, 0, 1], dtype)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        value = losses.binary_cross_entropy(z, target)
        d_z = losses.binary_cross_entropy_backward(z, target)
        entropy = losses.cross_entropy(z, 0, "0.1")
    assert value.dtype == d_z.dtype == entropy.dtype == dtype
    rounding = max(np.finfo(dtype).eps, np.finfo(float).eps)  # the other side is of float64
    assert abs(value - (1800 + math.log(2)) / 3) <= 1000 * rounding
    np.testing.assert_allclose(d_z.astype(float), [-1 / 3, 1 / 3, -1 / 6], rtol=1e-6)
    share = 0.1 / 3
    assert abs(entropy - (1800 * (0.9 + share) + 900 * share)) <= 2000 * rounding


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), seeds)
def test_masked_error(C, H, W, seed):
    rng = np.random.default_rng(seed)
    x, r = rng.standard_normal((2, C, H, W))
    mask = rng.random((H, W)) < 0.5
    by_hand = sum(
        abs(x[c, i, j] - r[c, i, j])
        for c in range(C)
        for i in range(H)
        for j in range(W)
        if mask[i, j]
    ) / (mask.sum() + 1e-5)
    assert_close(losses.masked_error(x, r, mask), by_hand / C, 1e-13)
    found = losses.masked_error_backward(x, r, mask)
    step = gradient(lambda y: losses.masked_error(x.astype(complex), y, mask), r)
    np.testing.assert_allclose(found, step, rtol=1e-13)
    of_pixels = gradient(lambda y: losses.masked_error(y, r.astype(complex), mask), x)
    np.testing.assert_allclose(found, -of_pixels, rtol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.longdouble])
def test_without_a_masked_patch_the_error_is_exactly_zero(dtype):
    rng = np.random.default_rng(0)
    x, r = rng.standard_normal((2, 3, 4, 5)).astype(dtype)
    mask = np.zeros((4, 5), bool)
    value, d_r = losses.masked_error(x, r, mask), losses.masked_error_backward(x, r, mask)
    assert value == 0
    assert not d_r.any()
    assert value.dtype == d_r.dtype == dtype


def test_where_the_reconstruction_is_right_there_is_no_gradient():
    x, mask = np.ones((2, 2, 3)), np.ones((2, 3), bool)
    assert not losses.masked_error_backward(x, x.copy(), mask).any()


@given(sizes, seeds, smoothings)
@settings(max_examples=15)
def test_floats_are_near_the_reals(K, seed, smoothing):
    pytest.importorskip("flint", reason="real balls need the extra 'reals'")
    z, target, label = drawn(K, seed)
    x, r = np.random.default_rng(seed).standard_normal((2, 2, K, 3))
    mask = np.arange(3 * K).reshape(K, 3) % 2 == 0
    for f, arrays, rest in (
        (losses.cross_entropy, (z,), (label, smoothing)),
        (losses.cross_entropy_backward, (z,), (label, smoothing)),
        (losses.squared_error, (z, target), ()),
        (losses.squared_error_backward, (z, target), ()),
        (losses.binary_cross_entropy, (z, target), ()),
        (losses.binary_cross_entropy_backward, (z, target), ()),
        (losses.masked_error, (x, r), (mask,)),
        (losses.masked_error_backward, (x, r), (mask,)),
    ):
        true = f(*(to_reals(a) for a in arrays), *rest)
        assert distance_bound(true, f(*arrays, *rest)).max() <= 1e-14, f.__name__


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_is_one_of_the_classes(label):
    with pytest.raises(InvalidArray, match="label: expected a class from 0 to 3"):
        losses.cross_entropy(np.zeros(4), label)
