"""What passes between a judge and the process of an implementation.

To the implementation go pickled calls. Back come JSON and plain numbers alone: a judge unpickles
nothing that an implementation's process wrote, since that would import the implementation's
classes, or worse.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Mapping
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from vitspec.testing.adapter_errors import AdapterError
from vitspec.testing.arrays import is_float
from vitspec.typing import Array

SMALL = 1 << 22
"""Bytes up to which several arrays are one message."""
KINDS = "biufc"
"""NumPy's kinds of types that go over the wire: numbers."""


def send_call(connection: Connection, method: str, arguments: tuple[Any, ...]) -> None:
    """Send a call to the implementation's process."""
    buffers: list[pickle.PickleBuffer] = []
    call = pickle.dumps((method, arguments), protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    connection.send_bytes(json.dumps([view.nbytes for view in views]).encode())
    connection.send_bytes(call)
    _send_all(connection, views)


def receive_call(connection: Connection) -> tuple[str, tuple[Any, ...]]:
    """The next call; its arrays are read-only.

    Raises:
        EOFError: the judge is gone.
    """
    sizes = json.loads(connection.recv_bytes())
    call = connection.recv_bytes()
    if sum(sizes) <= SMALL:
        whole = memoryview(connection.recv_bytes())
        ends = np.cumsum([0, *sizes]).tolist()
        parts: list[Any] = [whole[a:b] for a, b in pairwise(ends)]
    else:
        parts = [connection.recv_bytes() for _ in sizes]
    return pickle.loads(call, buffers=parts)


def send_answer(connection: Connection, data: Any, arrays: Mapping[str, Array]) -> None:
    """Send what a call returned: data for JSON, and arrays of numbers by name.

    Raises:
        AdapterError: an array has something else than numbers.
    """
    plain = {name: np.asarray(_number(name, array), order="C") for name, array in arrays.items()}
    shapes = [[name, array.dtype.str, list(array.shape)] for name, array in plain.items()]
    connection.send_bytes(json.dumps({"data": data, "arrays": shapes}).encode())
    views = [array.reshape(-1).view(np.uint8).data for array in plain.values()]
    _send_all(connection, views)


def receive_answer(connection: Connection) -> tuple[Any, dict[str, Array]]:
    """What a call returned.

    Raises:
        Exception: whatever follows from reading what the implementation's process wrote, if that
            is no answer.
    """
    head = json.loads(connection.recv_bytes())
    arrays = {}
    for name, kind, shape in head["arrays"]:
        dtype = np.dtype(str(kind))
        if dtype.kind not in KINDS:
            raise ValueError(f"{dtype} is no type of numbers")
        arrays[str(name)] = np.empty(tuple(map(int, shape)), dtype)
    if sum(array.nbytes for array in arrays.values()) <= SMALL:
        whole, start = np.frombuffer(connection.recv_bytes(), np.uint8), 0
        for array in arrays.values():
            array.reshape(-1).view(np.uint8)[:] = whole[start : start + array.nbytes]
            start += array.nbytes
    else:
        for array in arrays.values():
            if connection.recv_bytes_into(array.reshape(-1).view(np.uint8)) != array.nbytes:
                raise ValueError("an array is shorter than its shape")
    return head["data"], arrays


def _send_all(connection: Connection, views: Iterable[memoryview]) -> None:
    views = list(views)
    if sum(view.nbytes for view in views) <= SMALL:
        connection.send_bytes(b"".join(views))
        return
    for view in views:
        connection.send_bytes(view)


def _number(name: str, array: Array) -> Array:
    """The array in a type of NumPy's own; a foreign float, such as bfloat16, in the widest."""
    if array.dtype.kind in KINDS:
        return array
    if not is_float(array.dtype):
        raise AdapterError(f"{name} has no numbers, but {array.dtype}")
    return array.astype(np.longdouble)
