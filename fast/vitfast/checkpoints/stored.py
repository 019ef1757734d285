"""A tensor in a file, of which only the description has been read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from vitspec.typing import Array

FLOATS: dict[str, np.dtype] = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
"""The scalar types that the weights of a model have, as files store them (little-endian)."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        where: the file.
        shape: as stored.
        dtype: the name of its NumPy type, or, if no weights have it, what the file calls it.
        load: gives the array; each call reads it anew, and nobody keeps it.
    """

    where: str
    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], Array]

    @property
    def is_float(self) -> bool:
        """Whether its scalar type is one that weights have."""
        return self.dtype in FLOATS
