"""The files of test vectors: safetensors and JSON, read without believing anything in them.

A folder of vectors may come from anywhere. Files are opened only if they are regular files of a
sensible size, links are never followed, and every number of a header is checked before it is used.
Nothing is executed. What is wrong is said in one line: the file, what was found, what was expected.

Files are written by this module too, so that they have the same bytes whatever is installed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitspec.typing import Array

MAX_FILE = 2**24
"""Bytes of the largest file that is read: a hundred times the largest vector."""
MAX_HEADER = 2**20
"""Bytes of the longest safetensors header that is read."""
MAX_AXES = 8

DTYPES: dict[str, tuple[str, int]] = {
    "F64": ("<f8", 8), "F32": ("<f4", 4), "F16": ("<f2", 2), "BF16": ("<u2", 2),
}  # fmt: skip
"""The number types of safetensors that are read: as NumPy reads them, and their bytes."""
_OTHER_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "U32": 4,
    "I32": 4, "U64": 8, "I64": 8,
}  # fmt: skip


class VectorError(RuntimeError):
    """A folder of test vectors is damaged, altered or hostile; nothing in it was graded."""


# ---- files -------------------------------------------------------------------------------------


def exists(path: Path) -> bool:
    """Whether there is anything of this name, even a link that leads nowhere."""
    return os.path.lexists(path)


def require_directory(path: Path) -> None:
    """Raise `VectorError` unless this is a directory, and no link to one."""
    try:
        mode = os.lstat(path).st_mode
    except OSError as error:
        raise VectorError(f"{path}: expected a folder, found {_why(error)}") from error
    if not stat.S_ISDIR(mode):
        raise VectorError(f"{path}: expected a folder, found {_kind(mode)}; nothing was read")


def read_file(path: Path, limit: int = MAX_FILE) -> bytes:
    """The bytes of a regular file, which is no link and not larger than `limit`.

    Raises:
        VectorError: it is something else. A pipe or a device is not opened at all.
    """
    try:
        _require_file(path, os.lstat(path), limit)
        flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)
        flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        descriptor = os.open(path, flags)
        with os.fdopen(descriptor, "rb") as file:
            _require_file(path, os.fstat(descriptor), limit)  # it may have been exchanged
            content = file.read(limit + 1)
    except OSError as error:
        raise VectorError(f"{path}: expected a file, found {_why(error)}") from error
    if len(content) > limit:
        raise VectorError(f"{path}: grows while it is read, beyond {limit} bytes")
    return content


def _require_file(path: Path, found: os.stat_result, limit: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise VectorError(
            f"{path}: expected a regular file, found {_kind(found.st_mode)}; it was not opened"
        )
    if found.st_size > limit:
        raise VectorError(f"{path}: expected at most {limit} bytes, found {found.st_size}")


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a directory", stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
        stat.S_IFREG: "a file",
    }  # fmt: skip
    return kinds.get(stat.S_IFMT(mode), "something else")


def _why(error: OSError) -> str:
    return "nothing" if isinstance(error, FileNotFoundError) else f"({error.strerror})"


def write_file(path: Path, content: bytes) -> None:
    """Write a file in one step: whoever reads it sees all of it, or what was there before.

    A link of this name is replaced, not followed. The folder must be one, and no link.
    """
    require_directory(path.parent)
    if exists(path) and stat.S_ISDIR(os.lstat(path).st_mode):
        raise VectorError(f"{path}: expected a file to write, found a directory; remove it")
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def sha256(content: bytes) -> str:
    """The checksum, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


# ---- JSON --------------------------------------------------------------------------------------


def dump_json(value: Any) -> bytes:
    """Canonical JSON: sorted keys, one item a line, ASCII, finite numbers."""
    return (json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def parse_json(content: bytes, where: Any) -> Any:
    """The value of a JSON text in UTF-8, without repeated names, NaN or infinity.

    Raises:
        VectorError: it is no such text, or nests deeper than can be read.
    """

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    try:
        text = content.decode("utf-8", errors="strict")
        return json.loads(text, object_pairs_hook=_without_repetition, parse_constant=refuse)
    except RecursionError as error:
        raise VectorError(f"{where}: expected JSON, found one that nests too deeply") from error
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise VectorError(f"{where}: expected JSON in UTF-8: {_short(error)}") from error


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"the name {twice[:80]!r} stands there twice")
    return found


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 120 else text[:117] + "..."


