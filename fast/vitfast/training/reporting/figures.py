"""Figures as small PNG files: matplotlib's Agg canvas, without the state of pyplot."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from vitfast.training.reporting.errors import ReportFailed
from vitfast.training.reporting.files import write_whole

DOTS = 110
"""Per inch."""

COLOURS = 128
"""Of a picture; a palette makes it a third of its size, and nothing looks other."""


def new_figure(width: float, height: float) -> Any:
    """A figure of so many inches, whose parts find their room by themselves."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ReportFailed(
            "pictures of a run need matplotlib: python -m pip install 'vitspec[train]'"
        ) from error
    figure = Figure(figsize=(width, height), dpi=DOTS, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: Any) -> None:
    """Draw the figure and write it as a PNG, whole or not at all."""
    from PIL import Image

    figure.canvas.draw()
    picture = Image.fromarray(memoryview_of(figure), "RGBA").convert("RGB")
    content = io.BytesIO()
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(content, "PNG", optimize=True)
    write_whole(Path(path), content.getvalue())


def memoryview_of(figure: Any) -> Any:
    """The canvas's pixels (height, width, 4)."""
    import numpy as np

    return np.asarray(figure.canvas.buffer_rgba())
