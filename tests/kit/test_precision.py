"""Precisions: rounding as the formats do, noise as large as their rounding, and no larger."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitspec import ViTSpec
from vitspec.layers.position_interpolation import interpolation_weights
from vitspec.testing.families import FAMILIES, Case
from vitspec.testing.precision import (
    PRECISIONS,
    Noisy,
    NoisyArithmetic,
    RoundingArithmetic,
    primitives_of,
    rounded,
)
from vitspec.testing.primitives import ERROR
from vitspec.testing.tolerance import Price, distances, grade, sizes

FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(FLOAT32, min_size=1, max_size=20))
def test_float16_is_rounded_as_numpy_does(values):
    x = np.array([v for v in values if abs(v) < 65504] or [0.0])
    assert np.array_equal(rounded(x, PRECISIONS["float16"]), x.astype(np.float16))


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=20))
def test_float32_and_float64_are_rounded_as_numpy_does(values):
    x = np.array(values)
    small = x[np.abs(x) < 3e38]
    assert np.array_equal(rounded(small, PRECISIONS["float32"]), small.astype(np.float32))
    assert np.array_equal(rounded(x, PRECISIONS["float64"]), x)


@given(st.lists(FLOAT32, min_size=1, max_size=20))
def test_bfloat16_keeps_the_upper_half_of_a_float32(values):
    x = np.array([v for v in values if 1e-30 < abs(v) < 1e38] or [1.5], np.float32)
    bits = x.view(np.uint32)
    even = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32)
    assert np.array_equal(rounded(x, PRECISIONS["bfloat16"]), even.view(np.float32))


@pytest.mark.parametrize("name", [n for n in PRECISIONS if n != "float64"])
def test_halfway_between_two_numbers_the_even_one_is_nearest(name):
    k, step = np.arange(64), 2.0 ** (1 - PRECISIONS[name].significand)
    halfway, even = 1 + (k + 0.5) * step, 1 + (k + k % 2) * step
    for sign in (1, -1):
        assert np.array_equal(rounded(sign * halfway, PRECISIONS[name]), sign * even)


@pytest.mark.parametrize("name", PRECISIONS)
def test_rounding_is_idempotent_and_within_u(name):
    precision = PRECISIONS[name]
    x = np.random.default_rng(0).standard_normal(1000)
    once = rounded(x, precision).astype(np.float64)
    assert np.array_equal(rounded(once, precision), once)
    assert np.abs(once / x - 1).max() <= precision.u
    assert name == "float64" or np.abs(once / x - 1).max() > precision.u / 2


def noisy(x, name="float32", alike=False, seed=0):
    return NoisyArithmetic(PRECISIONS[name], np.random.default_rng(seed), alike).array(x)


@pytest.mark.parametrize("name", PRECISIONS)
def test_an_operation_errs_by_up_to_u_and_is_not_biased(name):
    u = 2.0**-24 if name == "tf32" else PRECISIONS[name].u
    x = np.random.default_rng(1).uniform(1, 2, 20_000)
    error = np.asarray(noisy(x, name) * 1.0) / x - 1
    own = u if name == "float64" else 0  # the noise itself is rounded
    assert np.abs(error).max() <= u * 1.01 + own
    assert np.abs(error).max() > 0.9 * u
    assert abs(error.mean()) < (0.3 if name == "float64" else 0.05) * u


def test_comparisons_maxima_and_views_do_not_err():
    x = noisy(np.random.default_rng(2).standard_normal((5, 6)))
    plain = np.asarray(x)
    for found, expected in (
        (np.maximum(x, 0.0), np.maximum(plain, 0.0)),
        (x.max(axis=-1), plain.max(axis=-1)),
        (x.T, plain.T),
        (-x, -plain),
    ):
        assert isinstance(found, Noisy)
        assert np.array_equal(np.asarray(found), expected)
    assert np.array_equal(x > 0, plain > 0)


def test_in_place_operations_err_too():
    x = np.random.default_rng(3).uniform(1, 2, (40, 50))
    product = noisy(x.copy())
    product *= 1.5
    exponential = noisy(x.copy())
    np.exp(exponential, out=exponential)
    exp = primitives_of(PRECISIONS["float32"])["exp"]
    for found, expected, times in ((product, 1.5 * x, 1), (exponential, np.exp(x), exp)):
        error = np.abs(np.asarray(found) / expected - 1)
        assert 0.9 * times * 2.0**-24 < error.max() < 1.1 * times * 2.0**-24


def test_a_sum_that_cancels_errs_by_what_it_sums():
    x = np.array([[1e6, -1e6, 1.0]])
    found = [float(noisy(x, seed=s).sum(axis=-1)[0]) for s in range(200)]
    assert 0.05 < np.std(found) < 0.5  # u 2e6 sqrt(3) = 0.2, uniform
    product = [float((noisy(x, seed=s) @ np.ones(3))[0]) for s in range(200)]
    assert 0.03 < np.std(product) < 0.3
    wide = [float(noisy(x, "bfloat16", seed=s).sum(axis=-1)[0]) for s in range(200)]
    assert np.std(wide) < 2.0**-8  # accumulated wider: only the result is rounded


def test_equal_terms_among_others_round_alike():
    """As tokens under mean pooling do beside the CLS token; met in a final shift's gradient."""
    x = np.concatenate([[[0.3, 2.0]], np.full((99, 2), 0.7), [[-0.4, 5.0]]])
    x[:, 1] = np.random.default_rng(0).standard_normal(101)
    found = np.array([np.asarray(noisy(x, seed=s).sum(axis=0)) for s in range(200)])
    noise = found.std(axis=0) / (2.0**-24 / 3**0.5 * np.abs(x).sum(axis=0))
    assert 90 < noise[0] < 110
    assert 9 < noise[1] < 11
    x[1:-1, 0] = 0  # adding 0 rounds nothing
    found = [float(np.asarray(noisy(x, seed=s).sum(axis=0))[0]) for s in range(200)]
    assert 9 < np.std(found) / (2.0**-24 / 3**0.5 * np.abs(x[:, 0]).sum()) < 11


