"""Arrays that pass between the kit and an implementation: each side has its own.

NumPy's read-only flag binds NumPy alone: `torch.from_numpy` and native code write through it. So
an implementation is given copies, and what it returns is copied at once: an output buffer that the
next call overwrites, a view of the images, or an array that another thread still fills cannot
change what the kit has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vitspec.testing.adapter_errors import AdapterError
from vitspec.typing import Array

CHUNK = 1 << 20
"""Bytes that are compared at once: without large temporary arrays, at full size too."""


def given(array: Array) -> Array:
    """A read-only copy for an implementation."""
    copy = np.array(array, order="C")
    copy.setflags(write=False)
    return copy


def to_numpy(value: Any) -> Array:
    """Any framework's array as a plain one of NumPy's that nobody else holds.

    One that still records gradients is detached first.

    Raises:
        AdapterError: it is a masked array, whose mask would be lost.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise AdapterError("a masked array was returned; the kit takes arrays without a mask")
    if not isinstance(value, np.ndarray):
        if hasattr(value, "detach"):
            value = value.detach()
        if hasattr(value, "cpu"):
            value = value.cpu()
        if "bfloat16" in str(getattr(value, "dtype", "")) and hasattr(value, "float"):
            value = value.float()  # PyTorch's bfloat16 has no NumPy type
    return np.array(np.asarray(value), copy=True, subok=False)


def same_bits(one: Array, other: Array) -> bool:
    """Whether two arrays of the same shape and type have the same bits; NaN equals itself."""
    a, b = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (one, other))
    parts = range(0, a.size, CHUNK)
    return all(np.array_equal(a[i : i + CHUNK], b[i : i + CHUNK]) for i in parts)


def written_into(before: Mapping[str, Array], after: Mapping[str, Array]) -> list[str]:
    """The names of the arrays that changed."""
    return [name for name, array in before.items() if not same_bits(array, after[name])]


def is_float(dtype: Any) -> bool:
    """Whether an array's type is a real floating-point type, NumPy's or one that looks like it."""
    if dtype.names is not None:
        return False
    return np.issubdtype(dtype, np.floating) or "float" in dtype.name


def is_real(dtype: Any) -> bool:
    """Whether an array's entries are real numbers."""
    return dtype.kind in "biuf" or is_float(dtype)
