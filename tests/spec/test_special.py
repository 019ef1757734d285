"""erfc on floats against the real numbers, in every region and on both sides of every seam."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings

from vitspec import complex_step_derivative, scalars, special, to_reals
from vitspec.testing.strategies import seeds

flint = pytest.importorskip("flint", reason="real balls need the extra 'reals'")

FLOATS = [np.float32, np.float64, np.longdouble]
LAST = {np.float32: 10.1, np.float64: 27.3, np.longdouble: 30.0}
"""Up to where points are drawn; beyond it, the shorter floats are 0."""
ULPS, ULPS_AT_THE_END = 0.8, 1.1


@pytest.fixture(autouse=True)
def _precision():
    with flint.ctx.workprec(256):
        yield


def seams(kind):
    """Where the nearest node, or the region, changes: half-way between nodes, and the ends."""
    regions = [special.NEAR[kind], special.FAR] if kind is np.float64 else [special.NEAR[kind]]
    middles = [
        (np.arange(r.first * r.per_unit, r.last * r.per_unit, dtype=kind) + kind(0.5)) / r.per_unit
        for r in regions
    ]
    ends = np.array([end for r in regions for end in (r.first, r.last)], kind)
    return np.concatenate([*middles, ends])


def ulp(value):
    """The distance to the next float up."""
    return np.nextafter(value, value.dtype.type(np.inf)) - value


def error_in_ulps(x):
    """Upper bounds of |erfc(x) - the true value| in units of the result's last place."""
    value = special.erfc(x)
    error = (to_reals(value) - scalars.erfc(to_reals(x, 256))) / to_reals(ulp(value))
    return np.array([float(one.abs_upper()) for one in error])


def points(kind, rng):
    """All over the line, dense about 0, tiny, and at some seams with their neighbours."""
    some = rng.choice(seams(kind), 60)
    last = LAST[kind]
    x = np.concatenate(
        [
            rng.uniform(-7, last, 150),
            rng.standard_normal(100),
            rng.standard_normal(30) * 10.0 ** rng.uniform(-30, 0, 30),
        ]
    ).astype(kind)
    one_down, one_up = np.nextafter(some, kind(-np.inf)), np.nextafter(some, kind(np.inf))
    return np.concatenate([x, some, one_down, one_up])


@pytest.mark.parametrize("kind", FLOATS)
@given(seed=seeds)
@settings(max_examples=12)
def test_the_error_is_about_that_of_the_last_rounding(kind, seed):
    x = points(kind, np.random.default_rng(seed))
    error = error_in_ulps(x)
    # Near the subnormal numbers the table's own last digits are missing.
    excess = error / np.where(special.erfc(x) < 8 * np.finfo(kind).tiny, ULPS_AT_THE_END, ULPS)
    assert excess.max() <= 1, x[excess.argmax()]


@pytest.mark.parametrize("kind", FLOATS)
def test_it_falls_across_every_seam(kind):
    """From the float below to the float above; where floats are subnormal, they may tie or swap."""
    x = seams(kind)
    below, above = (special.erfc(np.nextafter(x, kind(end))) for end in (-np.inf, np.inf))
    normal = above >= np.finfo(kind).tiny
    assert (below[normal] >= above[normal]).all()
    assert (below >= above - ulp(above)).all()


@pytest.mark.parametrize("kind", FLOATS)
@given(seed=seeds)
@settings(max_examples=12)
def test_both_sides_add_up_to_two(kind, seed):
    x = points(kind, np.random.default_rng(seed))
    left, right = special.erfc(-np.abs(x)), special.erfc(np.abs(x))
    assert (np.abs(left - (2 - right)) <= np.finfo(kind).eps).all()


@given(seed=seeds)
@settings(max_examples=12)
def test_the_complex_step_is_the_derivative(seed):
    rng = np.random.default_rng(seed)
    x, v = rng.uniform(-6, 6, 50), rng.standard_normal(50)
    truth = [-2 * math.exp(-a * a) / math.sqrt(math.pi) * b for a, b in zip(x, v, strict=True)]
    # The rounding of x^2, at most 36, is multiplied by the exponential.
    np.testing.assert_allclose(complex_step_derivative(scalars.erfc, x, v), truth, rtol=2e-14)


@pytest.mark.parametrize("kind", FLOATS)
def test_special_values(kind):
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, np.finfo(kind).max, np.finfo(kind).min], kind)
    with warnings.catch_warnings(), np.errstate(invalid="raise", divide="raise", over="raise"):
        warnings.simplefilter("error")
        value = special.erfc(x)
    np.testing.assert_array_equal(value, np.array([np.nan, 0, 2, 1, 1, 0, 2], kind))
    smallest = np.array([np.finfo(kind).smallest_subnormal])
    assert special.erfc(smallest) == special.erfc(-smallest) == 1


@pytest.mark.parametrize("kind", FLOATS)
def test_type_and_shape_are_those_of_x(kind):
    values = np.random.default_rng(0).standard_normal((4, 3, 2)).astype(kind)
    for x in (values, values[:, :0], values[0, 0, 0], values.T, values[::2, :, 1]):
        value = special.erfc(x)
        assert isinstance(value, np.ndarray)
        assert (value.shape, value.dtype) == (x.shape, x.dtype)
        one_by_one = [special.erfc(np.asarray(one)) for one in np.ravel(x)]
        np.testing.assert_array_equal(value.ravel(), one_by_one)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_many_entries_are_as_one_by_one(kind):
    """Whatever they are cut into, and whether or not some of them are far out."""
    x = np.random.default_rng(0).uniform(-8, 12, 2 * special.CHUNK + 3).astype(kind)
    value = special.erfc(x)
    for i in (0, special.CHUNK - 1, special.CHUNK, 2 * special.CHUNK + 2, int(x.argmax())):
        assert value[i] == special.erfc(x[i : i + 1])[0]
