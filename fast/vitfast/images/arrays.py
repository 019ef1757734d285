"""An array as a picture: which axis holds the channels, and which values it may hold."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from PIL import Image

from vitfast.images.errors import InvalidImage

ChannelOrder = Literal["channels_last", "channels_first"]
CHANNELS = (1, 3, 4)
"""Grey, RGB, and RGB with alpha."""


def array_to_picture(array: Any, order: ChannelOrder | None = None) -> Image.Image:
    """The array (H, W), (H, W, C) or (C, H, W) as a picture of mode L, RGB or RGBA.

    Raises:
        InvalidImage: it is no picture; the text does not name it.
    """
    pixels = np.ascontiguousarray(to_levels(channels_last(array, order)))
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def channels_last(array: Any, order: ChannelOrder | None = None) -> Any:
    """The array as (H, W, C): by `order`, else whichever end can only be that of the channels."""
    if 0 in array.shape:
        raise InvalidImage([f"has no pixels: its shape is {array.shape}"])
    if array.ndim == 2:
        return array[..., None]
    if array.ndim != 3:
        raise InvalidImage(
            [f"its shape is {array.shape}; give (H, W), (H, W, C) or (C, H, W), or a list of these"]
        )
    first, last = array.shape[0] in CHANNELS, array.shape[-1] in CHANNELS
    if first and last and order is None:
        raise InvalidImage(
            [
                f"its shape {array.shape} can be (H, W, C) and (C, H, W): say which, "
                'input_data_format="channels_last" or "channels_first"'
            ]
        )
    first = first if order is None else order == "channels_first"
    if array.shape[0 if first else -1] not in CHANNELS or not (first or last):
        where = {None: "first or last", "channels_first": "first", "channels_last": "last"}[order]
        raise InvalidImage(
            [f"its shape is {array.shape}; 1, 3 or 4 channels are expected as the {where} axis"]
        )
    return np.moveaxis(array, 0, -1) if first else array


def to_levels(array: Any) -> Any:
    """The array as uint8: as it is, or the grey level of 256 that is nearest to each of [0, 1]."""
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise InvalidImage(
            [
                f"its scalar type is {array.dtype}; give uint8 from 0 to 255, or floats from 0 to "
                "1: for values from 0 to 255 that is array.astype(numpy.uint8), for all 16 bits "
                "array / 65535"
            ]
        )
    if unknown := int(np.count_nonzero(~np.isfinite(array))):
        raise InvalidImage([f"{unknown} of its {array.size} values are NaN or infinite"])
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 1:
        raise InvalidImage(
            [
                f"its values go from {low:g} to {high:g}; floats must go from 0 to 1: if these are "
                "0 to 255, give array / 255, if they pass by rounding alone, numpy.clip(array, 0, "
                "1); what is already normalised needs no processor"
            ]
        )
    return np.rint(array.astype(np.float64) * 255).astype(np.uint8)
