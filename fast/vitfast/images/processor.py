"""`ImageProcessor`: from any picture to what a model takes, as its checkpoint says.

    upright, opaque, RGB -> resize (8 bits) -> crop the centre -> factor * level -> (x - mean) / std

All as transformers' processors on Pillow have it (ViT's, DeiT's, and BiT's, which DINOv2 uses), bit
for bit; what they leave to chance has a rule here (docs/images.md).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
from PIL import Image

from vitfast.images import config
from vitfast.images.arrays import ChannelOrder
from vitfast.images.errors import InvalidImage
from vitfast.images.reading import MAX_PIXELS, label, read_picture
from vitspec.errors import NotWellFormed


@dataclass(frozen=True)
class ImageProcessor:
    """What happens to a picture before a model sees it; the defaults are those of ViT's.

    Attributes:
        do_resize: whether the picture is resized.
        size: to which size: {"height": H, "width": W}, whatever its shape was, or
            {"shortest_edge": S}, which keeps its shape; also (H, W), or one number for a square.
        resample: Pillow's filter: 0 nearest, 1 lanczos, 2 bilinear, 3 bicubic, 4 box, 5 hamming.
        do_center_crop: whether the centre is cut out, with black around what is smaller.
        crop_size: its {"height": H, "width": W}.
        do_rescale: whether grey levels are multiplied by `rescale_factor`.
        rescale_factor: 1 / 255 makes numbers from 0 to 1.
        do_normalize: whether `image_mean` is then subtracted, and divided by `image_std`.
        image_mean, image_std: one number a channel: three, or one for a model of grey pictures.
        do_convert_rgb: kept for the file; pictures are always given the model's channels.
        image_processor_type: transformers' name of it: ViTImageProcessor, DeiTImageProcessor or
            BitImageProcessor.
        max_pixels: the most pixels of a picture, before and after it is resized; not in the file.

    Raises:
        NotWellFormed: with everything that is wrong.

    >>> ImageProcessor(size=32)(np.zeros((20, 30, 3), np.uint8)).shape
    (1, 32, 32, 3)
    """

    do_resize: bool = True
    size: Any = field(default_factory=lambda: {"height": 224, "width": 224})
    resample: int = 2
    do_center_crop: bool = False
    crop_size: Any = None
    do_rescale: bool = True
    rescale_factor: float | int = 1 / 255
    do_normalize: bool = True
    image_mean: Any = config.HALF
    image_std: Any = config.HALF
    do_convert_rgb: bool = False
    image_processor_type: str = "ViTImageProcessor"
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        values, problems = config.canonical(self._values())
        if type(self.max_pixels) is not int or self.max_pixels <= 0:
            problems.append(f"max_pixels: must be a positive integer, got {self.max_pixels!r}")
        if problems:
            raise NotWellFormed("ImageProcessor", problems)
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __call__(
        self,
        images: Any,
        *,
        data_format: ChannelOrder = "channels_last",
        input_data_format: ChannelOrder | None = None,
    ) -> Any:
        """The pictures as a batch: float32, (batch, height, width, channels).

        Args:
            images: a picture, or an iterable of pictures: paths, binary files, bytes, Pillow images
                or NumPy arrays; an array of four axes is a batch.
            data_format: "channels_first" makes it (batch, channels, height, width).
            input_data_format: where arrays have their channels, if their shapes do not tell.

        Raises:
            InvalidImage: with every picture that cannot be used.
        """
        for order in (data_format, input_data_format or "channels_last"):
            if order not in get_args(ChannelOrder):
                raise ValueError(f"expected 'channels_last' or 'channels_first', got {order!r}")
        pixels = self._batch(images, input_data_format)
        batch = self.normalised(pixels)
        if data_format == "channels_first":
            return np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
        return batch

    def normalised(self, pixels: Any) -> Any:
        """What the model takes for such `pixels`, uint8 (..., C): float32 of the same shape."""
        table = config.level_table(self._values())
        batch = np.empty(pixels.shape, np.float32)
        for channel in range(self.channels):
            # No level is outside of the table; "clip" is only the fastest way.
            levels = pixels[..., channel]
            batch[..., channel] = np.take(table[:, channel], levels, mode="clip")
        return batch

    @property
    def channels(self) -> int:
        """The model's channels: 3, or 1 for grey."""
        return len(self.image_mean)

    def pixels(self, image: Any, input_data_format: ChannelOrder | None = None) -> Any:
        """The picture as the model will see it, resized and cropped: uint8, (height, width, C)."""
        picture = read_picture(image, self.max_pixels, input_data_format)
        picture = picture.convert("L" if self.channels == 1 else "RGB")
        if self.do_resize:
            picture = picture.resize(self._resized(picture, image), Image.Resampling(self.resample))
        levels = np.asarray(picture).reshape(picture.height, picture.width, self.channels)
        if self.do_center_crop:
            levels = center_crop(levels, self.crop_size["height"], self.crop_size["width"])
        return levels

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], max_pixels: int = MAX_PIXELS) -> ImageProcessor:
        """The processor that the contents of a `preprocessor_config.json` describe."""
        return cls._from_json(dict(data), "preprocessor_config", "ViT", max_pixels)

    @classmethod
    def from_pretrained(cls, path: Any, max_pixels: int = MAX_PIXELS) -> ImageProcessor:
        """The processor of a checkpoint's directory, or of the JSON file itself.

        Raises:
            FileNotFoundError: there is none.
            NotWellFormed: it is of another type, or something in it is wrong: everything is listed.
        """
        file = Path(path)
        file = file / config.FILE_NAME if file.is_dir() else file
        data = config.read_json(file)
        kind = "ViT" if config.named(data) is not None else config.kind_beside(file)
        return cls._from_json(data, str(file), kind, max_pixels)

    def to_dict(self) -> dict[str, Any]:
        """The contents of `preprocessor_config.json`, as transformers writes them."""
        return config.to_json(self._values())

    def save_pretrained(self, directory: Any) -> None:
        """Write `preprocessor_config.json` into the directory, whole or not at all."""
        from vitspec.testing.report.files import write_atomically

        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True, allow_nan=False)
        write_atomically(folder / config.FILE_NAME, text + "\n")

    @classmethod
    def _from_json(
        cls, data: dict[str, Any], subject: str, kind: str, max_pixels: int
    ) -> ImageProcessor:
        values, problems = config.from_json(data, kind)
        problems += config.canonical(values)[1]
        if problems:
            raise NotWellFormed(subject, problems)
        return cls(**values, max_pixels=max_pixels)

    def _values(self) -> dict[str, Any]:
        return {
            one.name: getattr(self, one.name) for one in fields(self) if one.name != "max_pixels"
        }

    def _batch(self, images: Any, order: ChannelOrder | None) -> Any:
        """All pictures' pixels, (batch, height, width, C), or an error that lists all bad ones."""
        if not _is_many(images):
            return self.pixels(images, order)[None]
        sources, pixels, problems = list(images), [], []
        if not sources:
            raise InvalidImage(["there is no image in the list"])
        for index, source in enumerate(sources):
            try:
                pixels.append(self.pixels(source, order))
            except InvalidImage as error:
                problems += [f"image {index}, {problem}" for problem in error.problems]
        if problems:
            raise InvalidImage(problems, len(sources))
        if len({one.shape for one in pixels}) > 1:
            first = {one.shape[:2]: index for index, one in reversed(list(enumerate(pixels)))}
            sizes = ", ".join(
                f"{height} x {width} (image {index}, {label(sources[index])})"
                for (height, width), index in sorted(first.items(), key=lambda item: item[1])
            )
            raise InvalidImage(
                [f"a batch has one size, these pictures several: {sizes}; resize or crop them"]
            )
        return np.stack(pixels)

    def _resized(self, picture: Image.Image, source: Any) -> tuple[int, int]:
        """The width and height to resize to."""
        height, width = picture.height, picture.width
        if "shortest_edge" in self.size:
            edge = self.size["shortest_edge"]
            longest = int(edge * max(height, width) / min(height, width))
            to = (edge, longest) if width <= height else (longest, edge)
        else:
            to = (self.size["width"], self.size["height"])
        if to[0] * to[1] > self.max_pixels:
            raise InvalidImage(
                [
                    f"{label(source)}: its {width} x {height} pixels would become {to[0]} x {to[1]}"
                    f", more than max_pixels ({self.max_pixels}): cut it, or raise max_pixels"
                ]
            )
        return to


def center_crop(pixels: Any, height: int, width: int) -> Any:
    """The centre of (H, W, C), with zeros around what is smaller."""
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    inner = pixels[max(top, 0) : max(top, 0) + height, max(left, 0) : max(left, 0) + width]
    if inner.shape[:2] == (height, width):
        return inner
    result = np.zeros((height, width, pixels.shape[2]), pixels.dtype)
    above, before = max(-top, 0), max(-left, 0)
    result[above : above + inner.shape[0], before : before + inner.shape[1]] = inner
    return result


def _is_many(images: Any) -> bool:
    if isinstance(images, np.ndarray):
        return images.ndim == 4
    one = isinstance(images, str | bytes | bytearray | memoryview | os.PathLike | Mapping)
    one = one or any(hasattr(images, name) for name in ("read", "__array__", "__array_interface__"))
    return not one and isinstance(images, Iterable)
