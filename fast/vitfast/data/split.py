"""A held-out part, stratified by class, that depends on each item's name alone.

    held out of a class of n: round(fraction * n) items, at least 1 and at most n - 1:
    those of least SHA-256(seed / name)

No random generator is in it, so that it is the same on any machine and with any version; and items
that are added leave nearly all others where they were.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from vitfast.data.errors import DatasetError


def held_out(
    names: Sequence[str], labels: Any, class_names: Sequence[str], fraction: float, seed: int
) -> tuple[Any, Any]:
    """The indices of what is kept for training, and of what is held out, each in order.

    Args:
        names: one for each item, all different.
        labels: (N,), the number of each item's class.
        class_names: the classes' names.
        fraction: how much of each class is held out, more than 0 and less than 1.
        seed: another one holds out others.

    Raises:
        DatasetError: a class has fewer than two items, or the fraction is no such number.
    """
    if not isinstance(fraction, int | float) or not 0 < fraction < 1:
        raise DatasetError(f"held_out: must be more than 0 and less than 1, got {fraction!r}")
    labels, out = np.asarray(labels), np.zeros(len(names), bool)
    keys = [
        hashlib.sha256(f"{seed}/{name}".encode(errors="surrogateescape")).digest() for name in names
    ]
    for number, class_name in enumerate(class_names):
        members = sorted(np.flatnonzero(labels == number).tolist(), key=keys.__getitem__)
        if len(members) < 2:
            raise DatasetError(
                f"class {class_name}: has {len(members)} images; a part is held out for the test, "
                "which needs two of each class"
            )
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        out[members[:count]] = True
    return np.flatnonzero(~out), np.flatnonzero(out)
