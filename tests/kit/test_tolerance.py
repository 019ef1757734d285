"""Errors, prices and bounds: no absolute tolerance, and no metric that looks away."""

import numpy as np
import pytest

from vitspec.testing.tolerance import Price, distances, grade, sizes

U = 2.0**-24


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def price(truth, *runs, u=U):
    return Price.of(sizes(truth), [distances(run, truth) for run in runs], u)


def noisy(truth, relative, seed=0):
    return truth * (1 + relative * np.random.default_rng(seed).uniform(-1, 1, truth.shape))


def test_sizes_and_distances_are_the_three_metrics():
    truth = np.array([[3.0, 4.0], [0.0, 0.5]])
    found = distances(truth + np.array([[0.0, 0.0], [0.05, 0.0]]), truth)
    assert found.norm == pytest.approx(0.05)
    assert found.max == pytest.approx(0.05)
    assert found.rows == pytest.approx([0, 0.05])
    assert sizes(truth).rows == pytest.approx([5, 0.5])
    assert sizes(np.array([1.0, -8.0, 2.0])).max == 8


def test_large_arrays_are_compared_in_blocks_without_a_seam():
    truth = normal(700, 130)
    value = truth + 1e-3 * normal(700, 130, seed=1)
    found = distances(value, truth)
    assert found.norm == pytest.approx(np.linalg.norm(value - truth), rel=1e-12)
    assert found.max == np.abs(value - truth).max()
    assert found.rows == pytest.approx(np.linalg.norm(value - truth, axis=1), rel=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_verdicts_do_not_depend_on_the_scale(scale):
    truth, run = normal(4, 5), noisy(normal(4, 5), 1e-6)
    value = noisy(truth, 3e-6, seed=1)
    here = grade("x", value, truth, price(truth, run))
    there = grade("x", value * scale, truth * scale, price(truth * scale, run * scale))
    assert there.ratio == pytest.approx(here.ratio, rel=1e-9)
    assert there.metric == here.metric


def test_the_bound_is_four_prices_and_four_roundings():
    truth = normal(4, 5)
    run = truth.copy()
    run[2] *= 1 + 1e-5
    verdict = grade("x", truth, truth, price(truth, run, run))
    expected = {
        "norm": 1e-5 * np.linalg.norm(truth[2]) / np.linalg.norm(truth),
        "max": 1e-5 * np.abs(truth[2]).max() / np.abs(truth).max(),
        "slice": 1e-5,
    }[verdict.metric]
    assert verdict.price == pytest.approx(expected, rel=1e-6)
    assert verdict.bound == pytest.approx(4 * expected + 4 * U, rel=1e-6)


def test_a_local_fault_that_the_norm_forgives_is_seen_by_the_slice():
    truth = normal(100, 8)
    truth[50] *= 1e-3
    faulty = truth.copy()
    faulty[50] = 0
    verdict = grade("x", faulty, truth, price(truth, noisy(truth, 1e-6)))
    assert verdict.metric == "slice"
    assert verdict.error == pytest.approx(1)
    assert not verdict.conforms


def test_a_tensor_that_cancels_is_measured_against_what_cancelled():
    truth, noise = np.zeros((3, 4)), 1e-6 * normal(3, 4)
    cost = price(truth, noise)
    verdict = grade("x", 2 * noise, truth, cost)
    assert verdict.cancelled
    assert verdict.conforms
    assert verdict.price == pytest.approx(U)
    assert not grade("x", 10 * noise, truth, cost).conforms
    assert grade("x", truth, truth, cost).error == 0


def test_a_row_that_cancels_does_not_excuse_the_others():
    truth = normal(6, 5)
    truth[3] = 1e-9
    runs = [truth + 1e-6 * normal(6, 5, seed=s) for s in range(8)]
    cost = price(truth, *runs)
    assert cost.slice < 1e-5
    wrong = truth.copy()
    wrong[1] *= 1 + 1e-4
    assert not grade("x", wrong, truth, cost).conforms
    assert grade("x", truth + 1e-6 * normal(6, 5, seed=9), truth, cost).conforms


def test_where_nothing_errs_zero_must_be_exactly_zero():
    truth = np.zeros((2, 3))
    almost = truth.copy()
    almost[1, 2] = 1e-100
    cost = price(truth, truth)
    assert grade("x", truth, truth, cost).conforms
    assert grade("x", almost, truth, cost).error == np.inf


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_does_not_conform(bad):
    truth = normal(4, 5)
    value = truth.astype(np.float32)
    value[2, 3] = bad
    verdict = grade("x", value, truth, price(truth, noisy(truth, 1e-1)))
    assert not verdict.conforms
    assert verdict.error == np.inf


def test_an_empty_tensor_conforms():
    truth = np.zeros((0, 4))
    assert grade("x", truth, truth, price(truth, truth)).ratio == 0
    assert grade(
        "x", np.zeros((3, 0)), np.zeros((3, 0)), price(np.zeros((3, 0)), np.zeros((3, 0)))
    ).conforms


def test_the_price_is_the_worst_of_the_runs():
    truth = normal(4, 5)
    runs = [noisy(truth, 1e-7), noisy(truth, 1e-5, seed=1), noisy(truth, 1e-6, seed=2)]
    assert price(truth, *runs) == price(truth, runs[1])


def test_a_scaled_price_gives_the_same_verdict_on_a_scaled_tensor():
    truth = normal(4, 5)
    cost = price(truth, noisy(truth, 1e-6))
    value = noisy(truth, 3e-6, seed=1)
    here, there = grade("x", value, truth, cost), grade("x", 8 * value, 8 * truth, cost.scaled(8))
    assert there.ratio == pytest.approx(here.ratio, rel=1e-12)