def test_interpolation_weights_err_by_roundings_of_a_coordinate():
    weights, table = interpolation_weights(7, 5, np.dtype(float)), np.zeros((7, 7)) + np.eye(7)
    found = np.array([np.asarray(weights @ noisy(table, seed=s)) for s in range(300)])
    error = (found - weights).std(axis=0) * 3**0.5 * 2.0**24 / ERROR["cubic_weights"]["float32"]
    assert np.all((error > 6) & (error < 8))  # of 7 positions
    exact = interpolation_weights(4, 8, np.dtype(float))
    of_exact = np.asarray(exact @ noisy(np.eye(4)))
    assert np.all(of_exact[exact == 0] == 0)
    other = 1.1 * exact  # no weights: their sums are not 1
    assert np.all(np.asarray(other @ noisy(np.eye(4)))[other == 0] == 0)


def test_interpolation_weights_err_in_float64_too():
    """Met in a correct model: its weights were off by 7 roundings, and what they gave was not."""
    weights = interpolation_weights(8, 3, np.dtype(float))
    found = np.array(
        [np.asarray(weights @ noisy(np.eye(8), "float64", seed=s)) for s in range(300)]
    )
    error = (found - weights).std(axis=0) * 3**0.5 * 2.0**53 / ERROR["cubic_weights"]["float64"]
    # A weight of 0 has but the rounding of a product's sum.
    assert np.all((error > 6) & (error < 9))
    exact = interpolation_weights(4, 8, np.dtype(float))
    assert np.all(np.asarray(exact @ noisy(np.eye(4), "float64"))[exact == 0] == 0)


