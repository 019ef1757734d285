"""One safetensors file: described without reading its data, and written tensor by tensor.

    8 bytes          length n of the header, little-endian
    n bytes          JSON {name: {"dtype", "shape", "data_offsets": [begin, end]}}, and perhaps
                     "__metadata__": {text: text}
    the rest         the data, to which offsets refer; the tensors fill it without gap or overlap

Every number of the header is checked before it is used. Nothing here depends on the library of that
name, so that bfloat16 is read as what it is and every fault has its message.

Source: the format's description in the README of huggingface/safetensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, BinaryIO

import numpy as np

from vitfast.checkpoints.errors import CheckpointError, quoted
from vitfast.checkpoints.folder import RegularFile
from vitfast.checkpoints.stored import FLOATS, StoredTensor
from vitfast.checkpoints.strict_json import parse_object
from vitspec.typing import Array

LONGEST_HEADER = 2**24
"""Bytes of the longest header that is read; a ViT-Huge's has about 2**16."""
MOST_AXES = 8
CODES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Our names of the scalar types that weights have, by the format's."""
WIDTHS = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1,
    "F8_E5M2": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8, "C64": 8,
}  # fmt: skip
"""Bytes of one number of each scalar type."""

Entry = tuple[str, tuple[int, ...], int, int]
"""Scalar type, shape, first byte and the one behind the last."""


# ---- reading -----------------------------------------------------------------------------------


def read_safetensors(file: RegularFile) -> dict[str, StoredTensor]:
    """The tensors of a file by name, not read yet.

    Raises:
        CheckpointError: it is no such file, or is cut off.
    """
    header, data = _header(file)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(file.shown, ["__metadata__: expected an object of texts"])
    entries = {name: _entry(entry, file.shown, name) for name, entry in header.items()}
    _require_filled(entries, file.size - data, file.shown)
    return {
        name: StoredTensor(
            file.shown,
            shape,
            CODES.get(code, code),
            partial(_load, file, code, shape, data + begin),
        )
        for name, (code, shape, begin, _) in entries.items()
    }


def _header(file: RegularFile) -> tuple[dict[str, Any], int]:
    """The header, and where the data begins."""
    if file.size < 8:
        raise CheckpointError(file.shown, [f"no safetensors file: it has {file.size} bytes"])
    prefix = bytearray(8)
    file.read_into(memoryview(prefix), 0)
    length = int.from_bytes(prefix, "little")
    if length > file.size - 8:
        raise CheckpointError(
            file.shown,
            [f"a header of {length} bytes in a file of {file.size}; it is cut off, or no"
             " safetensors file"],
        )  # fmt: skip
    if length > LONGEST_HEADER:
        raise CheckpointError(
            file.shown, [f"a header of {length} bytes; expected at most {LONGEST_HEADER}"]
        )
    content = bytearray(length)
    file.read_into(memoryview(content), 8)
    return parse_object(bytes(content), f"{file.shown}: the header"), 8 + length


def _entry(entry: Any, where: str, name: str) -> Entry:
    def wrong(problem: str) -> CheckpointError:
        return CheckpointError(where, [f"tensor {quoted(name)}: {problem}"])

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise wrong("expected an object of dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in WIDTHS:
        raise wrong(f"dtype: expected one of {', '.join(WIDTHS)}, found {quoted(code)}")
    if not _naturals(shape) or len(shape) > MOST_AXES:
        raise wrong(f"shape: expected at most {MOST_AXES} natural numbers")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise wrong("data_offsets: expected two natural numbers in order")
    begin, end = offsets
    needed = math.prod(shape) * WIDTHS[code]  # Python's integers do not overflow
    if needed != end - begin:
        raise wrong(f"its shape needs {needed:.6g} bytes, its offsets give {end - begin}")
    return code, tuple(shape), begin, end


def _naturals(value: Any) -> bool:
    # Beyond 2**53 no file has an offset, and their products could not be shown.
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**53 for n in value)


def _require_filled(entries: Mapping[str, Entry], size: int, where: str) -> None:
    last = 0
    for name, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != last:
            fault = "overlaps with another" if begin < last else "leaves a gap before it"
            raise CheckpointError(where, [f"tensor {quoted(name)} {fault}, at byte {begin}"])
        last = end
    if last != size:
        fault = "it is cut off" if last > size else "there is something behind the tensors"
        raise CheckpointError(
            where, [f"the tensors need {last} bytes, the file has {size} for them; {fault}"]
        )


def _load(file: RegularFile, code: str, shape: tuple[int, ...], begin: int) -> Array:
    array = np.empty(shape, FLOATS[CODES[code]])
    file.read_into(array.reshape(-1).view(np.uint8).data, begin)
    return array


# ---- writing -----------------------------------------------------------------------------------


def write_safetensors(
    file: BinaryIO, tensors: Iterable[tuple[str, str, tuple[int, ...], Callable[[], Array]]]
) -> None:
    """Write tensors, each given as name, scalar type, shape and a function that makes the array.

    One array exists at a time. The metadata {"format": "pt"} says that weights are laid out as
    PyTorch's are; transformers 4 refuses a file without it.
    """
    by_code = {ours: code for code, ours in CODES.items()}
    tensors = sorted(tensors, key=lambda item: (-FLOATS[item[1]].itemsize, item[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, dtype, shape, _ in tensors:
        end = at + math.prod(shape) * FLOATS[dtype].itemsize
        header[name] = {"dtype": by_code[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data is aligned
    file.write(len(text).to_bytes(8, "little") + text)
    for _, dtype, shape, make in tensors:
        array = np.ascontiguousarray(make(), dtype=FLOATS[dtype]).reshape(shape)
        file.write(array.reshape(-1).view(np.uint8).data)
