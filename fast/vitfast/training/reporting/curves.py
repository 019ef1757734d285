"""The curves of a run: loss and accuracy against steps and epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def draw_curves(
    records: Sequence[Mapping[str, Any]],
    path: Path,
    *,
    title: str = "",
    steps_per_epoch: float | None = None,
) -> None:
    """Draw loss and accuracy of a `MetricsLog`'s records as a PNG."""
    raise NotImplementedError
