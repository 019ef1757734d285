"""Frameworks, imported when they are first used and not before: the kit needs none of them."""

from __future__ import annotations

from importlib import import_module, metadata
from typing import Any

EXTRAS = {"torch": "interop", "jax": "fast", "flax": "fast"}
"""The extra that installs each."""


def framework(module: str) -> Any:
    """A framework's module, such as "torch" or "flax.nnx".

    Raises:
        ImportError: it is not installed; the message is one line that says how to install it.
    """
    package = module.partition(".")[0]
    try:
        import_module(package)
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:  # it is there, but something that it needs is not
            raise
        extra = f", or 'vitspec[{EXTRAS[package]}]'" if package in EXTRAS else ""
        raise ImportError(
            f"this needs {package}: python -m pip install {package}{extra}", name=package
        ) from None


def installed_version(package: str) -> str:
    """The version of a framework, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
