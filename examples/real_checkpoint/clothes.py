"""A folder of pictures by class, to fine-tune on: 2,000 + 500 PNGs of Fashion-MNIST.

    python examples/real_checkpoint/clothes.py clothes
    vitfast train --data clothes --from dinov2 --image-size 56 --epochs 2

The first 200 training and 50 test images of each class, as files. Needs the extra `train`, and
Fashion-MNIST where `vitfast.data` finds it (docs/data.md).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from vitfast.data import load_dataset

EACH = {"train": 200, "test": 50}
"""Images of each class."""


def main() -> None:
    """Write the folder that is named on the command line."""
    root, dataset = Path(sys.argv[1]), load_dataset("fashion-mnist")
    for part, count in EACH.items():
        split = getattr(dataset, part)
        for number, name in enumerate(dataset.class_names):
            folder = root / part / name.split("/")[0].replace(" ", "-")
            folder.mkdir(parents=True)
            for index in np.flatnonzero(split.labels == number)[:count]:
                Image.fromarray(split.images[index][..., 0]).save(folder / f"{index:05d}.png")


if __name__ == "__main__":
    main()
