"""Parameters in others' layouts, and their gradients back in ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

ToTheirs = Callable[[dict[str, np.ndarray]], Mapping[str, Any]]


def to_our_gradients(
    to_theirs: ToTheirs, shapes: Mapping[str, tuple[int, ...]], theirs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Their gradients by our names and in our layouts.

    `to_theirs` rearranges entries and may add constants, so it is linear and the gradient goes back
    by its transpose. Numbering the entries shows where each went.

    >>> there = lambda flat: {"weight": flat["w"].T}
    >>> to_our_gradients(there, {"w": (1, 2)}, {"weight": np.array([[5.0], [7.0]])})
    {'w': array([[5., 7.]])}
    """
    numbered, first = {}, 1  # 0 is for the constants, which are zeros
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        numbered[name] = np.arange(first, first + size, dtype=np.float64).reshape(shape)
        first += size
    dtype = next(iter(theirs.values())).dtype
    values = np.zeros(first, dtype)
    for name, numbers in to_theirs(numbered).items():
        values[np.asarray(numbers).astype(np.int64)] = theirs[name]
    return {name: values[numbers.astype(np.int64)] for name, numbers in numbered.items()}
