"""IDX files, the format of MNIST and Fashion-MNIST, plain or gzip; nothing in one is believed.

    0, 0, type (8: unsigned bytes), number of dimensions | each dimension: big-endian uint32 | data

Images have three dimensions (N, H, W), magic number 0x00000803; labels one, 0x00000801
(Y. LeCun, C. Cortes, C. Burges, the MNIST database). A header may claim anything: what it claims is
compared with the file's size before memory is taken, and no more than that is unpacked.
"""

from __future__ import annotations

import gzip
import math
import os
import stat
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from vitfast.data.dataset import ImageDataset, check_labels
from vitfast.data.errors import DatasetError, shown

LARGEST = 2**32
"""The most bytes of an array. All of Fashion-MNIST has 55 million."""

GZIP_MAGIC = b"\x1f\x8b"
LARGEST_RATIO = 1032
"""Deflate packs at most as many bytes into one (zlib's own figure)."""

KINDS = {1: "labels", 3: "images"}
AGAIN = "copy or download it again"


def find(folder: Path, split: str, dimensions: int) -> Path | None:
    """The file of a split ("train" or "t10k"), under any of the names in use."""
    kind = KINDS[dimensions]
    for dot in "-.":
        for end in ("", ".gz"):
            path = folder / f"{split}-{kind}{dot}idx{dimensions}-ubyte{end}"
            if os.path.exists(path):
                return path
    return None


def read_dataset(folder: Path, name: str, class_names: tuple[str, ...] | None) -> ImageDataset:
    """The data set of a directory's four IDX files.

    Args:
        folder: where they are.
        name: what to call it.
        class_names: the classes' names; None takes those that the training labels have.

    Raises:
        DatasetError: a file is missing, damaged, or does not go with the others.
    """
    arrays = {}
    for split in ("train", "t10k"):
        for dimensions, kind in KINDS.items():
            path = find(folder, split, dimensions)
            if path is None:
                raise DatasetError(
                    f"{shown(folder)}: there is no {split}-{kind}-idx{dimensions}-ubyte, with or "
                    "without .gz; four files make an IDX data set: copy the missing one there"
                )
            arrays[split, kind] = read_idx(path, dimensions)
        images, labels = arrays[split, "images"], arrays[split, "labels"]
        if len(images) != len(labels):
            raise DatasetError(
                f"{shown(folder)}: {split} has {len(images)} images and {len(labels)} labels; the "
                "two files are not of one data set"
            )
    if class_names is None:
        class_names = tuple(str(one) for one in range(int(arrays["train", "labels"].max()) + 1))
    for split in ("train", "t10k"):
        where = f"{shown(folder)}, {split} labels"
        check_labels(where, arrays[split, "labels"].astype(np.int32), len(class_names))
    try:
        return ImageDataset.from_arrays(
            *arrays_in_order(arrays), class_names=class_names, name=name
        )
    except DatasetError as error:
        raise DatasetError(f"{shown(folder)}: {error}") from error


def arrays_in_order(arrays: dict[tuple[str, str], Any]) -> list[Any]:
    """Images and labels of the training split, then of the test split."""
    return [arrays[split, kind] for split in ("train", "t10k") for kind in ("images", "labels")]


def read_idx(path: Path, dimensions: int) -> Any:
    """The array of unsigned bytes in an IDX file.

    Args:
        path: the file, plain or gzip by what it begins with.
        dimensions: how many it must have: 3 for images, 1 for labels.

    Raises:
        DatasetError: the file cannot be read, or is not exactly such an array.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise DatasetError("is no ordinary file")
        with path.open("rb") as raw:
            packed = raw.read(2) == GZIP_MAGIC
            raw.seek(0)
            if not packed:
                return _array(raw, dimensions, found.st_size, packed=False)
            with gzip.GzipFile(fileobj=raw) as file:
                return _array(file, dimensions, found.st_size, packed=True)
    except DatasetError as error:
        raise DatasetError(f"{shown(path)} {error}") from error
    except EOFError as error:
        raise DatasetError(f"{shown(path)} is truncated; {AGAIN}") from error
    except (OSError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise DatasetError(f"{shown(path)} cannot be read or is damaged: {reason}") from error
    except MemoryError as error:
        raise DatasetError(f"{shown(path)} does not fit into this machine's memory") from error


def _array(file: Any, dimensions: int, file_size: int, *, packed: bool) -> Any:
    """The array, once header and size of the file agree."""
    _check_magic(_exactly(file, 4), dimensions)
    shape = struct.unpack(f">{dimensions}I", _exactly(file, 4 * dimensions))
    size, start = math.prod(shape), 4 + 4 * dimensions
    claim = f"its header says {' x '.join(map(str, shape))}"
    if size == 0:
        raise DatasetError(f"is empty: {claim}; {AGAIN}")
    if not packed and file_size != start + size:
        what = "is truncated" if file_size < start + size else "has bytes left over"
        raise DatasetError(f"{what}: {claim}, {start + size} bytes, it has {file_size}; {AGAIN}")
    if packed and start + size > LARGEST_RATIO * file_size:
        raise DatasetError(f"is damaged: {claim}, which {file_size} bytes cannot hold; {AGAIN}")
    if size > LARGEST:
        raise DatasetError(
            f"is too large: {claim}, more than {LARGEST} bytes; use folders of files"
        )
    array = np.empty(size, np.uint8)
    view, filled = array.data, 0
    while filled < size and (count := file.readinto(view[filled:])):
        filled += count
    if filled < size:
        raise DatasetError(f"is truncated: {claim}, {size} bytes, it has {filled}; {AGAIN}")
    # Also lets gzip come to its end, where it compares the checksum.
    if file.read(1):
        raise DatasetError(f"has bytes left over: {claim}, and it goes on after them; {AGAIN}")
    return array.reshape(shape)


def _check_magic(start: bytes, dimensions: int) -> None:
    """Raises `DatasetError`, with a guess at what happened, if the first four bytes are others."""
    if start == bytes((0, 0, 8, dimensions)):
        return
    expected = f"{KINDS[dimensions]} (0x0000080{dimensions})"
    if start[:3] == b"\0\0\x08" and start[3] in KINDS:
        raise DatasetError(f"holds {KINDS[start[3]]}, expected {expected}; are two files swapped?")
    if start[::-1] == bytes((0, 0, 8, dimensions)):
        raise DatasetError("has its bytes in the wrong order; IDX files are big-endian")
    raise DatasetError(f"is no IDX file of {expected}: it begins with 0x{start.hex()}; {AGAIN}")


def _exactly(file: Any, count: int) -> bytes:
    found = file.read(count)
    if len(found) < count:
        raise DatasetError(f"is truncated in its header; {AGAIN}")
    return found
