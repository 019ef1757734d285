"""The complementary error function on floats."""

from __future__ import annotations

import math

import numpy as np

from vitspec.typing import Array


def erfc(x: Array) -> Array:
    """erfc(x) in x's own type."""
    return np.vectorize(math.erfc, otypes=[x.dtype])(x) if x.size else x
