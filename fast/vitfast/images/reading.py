"""A picture from a file, its bytes, Pillow or an array: upright, opaque, 8 bits (docs/images.md).

Every failure is an `InvalidImage` that names the picture, whatever the decoder raises, and no
warning is let through. Files are read in a few formats only: Pillow has decoders for many more,
old ones among them, and one that starts another program.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from vitfast.images.arrays import ChannelOrder, array_to_picture
from vitfast.images.errors import InvalidImage
from vitfast.images.quiet import without_warnings

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""The formats of files."""

MAX_PIXELS = 89_478_485
"""The most pixels that a picture may have unless a processor says otherwise: Pillow's own limit."""

ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by its EXIF orientation."""

TRANSPARENT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
"""Those in which a picture may have transparent pixels."""

OPAQUE_MODES = ("RGBX", "CMYK", "YCbCr", "HSV")

EMPTY = "is empty; copy or download it again, or leave it out"


def read_picture(
    source: Any, max_pixels: int = MAX_PIXELS, order: ChannelOrder | None = None
) -> Image.Image:
    """The picture, upright and opaque, of mode L (grey) or RGB.

    Args:
        source: a path, a binary file, the bytes of one, a Pillow image, or a NumPy array.
        max_pixels: the most pixels that it may have, by its header.
        order: where an array's channels are, if that is not clear from its shape.

    Raises:
        InvalidImage: it cannot be used.
    """
    try:
        if isinstance(source, np.ndarray):
            return _opaque(array_to_picture(source, order))
        with without_warnings():
            return _read(source, max_pixels)
    except InvalidImage as error:
        raise InvalidImage([f"{label(source)}: {error}"]) from error.__cause__


def read_header(path: Any, max_pixels: int = MAX_PIXELS) -> tuple[int, int, str]:
    """Width, height and Pillow's mode of a file, by its header alone: nothing is decoded.

    Raises:
        InvalidImage: it cannot be used, as far as the header says.
    """
    try:
        with without_warnings(), _opened(path) as file, _identified(file) as picture:
            return *_checked_size(picture, max_pixels), picture.mode
    except InvalidImage as error:
        raise InvalidImage([f"{label(path)}: {error}"]) from error.__cause__


def label(source: Any) -> str:
    """What to call the picture in a message."""
    if isinstance(source, str | os.PathLike):
        return str(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return f"the {len(source)} bytes"
    if isinstance(source, Image.Image):
        return f"the Pillow image of mode {source.mode}, {source.width} x {source.height}"
    if isinstance(source, np.ndarray):
        return f"the {source.dtype} array of shape {source.shape}"
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else f"the {type(source).__name__}"


def _read(source: Any, max_pixels: int) -> Image.Image:
    if isinstance(source, Image.Image):
        return _decoded(source, max_pixels)
    if isinstance(source, str | os.PathLike):
        with _opened(source) as file:
            return _from_file(file, max_pixels)
    if isinstance(source, bytes | bytearray | memoryview):
        if not len(source):
            raise InvalidImage([EMPTY])
        return _from_file(io.BytesIO(source), max_pixels)
    if callable(getattr(source, "read", None)):
        return _from_file(source, max_pixels)
    raise InvalidImage(
        [
            "is no picture; give a path, a binary file, bytes, a Pillow image or a NumPy array "
            "(for a tensor or another array, numpy.asarray of it)"
        ]
    )


def _opened(path: Any) -> io.BufferedReader:
    """The file; what is no ordinary one (a pipe would be waited for) is not opened."""
    try:
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode):
            raise InvalidImage(["is a directory; name the files in it"])
        if not stat.S_ISREG(found.st_mode):
            raise InvalidImage(["is no ordinary file; read it, and give the bytes"])
        if found.st_size == 0:
            raise InvalidImage([EMPTY])
        return Path(path).open("rb")
    except InvalidImage:
        raise
    except FileNotFoundError as error:
        if str(path).startswith(("http://", "https://")):
            raise InvalidImage(["is an address; download the file, and name that"]) from error
        raise InvalidImage(["there is no such file"]) from error
    except (OSError, ValueError, TypeError) as error:
        raise InvalidImage([f"cannot be opened: {error}"]) from error


def _from_file(file: Any, max_pixels: int) -> Image.Image:
    with _identified(file) as picture:
        return _decoded(picture, max_pixels)


def _identified(file: Any) -> Image.Image:
    """The picture by its header, not yet decoded."""
    try:
        start = file.read(0)
    except Exception as error:
        raise InvalidImage([f"cannot be read: {_said(error)}"]) from error
    if not isinstance(start, bytes):
        raise InvalidImage(['is open as text; open it with mode "rb"'])
    try:
        return Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise InvalidImage(
            [
                f"{error} If you trust the file, raise PIL.Image.MAX_IMAGE_PIXELS, Pillow's own "
                "limit, and max_pixels"
            ]
        ) from error
    except UnidentifiedImageError as error:
        raise InvalidImage(
            [
                f"is damaged, or no picture in one of the formats {', '.join(FORMATS)}; another "
                "format can be opened with Pillow, and the image given"
            ]
        ) from error
    except Exception as error:
        raise InvalidImage([f"is damaged: {_said(error)}"]) from error


def _decoded(picture: Image.Image, max_pixels: int) -> Image.Image:
    """The picture's current frame: decoded, upright, opaque; the picture itself is left alone."""
    width, height = _checked_size(picture, max_pixels)
    kind = f"{picture.format or 'picture'}, {width} x {height}"
    try:
        picture.load()
        return _opaque(_upright(picture))
    except InvalidImage:
        raise
    # A decoder that meets damage raises whatever it comes to: OSError, SyntaxError, struct.error,
    # zlib.error, IndexError, EOFError, and more.
    except Exception as error:
        raise InvalidImage(
            [f"damaged {kind}: {_said(error)}; copy or download it again, or leave it out"]
        ) from error


