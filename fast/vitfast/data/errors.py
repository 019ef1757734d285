"""The error for data that cannot be used."""

from __future__ import annotations

from typing import Any


class DatasetError(ValueError):
    """A data set cannot be used; one line says which, what is wrong with it, and what to do."""


def shown(name: Any) -> str:
    """A file's or folder's name in a message: escaped where it would not stay on one line."""
    text = str(name)
    return text if text.isprintable() else ascii(text)
