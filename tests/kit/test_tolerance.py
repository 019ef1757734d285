"""Errors, prices and bounds: no absolute tolerance, and no metric that looks away."""

import numpy as np
import pytest
from hypothesis import given, settings

from vitspec.testing.check import Point, evaluate_spec
from vitspec.testing.strategies import cases
from vitspec.testing.tolerance import errors, grade, reordering


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_errors_do_not_depend_on_the_scale(scale):
    truth, noise = normal(4, 5), 1e-3 * normal(4, 5, seed=1)
    found = errors((truth + noise) * scale, truth * scale)
    assert found == pytest.approx(errors(truth + noise, truth), rel=1e-9)


def test_errors_are_the_three_metrics():
    truth = np.array([[3.0, 4.0], [0.0, 0.5]])
    value = truth + np.array([[0.0, 0.0], [0.05, 0.0]])
    found = errors(value, truth)
    assert found["norm"] == pytest.approx(0.05 / np.sqrt(25.25))
    assert found["max"] == pytest.approx(0.05 / 4)
    assert found["slice"] == pytest.approx(0.05 / 0.5)


def test_the_max_metric_takes_the_largest_magnitude_of_either_sign():
    truth = np.array([1.0, -8.0, 2.0])
    assert errors(truth - [0, 4.0, 0], truth)["max"] == pytest.approx(0.5)


def test_a_local_fault_that_the_norm_forgives_is_seen_by_the_slice():
    truth = normal(100, 8)
    truth[50] *= 1e-4
    faulty = truth.copy()
    faulty[50] = 0
    found = errors(faulty, truth)
    assert found["norm"] < 1e-4
    assert found["slice"] == 1


def test_a_structural_zero_must_be_exactly_zero():
    assert set(errors(np.zeros((2, 3)), np.zeros((2, 3))).values()) == {0}
    almost = np.zeros((2, 3))
    almost[1, 2] = 1e-100
    assert set(errors(almost, np.zeros((2, 3))).values()) == {np.inf}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_does_not_conform(bad):
    truth = normal(4, 5)
    value = truth.astype(np.float32)
    value[2, 3] = bad
    verdict = grade("x", value, truth, [dict.fromkeys(("norm", "max", "slice"), 1e-7)])
    assert not verdict.conforms
    assert verdict.error == np.inf


def test_the_bound_is_four_prices_and_four_roundings():
    truth = normal(4, 5)
    price = {"norm": 1e-6, "max": 2e-6, "slice": 3e-6}
    verdict = grade("x", truth.astype(np.float32), truth, [price, dict.fromkeys(price, 0.0)])
    expected = 4 * price[verdict.metric] + 4 * 2.0**-24
    assert verdict.bound == pytest.approx(expected)
    assert verdict.conforms == (verdict.error <= expected)


def test_the_worst_metric_decides():
    truth = normal(50, 8)
    value = truth.astype(np.float32)
    value[7] *= 1.5
    verdict = grade("x", value, truth, [{"norm": 1.0, "max": 1.0, "slice": 1e-7}])
    assert (verdict.metric, verdict.conforms) == ("slice", False)


@given(cases(min_embed_dim=3))
@settings(max_examples=40)
def test_a_reordered_model_is_the_same_function(case):
    image, d_logits = case.image(), case.d_logits()
    flat = case.model().to_flat()
    point = Point(case.spec, case.config, flat, image, d_logits)
    reorder, restore = reordering(case.config, np.random.default_rng(case.seed))
    assert all(np.array_equal(restore(reorder(flat))[name], leaf) for name, leaf in flat.items())
    truth = evaluate_spec(point, flat, np.float64)
    found = evaluate_spec(point, reorder(flat), np.float64)
    found |= restore({name: found[name] for name in flat})
    largest = max(np.abs(leaf).max(initial=0) for n, leaf in truth.items() if n != "logits")
    for name, leaf in truth.items():
        size = np.abs(leaf).max(initial=0) if name == "logits" else largest
        assert np.abs(found[name] - leaf).max(initial=0) <= 1e-12 * size, name


def test_reordering_moves_something():
    from vitspec import ViTConfig, ViTSpec

    config = ViTConfig(2, 2, 2, 0, 12, 10, 3, 1, 3)
    size = {"in_channels": 1, "height": 4, "width": 4}
    flat = ViTSpec.init(config, **size, rng=np.random.default_rng(0)).to_flat()
    moved = reordering(config, np.random.default_rng(1))[0](flat)
    same = [name for name in flat if np.array_equal(flat[name], moved[name])]
    assert same == ["head.bias"]
