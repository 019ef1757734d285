"""Augmentation: what training does to an image by chance, so that it seldom sees the same twice.

Image number n of a run (n counts on through all epochs) has `DRAWS` numbers of its own: block n of
Philox (Salmon et al. 2011), a generator that gives any block without those before. So what happens
to it depends on the seed and on n alone, not on the batch, the process or the thread that reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vitfast.data.errors import DatasetError

DRAWS = 4
"""Numbers for each image: those of one block of Philox 4x64. Three are used."""


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training image once it has the model's size; nothing by default.

    Attributes:
        crop_padding: the image is framed with as many black pixels, and a part of its own size is
            cut out of that anywhere: a shift by up to `crop_padding` in each direction.
        horizontal_flip: whether every other image, by chance, is mirrored left to right.

    Raises:
        DatasetError: a field has another type, or is negative.
    """

    crop_padding: int = 0
    horizontal_flip: bool = False

    def __post_init__(self) -> None:
        if type(self.crop_padding) is not int or self.crop_padding < 0:
            raise DatasetError(
                f"crop_padding: must be a number of pixels, 0 or more, got {self.crop_padding!r}"
            )
        if not isinstance(self.horizontal_flip, bool):
            raise DatasetError(
                f"horizontal_flip: must be True or False, got {self.horizontal_flip!r}"
            )

    def apply(self, images: Any, draws: Any) -> Any:
        """The images after it: uint8, (b, H, W, C), as they are given.

        Args:
            images: (b, H, W, C); they are not changed.
            draws: (b, DRAWS), from 0 to less than 1: `draws_of` gives them.
        """
        if self.crop_padding:
            images = _shifted(images, self.crop_padding, draws[:, :2])
        if self.horizontal_flip:
            mirrored = draws[:, 2] < 0.5
            images = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
        return images


def draws_of(seed: int, first: int, count: int) -> Any:
    """The numbers of the images `first` to `first + count - 1` of a run: (count, DRAWS) float64."""
    key = np.random.SeedSequence(seed).generate_state(2, np.uint64)
    # NumPy steps the counter before it makes a block, hence block first + 1; which block is no
    # matter as long as each image has its own.
    words = np.random.Philox(key=key, counter=first).random_raw(count * DRAWS)
    return (words.reshape(count, DRAWS) >> np.uint64(11)) * 2.0**-53


def _shifted(images: Any, padding: int, draws: Any) -> Any:
    """Each image moved by one of the 2 * padding + 1 distances in each direction, alike likely."""
    height, width = images.shape[1:3]
    framed = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    corners = (draws * (2 * padding + 1)).astype(int)
    result = np.empty_like(images)
    for index, (top, left) in enumerate(corners):
        result[index] = framed[index, top : top + height, left : left + width]
    return result