def _checked_size(picture: Image.Image, max_pixels: int) -> tuple[int, int]:
    """Width and height, if they are allowed."""
    width, height = picture.size
    if not width or not height:
        raise InvalidImage(["has no pixels"])
    if width * height > max_pixels:
        raise InvalidImage(
            [
                f"{width} x {height} are {width * height} pixels, more than max_pixels "
                f"({max_pixels}): make it smaller, or raise max_pixels if you trust it"
            ]
        )
    return width, height


def _upright(picture: Image.Image) -> Image.Image:
    """The picture turned by its EXIF orientation; metadata that cannot be read turn nothing."""
    try:
        turn = TURNS.get(picture.getexif().get(ORIENTATION))
    except Exception:
        turn = None
    return picture if turn is None else picture.transpose(turn)


def _opaque(picture: Image.Image) -> Image.Image:
    """The picture in mode L or RGB, on white where it is transparent."""
    # A PPM of 16 bits has mode I, and all its 65536 levels whatever its own highest is.
    if picture.mode.startswith("I;16") or (picture.mode, picture.format) == ("I", "PPM"):
        return _from_16_bits(picture)
    if picture.mode == "F":
        return array_to_picture(np.asarray(picture))
    if picture.mode not in TRANSPARENT_MODES + OPAQUE_MODES:
        raise InvalidImage(
            [f"pictures of Pillow's mode {picture.mode} have no rule; convert it to RGB or L first"]
        )
    if picture.mode in TRANSPARENT_MODES and (
        "A" in picture.mode or picture.info.get("transparency") is not None
    ):
        upper = picture.convert("RGBA")
        white = Image.new("RGBA", upper.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, upper).convert("RGB")
    return picture.convert("L" if picture.mode in ("1", "L") else "RGB")


def _from_16_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits by its nearest of 8: 65535 = 257 * 255. Pillow's conversion would clip."""
    values = np.asarray(picture)
    levels = np.rint(values / 257).astype(np.uint8)
    transparent = picture.info.get("transparency")
    if isinstance(transparent, int):
        levels[values == transparent] = 255
    return Image.fromarray(levels)


def _said(error: Exception) -> str:
    """What the decoder said, on one line, with the class where that says more than the text."""
    text = " ".join(str(error).split())
    return text if isinstance(error, OSError) and text else f"{type(error).__name__} {text}".strip()
