"""From a data set's images to what a model takes: the processor that is exported beside the model.

    images uint8 -> processor.pixels (resize, crop) -> augmentation -> processor.normalised

Without augmentation this is `processor(image)` bit for bit, so a model is used as it was trained.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vitfast.data.augmentation import Augmentation
from vitfast.data.dataset import ImageDataset, Split
from vitfast.data.errors import DatasetError
from vitfast.images import ImageProcessor

IMAGES_AT_ONCE = 4096


def dataset_processor(config: Any, dataset: ImageDataset) -> ImageProcessor:
    """The processor of a model that is trained on a data set.

    It resizes to the model's size (bilinear, as ViT's). Mean and standard deviation are those of
    the training images, rounded to four decimals; 0.5 and 0.5 where these are files, are of colour
    for a grey model, or do not vary.

    Args:
        config: the model's; its `image_h`, `image_w` and `in_channels` are used.
        dataset: what it is trained on.

    Raises:
        DatasetError: the model takes neither grey pictures nor RGB.
    """
    channels = config.in_channels
    if channels not in (1, 3):
        raise DatasetError(
            f"in_channels: pictures have 1 channel, grey, or 3, RGB; the model takes {channels}"
        )
    mean, std = (0.5,) * channels, (0.5,) * channels
    images = dataset.train.images
    if isinstance(images, np.ndarray) and images.shape[3] in (1, channels):
        moments = mean_and_std(images)
        if all(one > 0 for one in moments[1]):
            mean, std = (one * (channels // images.shape[3]) for one in moments)
    return ImageProcessor(
        size={"height": config.image_h, "width": config.image_w}, image_mean=mean, image_std=std
    )


def mean_and_std(images: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of each channel of (N, H, W, C) uint8, levels from 0 to 1, to four decimals.

    Counted by level, so that they do not depend on the order of a sum.
    """
    channels = images.shape[3]
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(images), IMAGES_AT_ONCE):
        part = images[start : start + IMAGES_AT_ONCE]
        for channel in range(channels):
            counts[channel] += np.bincount(part[..., channel].ravel(), minlength=256)
    levels, total = np.arange(256) / 255, counts.sum(axis=1)
    mean = counts @ levels / total
    variance = (counts * (levels - mean[:, None]) ** 2).sum(axis=1) / total
    return _rounded(mean), _rounded(np.sqrt(variance))


def prepared(
    split: Split,
    indices: Any,
    processor: ImageProcessor,
    augmentation: Augmentation | None = None,
    draws: Any = None,
) -> Any:
    """The images at `indices` as the model takes them: (b, H, W, C) float32.

    Args:
        split: where they are.
        indices: (b,) integers.
        processor: the model's.
        augmentation: what training does to them; None is nothing.
        draws: its random numbers, (b, DRAWS).
    """
    pixels = resized(split.images, indices, processor)
    if augmentation is not None:
        pixels = augmentation.apply(pixels, draws)
    return processor.normalised(pixels)


def resized(images: Any, indices: Any, processor: ImageProcessor) -> Any:
    """The images at `indices` as `processor.pixels` has them: (b, H, W, C) uint8."""
    if isinstance(images, np.ndarray) and _keeps(processor, images.shape[1:]):
        # All at once; one by one, each would pass through Pillow and come out the same.
        found = images[indices]
        copies = processor.channels // found.shape[3]
        return np.repeat(found, copies, axis=3) if copies > 1 else found
    return np.stack([processor.pixels(images[int(index)], "channels_last") for index in indices])


def image_shape(split: Split, processor: ImageProcessor) -> tuple[int, int, int]:
    """The shape (H, W, C) of the images as the model takes them.

    Raises:
        DatasetError: they have several, and cannot be a batch.
    """
    fixed = processor.do_center_crop or (processor.do_resize and "height" in processor.size)
    if not fixed and not isinstance(split.images, np.ndarray):
        raise DatasetError(
            "processor: its pictures have several sizes, which are no batch; let it resize to a "
            "height and a width, or crop"
        )
    height, width, channels = processor.pixels(split.images[0], "channels_last").shape
    return height, width, channels


def _keeps(processor: ImageProcessor, shape: tuple[int, ...]) -> bool:
    """Whether pictures of this shape pass as they are, but for grey that is repeated."""
    size = {"height": shape[0], "width": shape[1]}
    return (
        shape[2] in (1, processor.channels)
        and (not processor.do_resize or processor.size == size)
        and (not processor.do_center_crop or processor.crop_size == size)
    )


def _rounded(values: Any) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in values)
