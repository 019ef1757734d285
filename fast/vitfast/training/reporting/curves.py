"""The curves of a run: loss and accuracy against steps and epochs.

Those of training, validation and test images are drawn together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitfast.training.reporting.figures import new_figure, save
from vitfast.training.reporting.metrics import by_step

COLOURS = {"train": "#1f6fb4", "validation": "#7a7a7a", "test": "#d1571b"}
"""Blue, grey and orange, which also the colour-blind can tell apart."""

MANY = 60
"""Points, above which a curve is drawn pale, with its running mean over it."""


def draw_curves(
    records: Sequence[Mapping[str, Any]],
    path: Any,
    *,
    title: str = "",
    steps_per_epoch: int | float | None = None,
) -> None:
    """Draw them as a PNG.

    Args:
        records: of a `MetricsLog`: loss and accuracy of train, validation and test, as train_loss,
            each where there is one. Accuracies are fractions.
        path: where to write.
        title: above the picture.
        steps_per_epoch: for an axis in epochs, above that in steps.

    Raises:
        ReportFailed: matplotlib is missing, or the file cannot be written.
    """
    rows = by_step(records)
    panels = ["loss"] + ["accuracy"] * any(
        f"{split}_accuracy" in row for row in rows for split in COLOURS
    )
    figure = new_figure(7.2, 1.0 + 2.9 * len(panels))
    if title:
        figure.suptitle(title, fontsize=11)
    axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for one, metric in zip(axes, panels, strict=True):
        for split in COLOURS:
            _curve(one, rows, split, metric)
        one.set_ylabel("accuracy, %" if metric == "accuracy" else metric)
        one.grid(color="#e4e4e4", linewidth=0.7)
        one.set_axisbelow(True)
        one.spines[["top", "right"]].set_visible(False)
        if one.lines:
            one.legend(frameon=False, loc="center right")
    axes[-1].set_xlabel("step")
    axes[-1].set_xlim(0, 1.01 * max([row["step"] for row in rows], default=1) or 1)
    figure.align_ylabels()
    if steps_per_epoch:
        _epochs(axes[0], steps_per_epoch)
    save(figure, path)


def _curve(axes: Any, rows: Sequence[Mapping[str, Any]], split: str, metric: str) -> None:
    """One metric of one split; what is not finite is a gap."""
    name, scale = f"{split}_{metric}", 100.0 if metric == "accuracy" else 1.0
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    if not points:
        return
    steps, values = np.array(points, float).T
    values = scale * np.where(np.isfinite(values), values, math.nan)
    label = _label(split, metric, steps, values)
    style = {"color": COLOURS[split], "linewidth": 1.6, "label": label}
    if len(steps) > MANY:
        axes.plot(steps, values, color=COLOURS[split], linewidth=0.6, alpha=0.3)
        axes.plot(steps, running_mean(values, len(values) // 30), **style)
    else:
        marker = {"marker": "o", "markersize": 3.5} if len(steps) <= MANY // 2 else {}
        axes.plot(steps, values, **style, **marker)


def _label(split: str, metric: str, steps: np.ndarray, values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    if len(finite) < len(values):
        return f"{split}: not finite at step {steps[~np.isfinite(values)][0]:.0f}"
    if split == "train":
        return "train"
    best = finite.max() if metric == "accuracy" else finite.min()
    which = "" if len(finite) == 1 else "best " if metric == "accuracy" else "lowest "
    return f"{split}: {which}" + (f"{best:.2f} %" if metric == "accuracy" else f"{best:.3g}")


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """The mean of the finite ones among each value and `width` on both sides; NaN stays."""
    finite = np.isfinite(values)
    ones = np.ones(2 * width + 1)
    middle = slice(width, width + len(values))
    sums = np.convolve(np.where(finite, values, 0.0), ones)[middle]
    counts = np.convolve(finite, ones)[middle]
    return np.where(finite, sums / np.maximum(counts, 1), math.nan)


def _epochs(axes: Any, steps_per_epoch: int | float) -> None:
    """An axis in epochs on top."""
    above = axes.secondary_xaxis(
        "top", functions=(lambda s: s / steps_per_epoch, lambda e: e * steps_per_epoch)
    )
    above.set_xlabel("epoch")
    above.spines["top"].set_color("#999999")
