"""Metrics as they come, one JSON object a line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class MetricsLog:
    """A file of records; each has its "step" and any of train_loss, train_accuracy, test_loss,
    test_accuracy, learning_rate, grad_norm, images_per_second ...

    Append what belongs to a step before its checkpoint is saved, so that it is there on resuming.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        raise NotImplementedError

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record: the whole line, or nothing."""
        raise NotImplementedError

    def truncate_after(self, step: int) -> None:
        """Drop records of later steps, and what a killed run left of a line."""
        raise NotImplementedError

    def records(self) -> list[dict[str, Any]]:
        """All records so far."""
        raise NotImplementedError

    def write_csv(self, path: Path) -> None:
        """Write a table with a row for each step and a column for each metric."""
        raise NotImplementedError
