"""Arrays of the same numbers in another order of the memory."""

from __future__ import annotations

import numpy as np

from vitspec.typing import Array

CONTIGUOUS, OTHER_ORDER = "contiguous", "other order"
"""The layouts in which a point's arrays can be handed over."""


def laid_out(array: Array, layout: str) -> Array:
    """The array itself; or, in another order, read-only views of the same numbers.

    Images (B, C, H, W) come with the channels last in memory, other arrays with their axes the
    other way round, vectors as every other entry of a longer one. No stride is negative: PyTorch
    has no such tensors.

    >>> laid_out(np.ones((2, 3)), "other order").flags.c_contiguous
    False
    """
    if layout == CONTIGUOUS or array.ndim == 0:
        return array
    if array.ndim == 1:
        longer = np.full(2 * len(array), np.nan, array.dtype)
        longer[::2] = array
        view = longer[::2]
    else:
        axes = (0, 2, 3, 1) if array.ndim == 4 else tuple(reversed(range(array.ndim)))
        view = np.ascontiguousarray(array.transpose(axes)).transpose(np.argsort(axes))
    view.setflags(write=False)
    return view
