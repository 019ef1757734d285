"""`load_dataset`: the data set of a name or of a directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vitfast.data import idx
from vitfast.data.dataset import ImageDataset
from vitfast.data.digits import read_digits
from vitfast.data.errors import DatasetError, shown
from vitfast.data.folders import read_folders

FASHION_MNIST = "fashion-mnist"
FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

DEBIAN = Path("/usr/share/datasets")
"""Where Debian's package dataset-fashion-mnist has the folder `fashion-mnist`."""

VARIABLE = "VITFAST_DATA"
"""The environment variable with a directory to look in before."""


def load_dataset(source: Any, *, held_out: float = 0.2, split_seed: int = 0) -> ImageDataset:
    """The data set that a name or a directory stands for.

    Args:
        source: "digits", "fashion-mnist", or a directory: with four IDX files, with `train` and
            `test`, `val` or `validation`, or with a folder for each class (docs/data.md).
        held_out: how much of each class is the test split, where there is none.
        split_seed: another one holds out other images.

    Raises:
        DatasetError: it is not there, or cannot be used.
    """
    if source == "digits":
        return read_digits(held_out, split_seed)
    if source == FASHION_MNIST:
        return idx.read_dataset(_fashion_mnist(), FASHION_MNIST, FASHION_MNIST_CLASSES)
    folder = Path(source)
    if not os.path.isdir(folder):
        what = "is no directory" if os.path.exists(folder) else "there is no such directory"
        raise DatasetError(f'{shown(folder)}: {what}; give one, or "digits" or "{FASHION_MNIST}"')
    if _has_idx(folder):
        fashion = folder.resolve().name == FASHION_MNIST
        name = FASHION_MNIST if fashion else folder.resolve().name
        return idx.read_dataset(folder, name, FASHION_MNIST_CLASSES if fashion else None)
    return read_folders(folder, held_out, split_seed)


def _fashion_mnist() -> Path:
    """The first directory that has one of its files."""
    given = os.environ.get(VARIABLE)
    places = [Path(given) / FASHION_MNIST] if given else []
    places.append(DEBIAN / FASHION_MNIST)
    for place in places:
        if _has_idx(place):
            return place
    raise DatasetError(
        f"{FASHION_MNIST}: its files are not in {' nor in '.join(map(shown, places))}; install "
        f"Debian's package dataset-fashion-mnist, set {VARIABLE} to a directory that has "
        f"{FASHION_MNIST}/, or give the directory with the files itself"
    )


def _has_idx(folder: Path) -> bool:
    return any(
        idx.find(folder, split, dimensions) for split in ("train", "t10k") for dimensions in (1, 3)
    )