def test_rows_that_err_alike():
    x = np.ones((30, 4))
    apart, alike = np.asarray(noisy(x) * 1.0), np.asarray(noisy(x, alike=True) * 1.0)
    assert len(np.unique(apart[:, 0])) > 20
    assert len(np.unique(alike[:, 0])) == 1
    assert len(np.unique(alike[0])) == 4


def test_a_constant_that_the_precision_cannot_hold_errs_alike_for_all():
    x, u = np.zeros((1, 1000)), 2.0**-24

    def shifts(constant):
        found = [np.asarray(noisy(x, seed=seed) + np.float64(constant)) for seed in range(40)]
        return np.array([one.mean() / constant - 1 for one in found])

    # The mean over 1000 entries leaves 0.02 u of the results' own errors.
    assert np.abs(shifts(0.5)).max() < 0.1 * u
    assert 0.3 * u < np.std(shifts(1 / 3)) < u
    assert np.abs(shifts(1 / 3)).max() < 1.1 * u


@pytest.mark.parametrize("name", ["tf32", "bfloat16", "float16"])
def test_rounding_arithmetic_gives_numbers_of_the_precision(name):
    case = FAMILIES["vit"].random_case(np.random.default_rng(4))
    precision = PRECISIONS[name]
    arithmetic = RoundingArithmetic(precision)
    given = [rounded(x, precision).astype(float) for x in (case.image(), case.d_logits())]
    model = case.model().map(lambda x: rounded(x, precision).astype(float))
    grads, _ = model.map(arithmetic.array).backward(*map(arithmetic.array, given))
    truth, _ = model.backward(*given)
    own = precision if name != "tf32" else PRECISIONS["float32"]
    values = [np.asarray(leaf) for leaf in grads.to_flat().values()]
    assert all(np.array_equal(rounded(v, own), v) for v in values)
    worst = max(
        np.linalg.norm(v - t) / np.linalg.norm(t)
        for v, t in zip(values, truth.to_flat().values(), strict=True)
        if np.linalg.norm(t) > 1e-8
    )
    assert precision.u / 8 < worst < 1e4 * precision.u


def test_noise_is_reproducible():
    case = Case(
        "vit", FAMILIES["vit"].random_case(np.random.default_rng(0)).config, 2, 9, 9, seed=1
    )
    model = case.model()

    def run(seed):
        arithmetic = NoisyArithmetic(PRECISIONS["float32"], np.random.default_rng(seed))
        flat = {n: arithmetic.array(a) for n, a in model.to_flat().items()}
        own = ViTSpec.from_flat(case.config, flat, **case.size)
        return np.asarray(own.forward(arithmetic.array(case.image())))

    assert np.array_equal(run(5), run(5))
    assert not np.array_equal(run(5), run(6))
    x = noisy(np.ones((3, 4)))
    assert not np.array_equal(x * 1.0, x * 1.0)  # each operation errs anew


def test_a_loop_over_equal_rows_is_within_the_bound():
    """The last shift's gradient under mean pooling: each addition rounds the same way."""
    precision, rng = PRECISIONS["float32"], np.random.default_rng(6)
    worst = 0.0
    for tokens in (9, 36, 64, 100, 169):
        shares = rng.standard_normal((3, 5)).astype(np.float32) / np.float32(tokens)
        loop = np.add.accumulate(np.repeat(shares, tokens, axis=0), dtype=np.float32)[-1]
        truth = tokens * shares.astype(float).sum(axis=0)
        runs = []
        for run in range(12):
            arithmetic = NoisyArithmetic(precision, np.random.default_rng(run), run % 2 == 1)
            sums = [arithmetic.array(np.tile(s.astype(float), (tokens, 1))).sum(0) for s in shares]
            runs.append(distances(np.asarray(sums[0] + sums[1] + sums[2]), truth))
        price = Price.of(sizes(truth), runs, precision.u)
        worst = max(worst, grade("beta", loop.astype(float), truth, price).ratio)
    assert 0.02 < worst < 0.6
