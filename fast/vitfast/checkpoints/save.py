"""A checkpoint, written into a folder as transformers writes it."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vitfast.checkpoints.config_writing import natural_architecture, write_config
from vitfast.checkpoints.errors import CheckpointError, InvalidTensors, quoted
from vitfast.checkpoints.labels import Labels
from vitfast.checkpoints.matching import Parameters
from vitfast.checkpoints.names import ARCHITECTURES, Architecture
from vitfast.checkpoints.safetensors_file import write_safetensors
from vitfast.checkpoints.stored import FLOATS
from vitfast.checkpoints.transaction import Transaction
from vitfast.checkpoints.weights import PYTORCH, SAFETENSORS
from vitspec.models.vision_transformer_parameters import Shapes, parameter_shapes
from vitspec.vision_transformer_config import VisionTransformerConfig

_OURS = re.compile(r"model(-[0-9]{5}-of-[0-9]{5})?\.safetensors(\.index\.json)?")
"""The files that hold weights in our format, and so must not outlive them."""


def save_checkpoint(
    folder: str | os.PathLike[str],
    config: VisionTransformerConfig,
    flat: Mapping[str, Any],
    labels: Labels | Sequence[str] | None = None,
    architecture: str | None = None,
    max_shard_size: int | None = None,
) -> None:
    """Write a model so that transformers loads it without a missing or unexpected key.

    The folder is made if there is none. An earlier checkpoint in it is replaced, other files stay.
    Nothing is changed before everything is written.

    Args:
        folder: where to write config.json and the weights.
        config: the architecture.
        flat: arrays of one scalar type with the names and shapes of `parameter_shapes`; one at a
            time is asked for and kept.
        labels: the names of the classes.
        architecture: the class of transformers to be; if None, the one that the configuration is.
        max_shard_size: bytes of the largest file of weights, unless one tensor is larger; None
            makes one file.

    Raises:
        CheckpointError: transformers has no such model, or the folder cannot be written.
        InvalidTensors: the arrays do not fit the configuration; every fault is listed.
    """
    kind = _architecture(config, architecture)
    if labels is not None and not isinstance(labels, Labels):
        labels = Labels.of(labels)
    if max_shard_size is not None and max_shard_size < 1:
        raise CheckpointError(
            "max_shard_size", [f"expected a positive number of bytes, got {max_shard_size}"]
        )
    described = write_config(config, kind, labels, dtype="")
    shapes = parameter_shapes(config)
    dtype = _require_fit(flat, shapes, f"the parameters for {kind.name}")
    described["dtype"] = dtype
    shards = _shards(shapes, FLOATS[dtype].itemsize, max_shard_size)
    path = Path(folder)
    try:
        stale = _require_writable(path, [*shards, SAFETENSORS.index, "config.json"])
        with Transaction(path) as transaction:
            for file, names in shards.items():
                tensors = [_tensor(kind, flat, name, shapes[name], dtype) for name in names]
                transaction.write(file, partial(_write_weights, tensors))
            if len(shards) > 1:
                index = _index(kind, shapes, shards, FLOATS[dtype].itemsize)
                transaction.write(SAFETENSORS.index, partial(_write_json, index))
            transaction.write("config.json", partial(_write_json, described))
            transaction.commit(stale)
    except OSError as error:
        raise CheckpointError(
            str(path), [f"cannot be written: {error.strerror}; nothing was changed"]
        ) from error


def _architecture(config: VisionTransformerConfig, name: str | None) -> Architecture:
    if name is None:
        return natural_architecture(config)
    if name not in ARCHITECTURES:
        raise CheckpointError(
            "architecture", [f"expected one of {', '.join(ARCHITECTURES)}, got {quoted(name)}"]
        )
    return ARCHITECTURES[name]


def _require_fit(flat: Mapping[str, Any], shapes: Shapes, subject: str) -> str:
    """The scalar type of the arrays, which have these names and shapes."""
    problems = [f"{n}: missing, expected shape {shapes[n]}" for n in shapes if n not in flat]
    problems += [f"{quoted(name)}: unexpected name" for name in flat if name not in shapes]
    dtypes: dict[str, None] = {}
    for name, expected in shapes.items():
        if name in flat:
            shape, dtype = _described(flat, name)
            dtypes[dtype] = None
            if shape != expected:
                problems.append(f"{name}: expected shape {expected}, got {shape}")
            if dtype not in FLOATS:
                problems.append(f"{name}: expected one of {', '.join(FLOATS)}, got {dtype}")
    if len(dtypes) > 1:
        problems.append(f"the arrays mix the scalar types {', '.join(dtypes)}; expected one")
    if problems:
        raise InvalidTensors(subject, problems)
    return next(iter(dtypes))


def _described(flat: Mapping[str, Any], name: str) -> tuple[tuple[int, ...], str]:
    """Shape and scalar type of an array, without reading it where that can be avoided."""
    if isinstance(flat, Parameters):
        return flat.shape(name), flat.dtype(name).name
    array = flat[name]
    if not hasattr(array, "shape") or not hasattr(array, "dtype"):
        return (), type(array).__name__
    return tuple(array.shape), str(np.dtype(array.dtype).name)


def _require_writable(path: Path, targets: Sequence[str]) -> list[str]:
    """The files of an earlier checkpoint, of which none must be taken for a part of the new one."""
    if path.exists() and not path.is_dir():
        raise CheckpointError(str(path), ["expected a folder to write into; it is a file"])
    there = sorted(one.name for one in path.iterdir()) if path.exists() else []
    problems = [f"{name} is a folder; remove it" for name in targets if (path / name).is_dir()]
    problems += [
        f"{name} holds other weights, which would stay; remove it, or write elsewhere"
        for name in (PYTORCH.whole, PYTORCH.index)
        if name in there
    ]
    if problems:
        raise CheckpointError(str(path), problems)
    return [name for name in there if _OURS.fullmatch(name)]


def _shards(shapes: Shapes, itemsize: int, limit: int | None) -> dict[str, list[str]]:
    """Which parameters go into which file, in their order, as many into one as it holds."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        needed = math.prod(shape) * itemsize
        if limit is not None and groups[-1] and size + needed > limit:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += needed
    if len(groups) == 1:
        return {SAFETENSORS.whole: groups[0]}
    count = len(groups)
    return {f"model-{i + 1:05d}-of-{count:05d}.safetensors": one for i, one in enumerate(groups)}


def _index(
    kind: Architecture, shapes: Shapes, shards: Mapping[str, Sequence[str]], itemsize: int
) -> dict[str, Any]:
    count = sum(math.prod(shape) for shape in shapes.values())
    where = {kind.stored_name(name): file for file, names in shards.items() for name in names}
    return {
        "metadata": {"total_parameters": count, "total_size": count * itemsize},
        "weight_map": dict(sorted(where.items())),
    }


def _tensor(
    kind: Architecture, flat: Mapping[str, Any], name: str, shape: tuple[int, ...], dtype: str
) -> tuple[str, str, tuple[int, ...], Any]:
    place = kind.family.place(name)
    assert place is not None  # `write_config` refused what has no place

    def make() -> Any:
        return place.layout.to_stored(np.asarray(flat[name]))

    return kind.stored_name(name), dtype, place.layout.stored_shape(shape), make


def _write_weights(tensors: Sequence[Any], file: BinaryIO) -> None:
    write_safetensors(file, tensors)


def _write_json(value: Mapping[str, Any], file: BinaryIO) -> None:
    file.write((json.dumps(value, indent=2, sort_keys=True) + "\n").encode())
