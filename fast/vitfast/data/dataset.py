"""`ImageDataset`: a training split and a test split of images with their classes.

    images (N, H, W, C) uint8      labels (N,) int32, from 0

Images that do not fit into memory, or have several sizes, are a sequence that reads one (H, W, C)
at an index.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitfast.data.errors import DatasetError


@dataclass(frozen=True, eq=False)
class Split:
    """Images and the class of each.

    Attributes:
        images: (N, H, W, C) uint8, or a sequence of N that reads an (H, W, C) uint8 at an index.
        labels: (N,) int32, the number of each image's class.

    Raises:
        DatasetError: there are not as many labels as images.
    """

    images: Any
    labels: Any

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels)
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise DatasetError(
                f"labels: expected one integer for each image, got {labels.dtype} of shape "
                f"{labels.shape}"
            )
        if len(self.images) != len(labels):
            raise DatasetError(
                f"there are {len(self.images)} images and {len(labels)} labels; give one label for "
                "each image"
            )
        object.__setattr__(self, "labels", labels.astype(np.int32))

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Any) -> Split:
        """The images and labels at these places, in this order."""
        indices = np.asarray(indices)
        if isinstance(self.images, np.ndarray):
            return Split(self.images[indices], self.labels[indices])
        return Split(Selected(self.images, indices), self.labels[indices])


class Selected(Sequence):
    """Some of a sequence's images, read when they are asked for."""

    def __init__(self, images: Any, indices: Any) -> None:
        self._images, self._indices = images, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: Any) -> Any:
        return self._images[int(self._indices[index])]


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """What a model is trained on, and tested on.

    Attributes:
        name: what to call it.
        train, test: its splits.
        class_names: the name of each class, by its number.
        fingerprint: SHA-256, in hexadecimal, of what was read (docs/data.md).
        channels: 1 for grey images, 3 for RGB.
        image_size: the height and width of all its images; None where there are several.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    fingerprint: str
    channels: int
    image_size: tuple[int, int] | None

    @classmethod
    def from_arrays(
        cls,
        train_images: Any,
        train_labels: Any,
        test_images: Any,
        test_labels: Any,
        *,
        class_names: Sequence[str] | None = None,
        name: str = "arrays",
    ) -> ImageDataset:
        """A data set of arrays.

        Args:
            train_images: (N, H, W) grey or (N, H, W, C) with 1 or 3 channels, uint8.
            train_labels: (N,), integers from 0.
            test_images: the same, of the same H, W and C.
            test_labels: the same.
            class_names: the classes' names; None calls them by their numbers.
            name: what to call it.

        Raises:
            DatasetError: they are no such arrays.
        """
        splits = {
            "train": (_checked_images("train_images", train_images), train_labels),
            "test": (_checked_images("test_images", test_images), test_labels),
        }
        train, test = (Split(*arrays) for arrays in splits.values())
        if train.images.shape[1:] != test.images.shape[1:]:
            raise DatasetError(
                f"training images are (H, W, C) = {train.images.shape[1:]}, test images "
                f"{test.images.shape[1:]}; give them one shape"
            )
        if class_names is None:
            class_names = [str(number) for number in range(int(train.labels.max()) + 1)]
        for which, split in (("train", train), ("test", test)):
            check_labels(f"{which}_labels", split.labels, len(class_names))
        return cls(
            name=name,
            train=train,
            test=test,
            class_names=tuple(class_names),
            fingerprint=arrays_fingerprint(
                train.images, train.labels, test.images, test.labels, class_names
            ),
            channels=train.images.shape[3],
            image_size=(train.images.shape[1], train.images.shape[2]),
        )


def check_labels(subject: str, labels: Any, classes: int) -> None:
    """Raises `DatasetError` if a label is not the number of a class."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise DatasetError(
            f"{subject}: {wrong.size} of {len(labels)} labels are no class from 0 to "
            f"{classes - 1}, first {int(labels[wrong[0]])} of image {int(wrong[0])}"
        )


def arrays_fingerprint(*parts: Any) -> str:
    """SHA-256 over arrays (scalar type, shape, values) and lists of names, in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.newbyteorder('<')}{part.shape}\n".encode())
            little = part.astype(part.dtype.newbyteorder("<"), copy=False)
            digest.update(np.ascontiguousarray(little).data)
        else:
            digest.update(repr(tuple(part)).encode() + b"\n")
    return digest.hexdigest()


def _checked_images(subject: str, images: Any) -> Any:
    """The images as (N, H, W, C) uint8."""
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise DatasetError(
            f"{subject}: expected uint8, grey levels from 0 to 255, got {images.dtype}; floats "
            "from 0 to 1 are numpy.rint(images * 255).astype(numpy.uint8)"
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or 0 in images.shape or images.shape[3] not in (1, 3):
        raise DatasetError(
            f"{subject}: expected (N, H, W), or (N, H, W, C) with C = 1 or 3, none of them 0, got "
            f"{images.shape}"
        )
    return images
