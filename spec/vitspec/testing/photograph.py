"""The photograph that checks at full size look at: 224 x 224 (data/PROVENANCE.md)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vitspec.typing import Array

PHOTOGRAPH = Path(__file__).with_name("data") / "astronaut.png"


def load_photograph() -> Array:
    """The photograph as float64 in [-1, 1], (3, 224, 224)."""
    from PIL import Image

    with Image.open(PHOTOGRAPH) as picture:
        pixels = np.asarray(picture.convert("RGB"), np.float64)
    return (pixels / 127.5 - 1).transpose(2, 0, 1)
