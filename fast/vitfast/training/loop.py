"""A run of training: `fit`."""

from __future__ import annotations

from typing import Any, NamedTuple


class Result(NamedTuple):
    """What `fit` returns."""

    model: Any
    step: int


def fit(model: Any, dataset: Any, config: Any, **options: Any) -> Result:
    """Train a model on a dataset."""
    raise NotImplementedError("fit: being written")
