"""What made a run: configurations, data, versions, devices, and which specification."""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import vitspec

PACKAGES = ("numpy", "jax", "jaxlib", "flax", "optax", "tokamax", "grain", "orbax-checkpoint")
"""Whose versions are recorded, beside Python's and vitspec's."""

NOT_SPECIFICATION = ("testing", "commands", "cli.py")
"""What in the package vitspec is about the specification, and not the specification itself."""


def describe_run(config: Any, model: Any, dataset: Any, **more: Any) -> dict[str, Any]:
    """What goes into run.json: what the run's result follows from, and what runs it now.

    Args:
        config: the `TrainConfig`; any dataclass or mapping.
        model: the model's configuration, likewise.
        dataset: an `ImageDataset`; its name, fingerprint, sizes and class names are taken.
        more: what else the result follows from, as the checkpoint from which it begins.

    Raises:
        TypeError: something has no form in JSON.
    """
    data = {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "train": len(dataset.train),
        "test": len(dataset.test),
        "classes": list(dataset.class_names),
    }
    what = {"config": config, "model": model, "dataset": data, **more}
    return {name: _as_data(value, name) for name, value in what.items()} | {"session": session()}


def session() -> dict[str, Any]:
    """This process: its time, command line, versions, devices and specification."""
    import jax

    device = jax.devices()[0]
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(sys.argv),
        "versions": versions(),
        "devices": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "processes": jax.process_count(),
        },
        "float64": bool(jax.config.jax_enable_x64),
        "specification": specification_hash(),
    }


def versions() -> dict[str, str]:
    """Versions of Python, vitspec and the packages that are installed, without importing them."""
    found = {"python": platform.python_version(), "vitspec": vitspec.__version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def specification_hash() -> str:
    """SHA-256 over the sources of vitspec's specification.

    These are the Python files of the package vitspec, without the conformance kit, the commands
    and the command line: `layers`, `models`, and the modules beside them. In the order of their
    names, each counts with its name in the package, its length in bytes and its bytes, with line
    ends as on Unix. So the hash is the same on every machine, and another one for every change,
    even of a comment.
    """
    digest = hashlib.sha256()
    for name, content in sorted(_sources(resources.files("vitspec"))):
        digest.update(f"{name}\n{len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _sources(folder: Any, above: str = "") -> Iterator[tuple[str, bytes]]:
    for one in folder.iterdir():
        name = above + one.name
        if name in NOT_SPECIFICATION:
            continue
        if one.is_dir():
            yield from _sources(one, f"{name}/")
        elif name.endswith(".py"):
            yield name, one.read_bytes().replace(b"\r\n", b"\n")


def _as_data(value: Any, name: str) -> Any:
    """A value as JSON has it; a dataclass is a dict of its fields."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {one.name: getattr(value, one.name) for one in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _as_data(one, f"{name}.{key}") for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_as_data(one, f"{name}[{i}]") for i, one in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"{name}: expected numbers, strings, sequences, mappings or dataclasses, "
        f"got {type(value).__name__}"
    )
