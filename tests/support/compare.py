"""Relative errors, against the size of the truth: there is no absolute tolerance anywhere."""

import numpy as np


def relative_error(value, truth):
    """Largest error over the largest entry of the truth; 0 where both are exactly zero or empty."""
    value, truth = np.asarray(value), np.asarray(truth)
    assert value.shape == truth.shape, f"shape {value.shape}, expected {truth.shape}"
    if truth.size == 0:
        return 0.0
    error, scale = np.abs(value - truth).max(), np.abs(truth).max()
    if scale == 0:
        return 0.0 if error == 0 else np.inf
    return float(error / scale)


def assert_close(value, truth, tolerance, name="value"):
    """Require a relative error of at most `tolerance`."""
    error = relative_error(value, truth)
    assert error <= tolerance, f"{name}: relative error {error:.2e}, tolerance {tolerance:.0e}"


def assert_flat_close(values, truths, tolerance):
    """Require the same names and, for each array, a relative error of at most `tolerance`."""
    assert values.keys() == truths.keys()
    for name, truth in truths.items():
        assert_close(values[name], truth, tolerance, name)
