"""The confusion matrix: how often an image of one class was taken for another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def confusion_matrix(labels: Any, predictions: Any, classes: int) -> Any:
    """Counts (true class, predicted class), int64."""
    raise NotImplementedError


def draw_confusion(matrix: Any, class_names: Sequence[str], path: Path, *, title: str = "") -> None:
    """Draw counts (true class, predicted class) as a PNG, and write them beside it as JSON."""
    raise NotImplementedError