# ---- safetensors -------------------------------------------------------------------------------


def dump_safetensors(arrays: Mapping[str, Array]) -> bytes:
    """float32 and float64 arrays as a safetensors file: sorted by name, without metadata."""
    types = {"float32": ("F32", "<f4"), "float64": ("F64", "<f8")}
    header: dict[str, Any] = {}
    parts: list[bytes] = []
    at = 0
    for name in sorted(arrays):
        dtype, stored = types[str(arrays[name].dtype)]
        part = np.ascontiguousarray(arrays[name], stored).tobytes()
        shape = list(arrays[name].shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(part)]}
        parts.append(part)
        at += len(part)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data is aligned
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def parse_safetensors(content: bytes, where: Any) -> tuple[dict[str, Array], dict[str, str]]:
    """The arrays of a safetensors file: float32 stays, float64 too, others become float64.

    Returns:
        The arrays by name, read-only, and the type of each as the file names it. Types that hold no
        floats have a name and no array.

    Raises:
        VectorError: it is no such file. The tensors must fill the data, without gap or overlap.
    """
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > min(MAX_HEADER, len(content) - 8):
        promised = f"a header of {length} bytes" if len(content) >= 8 else "no header"
        raise VectorError(
            f"{where}: {promised} in a file of {len(content)} bytes; it is cut off, or no"
            " safetensors file"
        )
    header = parse_json(content[8 : 8 + length], f"{where}: the header")
    if not isinstance(header, dict):
        raise VectorError(f"{where}: the header: expected an object")
    data = memoryview(content)[8 + length :]
    header.pop("__metadata__", None)
    entries = {name: _entry(entry, f"{where}: {name[:80]!r}") for name, entry in header.items()}
    _require_filled(entries, len(data), where)
    arrays = {}
    for name, (dtype, shape, begin, end) in entries.items():
        if dtype in DTYPES:
            stored = np.frombuffer(data[begin:end], DTYPES[dtype][0]).reshape(shape)
            arrays[name] = _floats(stored, dtype)
            arrays[name].setflags(write=False)
    return arrays, {name: dtype for name, (dtype, *_) in entries.items()}


def _entry(entry: Any, where: str) -> tuple[str, tuple[int, ...], int, int]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise VectorError(f"{where}: expected an object of dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    width = {**_OTHER_BYTES, **{n: size for n, (_, size) in DTYPES.items()}}
    if not isinstance(dtype, str) or dtype not in width:
        raise VectorError(
            f"{where}: dtype: expected one of {', '.join(DTYPES)}, found {str(dtype)[:40]!r}"
        )
    if not _naturals(shape) or len(shape) > MAX_AXES:
        raise VectorError(f"{where}: shape: expected at most {MAX_AXES} natural numbers")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise VectorError(f"{where}: data_offsets: expected two numbers in order")
    begin, end = offsets
    needed = math.prod(shape) * width[dtype]  # Python's integers do not overflow
    if needed != end - begin:
        raise VectorError(
            f"{where}: its shape needs {needed:.6g} bytes, its data_offsets give {end - begin:.6g}"
        )
    return dtype, tuple(shape), begin, end


def _naturals(value: Any) -> bool:
    # Beyond 2**63 no file has an offset, and no number of that size can be printed or divided.
    return isinstance(value, list) and all(
        type(number) is int and 0 <= number < 2**63 for number in value
    )


def _require_filled(entries: Mapping[str, Any], size: int, where: Any) -> None:
    last = 0
    for name, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != last:
            fault = "overlaps with another" if begin < last else "leaves a gap before it"
            raise VectorError(f"{where}: {name[:80]!r}: {fault}, at byte {begin} of the data")
        last = end
    if last != size:
        fault = "it is cut off" if last > size else "what follows belongs to none"
        raise VectorError(
            f"{where}: the tensors end at byte {last} of the data, which has {size}; {fault}"
        )


def _floats(stored: Array, dtype: str) -> Array:
    if dtype == "BF16":  # the upper half of a float32
        return (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    wide = np.float64 if dtype == "F16" else stored.dtype.newbyteorder("=")
    return stored.astype(wide)
