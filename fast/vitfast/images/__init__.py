"""Images as a model takes them: from files, Pillow or arrays (docs/images.md)."""

from vitfast.images.errors import InvalidImage
from vitfast.images.processor import ImageProcessor
from vitfast.images.reading import FORMATS, MAX_PIXELS

__all__ = ["FORMATS", "MAX_PIXELS", "ImageProcessor", "InvalidImage"]
