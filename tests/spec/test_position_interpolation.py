"""Interpolated positions: the matrix, the map, its transpose, against one pixel after the other."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.compare import assert_close
from support.naive_practical import resized
from vitspec import complex_step_derivative, distance_bound, to_reals
from vitspec.layers.position_interpolation import (
    cubic_weight,
    interpolate_positions,
    interpolate_positions_backward,
    interpolation_weights,
)
from vitspec.testing.strategies import seeds

FLOAT = np.dtype(np.float64)
grids = st.tuples(st.integers(1, 9), st.integers(1, 9))


def table_of(grid, seed, width=3):
    return np.random.default_rng(seed).standard_normal((grid[0] * grid[1], width))


@given(grids, grids, seeds)
@settings(max_examples=60)
def test_it_is_the_cubic_convolution_of_every_position(old, new, seed):
    table = table_of(old, seed)
    truth = resized(table.tolist(), *old, *new)
    assert_close(interpolate_positions(table, old, new), np.array(truth), 1e-13)


@given(st.integers(1, 40), st.integers(1, 40))
def test_rows_of_the_weights_add_up_to_one_and_read_four_neighbours(old, new):
    weights = interpolation_weights(old, new, FLOAT)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-14)
    assert ((weights != 0).sum(axis=1) <= 4).all()
    # What is read is mirrored when the picture is.
    np.testing.assert_allclose(weights, weights[::-1, ::-1], rtol=1e-13, atol=1e-15)


@given(st.integers(1, 30))
def test_the_same_size_is_the_identity_exactly(size):
    np.testing.assert_array_equal(interpolation_weights(size, size, FLOAT), np.eye(size))


@pytest.mark.parametrize(
    ("t", "weight"),
    [("0", "1"), ("1/2", "19/32"), ("1", "0"), ("3/2", "-3/32"), ("2", "0"), ("5/2", "0")],
)
def test_the_kernel_is_keys_with_a_of_minus_three_quarters(t, weight):
    assert cubic_weight(Fraction(t)) == Fraction(weight)


def test_doubling_has_the_weights_of_image_resizing():
    """Half-way centres: the first position stands a quarter before the first old one."""
    first = interpolation_weights(4, 8, FLOAT)[1]
    expected = [float(cubic_weight(Fraction(abs(4 * k - 1), 4))) for k in (-1, 0, 1, 2)]
    np.testing.assert_allclose(first, [expected[0] + expected[1], expected[2], expected[3], 0])


@given(grids, grids, seeds)
@settings(max_examples=40)
def test_the_backward_is_the_transpose(old, new, seed):
    rng = np.random.default_rng(seed)
    table, d_out = table_of(old, seed), rng.standard_normal((new[0] * new[1], 3))
    out, d_table = (
        interpolate_positions(table, old, new),
        interpolate_positions_backward(d_out, old, new),
    )
    size = np.linalg.norm(table) * np.linalg.norm(d_table)
    assert abs((out * d_out).sum() - (table * d_table).sum()) <= 1e-14 * size
    direction = rng.standard_normal(table.shape)
    step = complex_step_derivative(lambda x: interpolate_positions(x, old, new), table, direction)
    size = np.linalg.norm(direction) * np.linalg.norm(d_table)
    assert abs((step * d_out).sum() - (direction * d_table).sum()) <= 1e-14 * size


def test_rows_and_columns_are_not_confused():
    """A table that only changes along one axis is interpolated along that axis alone."""
    column = np.arange(3.0)
    table = np.repeat(column, 5)[:, None]  # a grid of 3 x 5, constant along each row
    out = interpolate_positions(table, (3, 5), (4, 7)).reshape(4, 7)
    assert_close(out, np.tile((interpolation_weights(3, 4, FLOAT) @ column)[:, None], 7), 1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.longdouble])
def test_every_float_is_near_the_reals(dtype):
    pytest.importorskip("flint", reason="real balls need the extra 'reals'")
    table = table_of((3, 4), 0).astype(dtype)
    value = interpolate_positions(table, (3, 4), (7, 5))
    assert value.dtype == dtype
    true = interpolate_positions(to_reals(table), (3, 4), (7, 5))
    assert distance_bound(true, value).max() <= 8 * np.finfo(dtype).eps * np.abs(table).max()
