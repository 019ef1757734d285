"""The confusion matrix: how often images of one class were taken for another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitfast.training.reporting.figures import new_figure, save
from vitfast.training.reporting.files import write_json

COUNTED, NAMED = 25, 60
"""Up to so many classes have counts in their cells, and names beside them."""


def confusion_matrix(labels: Any, predictions: Any, classes: int) -> np.ndarray:
    """Counts (true class, predicted class).

    >>> confusion_matrix([0, 1, 1, 2], [0, 1, 2, 2], 3).tolist()
    [[1, 0, 0], [0, 1, 1], [0, 0, 1]]
    """
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (np.asarray(labels), np.asarray(predictions)), 1)
    return counts


def draw_confusion(matrix: Any, class_names: Sequence[str], path: Any, *, title: str = "") -> None:
    """Draw it as a PNG, and write the counts beside it as JSON.

    The JSON has the classes, the counts, the accuracy and, for each class, its recall (how many of
    its images were found) and precision (how many that were taken for it are of it); null where
    there are none.

    Args:
        matrix: counts (true class, predicted class).
        class_names: as many.
        path: of the picture; the JSON's ends in .json.
        title: above the picture.

    Raises:
        ReportFailed: matplotlib is missing, or a file cannot be written.
        ValueError: matrix and names do not fit.
    """
    counts, names = np.asarray(matrix), [str(name) for name in class_names]
    if counts.shape != (len(names), len(names)):
        raise ValueError(
            f"matrix: expected counts of {len(names)} x {len(names)} classes, one for each of "
            f"class_names, got {counts.shape}"
        )
    right, shown = np.diagonal(counts), counts.sum(axis=1)
    accuracy = _ratios(right.sum(), counts.sum())
    recall, precision = _ratios(right, shown), _ratios(right, counts.sum(axis=0))
    data = {
        "classes": names, "matrix": counts, "accuracy": accuracy, "recall": recall,
        "precision": precision,
    }  # fmt: skip
    write_json(Path(path).with_suffix(".json"), {name: _plain(one) for name, one in data.items()})
    part = f"{right.sum():,} of {counts.sum():,} images right"
    part += "" if np.isnan(accuracy) else f" ({100 * accuracy:.2f} %)"
    figure = new_figure(*_size(names))
    figure.suptitle(f"{title}\n{part}" if title else part, fontsize=11)
    _matrix(figure.subplots(), counts, names, recall)
    save(figure, path)


def _matrix(axes: Any, counts: np.ndarray, names: Sequence[str], recall: np.ndarray) -> None:
    """The cells, coloured by their share of the true class, on a scale that shows rare ones."""
    shares = np.nan_to_num(_ratios(counts, counts.sum(axis=1, keepdims=True)))
    axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1, aspect="equal")
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.tick_params(length=0)
    if len(names) > NAMED:
        return
    places = range(len(names))
    long = max(map(len, names), default=0) > 3
    slanted = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if long else {}
    axes.set_xticks(places, names, **slanted)
    axes.set_yticks(places, names)
    right = axes.secondary_yaxis("right")
    right.set_yticks(places, ["" if np.isnan(one) else f"{100 * one:.1f}" for one in recall])
    right.set_ylabel("recall, %")
    right.tick_params(length=0)
    if len(names) > COUNTED:
        return
    for (i, j), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[i, j] > 0.3 else "#222222"
            size = 9 if len(str(counts.max())) < 5 and len(names) <= 12 else 6.5
            axes.text(j, i, str(count), ha="center", va="center", color=colour, fontsize=size)


def _size(names: Sequence[str]) -> tuple[float, float]:
    """Inches for so many classes."""
    cells = len(names) if len(names) <= NAMED else 20
    side = max(3.0, min(12.0, 0.52 * cells if cells <= COUNTED else 0.2 * cells))
    labels = 0.075 * max(map(len, names), default=0) if len(names) <= NAMED else 0.0
    return side + labels + 1.3, side + 0.7 * labels + 1.1


def _ratios(part: Any, whole: Any) -> np.ndarray:
    """Part / whole; NaN where the whole is 0."""
    part, whole = np.asarray(part, float), np.asarray(whole, float)
    return np.divide(part, whole, out=np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan),
                     where=whole > 0)  # fmt: skip


def _plain(value: Any) -> Any:
    """A list of lists, with None for NaN."""
    if isinstance(value, np.ndarray):
        return [_plain(one) for one in value] if value.ndim else _plain(value.item())
    if isinstance(value, float):
        return None if np.isnan(value) else round(value, 6)
    return value if isinstance(value, str) else value.item() if hasattr(value, "item") else value
