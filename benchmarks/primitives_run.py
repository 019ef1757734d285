"""Errors of functions of one number, in processes of one environment each.

The instructions that a library uses are chosen when it is imported, so every environment has a
process of its own. The arguments and the truth are computed once and shared by all: the truth
costs more than most functions.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from primitives_libraries import ENVIRONMENTS, functions
from primitives_rows import row_functions, worst_rows
from primitives_truth import ONE_ARGUMENT, Primitive

CHUNK, SLICE = 1 << 19, 1 << 16
U = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
NORMAL = {"float64": 2.0**-1022, "float32": 2.0**-126, "bfloat16": 2.0**-126, "float16": 2.0**-14}
"""The smallest normal number."""
FLUSHED = {**NORMAL, "float16": 2.0**-25, "float64": 2.0**-960}
"""An error that is no more counts as none: below the smallest normal number, results may be taken
for 0, as XLA does; in float16, where nothing is, half of the smallest number. In float64 a larger
one, as 1 / (u FLUSHED) must not overflow."""
LARGEST = {
    "float64": 2.0**1023 * (2 - 2.0**-52),
    "float32": 2.0**127 * (2 - 2.0**-23),
    "bfloat16": 2.0**127 * (2 - 2.0**-7),
    "float16": 65504.0,
}
OUTSIDE = 127
"""The stride outside the binades that are tried whole."""
NEAR = 0.6
"""An environment whose largest error on some arguments is a smaller share of the largest of all is
not tried on all arguments: every 127th has found at least 0.73 of the largest error so far."""
SHARED = ("x", "high", "low", "per_scale", "per_value")


# ---- arguments and truth -------------------------------------------------------------------------


def arguments(dtype: str, primitive: Primitive, stride: int) -> Iterator[np.ndarray]:
    """The arguments, as float64, in pieces of at most CHUNK."""
    if dtype == "float64":
        yield from _drawn(max(20_000 // stride, 200))
    elif dtype == "float32":
        yield from _float32(primitive, stride)
    else:
        bits = np.arange(1 << 16, dtype=np.uint32)
        wide = (bits << 16).view(np.float32)
        x = wide if dtype == "bfloat16" else bits.astype(np.uint16).view(np.float16)
        yield x[np.isfinite(x)][::stride].astype(np.float64)


def _drawn(n: int) -> Iterator[np.ndarray]:
    """Arguments of float64: of all sizes that matter, near 0, and a few of any size."""
    rng = np.random.default_rng(0)
    sign = rng.choice([-1.0, 1.0], n)
    yield sign * np.exp2(rng.uniform(-30, 10, n))
    yield rng.uniform(-10, 10, n)
    yield rng.uniform(-40, 40, n)
    yield rng.uniform(-1.5, 1.5, n)
    yield sign * np.exp2(rng.uniform(-1000, 1000, n))


def _float32(primitive: Primitive, stride: int) -> Iterator[np.ndarray]:
    def bits(x: float) -> int:
        return int(np.float32(x).view(np.uint32))

    first, last = (bits(2.0**e) for e in primitive.binades)
    outside = max(stride, OUTSIDE)
    for begin, end, step in (
        (bits(NORMAL["float32"]), first, outside),
        (first, last, stride),
        (last, bits(np.inf), outside),
    ):
        for start in range(begin, end, CHUNK // 2 * step):
            some = np.arange(start, min(end, start + CHUNK // 2 * step), step, dtype=np.int64)
            x = some.astype(np.uint32).view(np.float32).astype(np.float64)
            yield np.concatenate([x, -x])


def truth(primitive: Primitive, dtype: str, x: np.ndarray) -> np.ndarray:
    """The rows that are shared: arguments, true values in two parts, 1 / (u scale), 1 / (u |f|).

    Left out are arguments below the smallest normal number, which XLA takes for 0, and those whose
    value overflows.
    """
    x = x[primitive.has(x)]
    if dtype != "float16":
        x = x[np.abs(x) >= NORMAL[dtype]]
    with np.errstate(all="ignore"):
        if dtype == "float64":
            high, low = _balls(primitive, x)
        else:
            high, low = np.asarray(primitive.value(x)), np.zeros_like(x)
        # Not below what is flushed, so that no scale is 0.
        scale = np.maximum(primitive.scales(x, high), FLUSHED[dtype])
        value = np.maximum(np.abs(high), FLUSHED[dtype])
        rows = np.stack([x, high, low, 1 / U[dtype] / scale, 1 / U[dtype] / value])
    return rows[:, np.abs(high) <= LARGEST[dtype]]


def _balls(primitive: Primitive, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The true values as the sum of two float64, by balls narrow enough for both."""
    from flint import arb, ctx

    high, low = np.full_like(x, np.nan), np.zeros_like(x)
    for i, one in enumerate(x.tolist()):
        for ctx.prec in (128, 256, 2048):
            value = primitive.ball(arb(one))
            high[i] = float(value.mid())
            if value.rad() <= abs(value.mid()) * 2.0**-80:
                low[i] = float((value - arb(high[i])).mid()) if np.isfinite(high[i]) else 0.0
                break
        else:
            high[i] = np.nan  # smaller than the balls can tell: left out
    return high, low


# ---- the process of an environment ---------------------------------------------------------------


def serve(environment: str, dtype: str, path: str) -> None:
    """Answer each line, a name and a number, with the largest errors."""
    library = ENVIRONMENTS[environment][0]
    shared = np.memmap(path, np.float64, "r", shape=(len(SHARED), 2 * CHUNK))
    known = functions(library, dtype)
    of_rows = row_functions(library, dtype)
    print(json.dumps(sorted([*known, *of_rows])), flush=True)
    with np.errstate(all="ignore"):
        for line in sys.stdin:
            name, n = line.split()
            try:
                if name in of_rows:
                    answer: Any = worst_rows(name, of_rows[name], dtype, int(n), U[dtype])
                else:
                    answer = worst(known[name], shared[:, : int(n)], FLUSHED[dtype])
            except Exception as error:  # XLA has no float16 without the instructions for it
                answer = {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
            print(json.dumps(answer), flush=True)


def worst(function: Any, rows: np.ndarray, flushed: float) -> dict[str, Any]:
    """The largest error in u of the scale and of the value, where, and what is not finite."""
    found: dict[str, Any] = {"scale": [0.0, None], "value": [0.0, None], "not_finite": None}
    for start in range(0, rows.shape[1], SLICE):
        x, high, low, per_scale, per_value = np.asarray(rows[:, start : start + SLICE])
        error = np.abs(function(x) - high - low) - flushed
        np.maximum(error, 0, out=error)
        bad = ~np.isfinite(error)
        if bad.any():
            found = merged(found, {**found, "not_finite": float(np.abs(x[bad]).min())})
            error[bad] = 0
        for key, per in (("scale", per_scale), ("value", per_value)):
            ratio = error * per
            i = int(np.argmax(ratio))
            if ratio[i] > found[key][0]:
                found[key] = [float(f"{ratio[i]:.6g}"), float(x[i])]
    return found


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The worse of two answers in each respect."""
    places = [r["not_finite"] for r in (one, other) if r["not_finite"] is not None]
    return {
        **{key: max(one[key], other[key], key=lambda e: e[0]) for key in ("scale", "value")},
        "not_finite": min(places, default=None),
    }


class UnableError(Exception):
    """A library that has a function, and cannot compute it in this environment."""


class Child:
    """A process in one environment.

    Attributes:
        names: the functions that its library has in this type.
    """

    def __init__(self, environment: str, dtype: str, path: str) -> None:
        one_thread = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
        env = {**os.environ, "JAX_PLATFORMS": "cpu", **one_thread, **ENVIRONMENTS[environment][1]}
        program = "import sys, primitives_run; primitives_run.serve(*sys.argv[1:])"
        command = [sys.executable, "-W", "ignore", "-c", program, environment, dtype, path]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env=env, cwd=Path(__file__).parent
        )
        self.names = set(json.loads(self._line()))

    def ask(self, name: str, n: int) -> dict[str, Any]:
        """The largest errors of a function over the n shared arguments, or of rows of n."""
        assert self.process.stdin
        self.process.stdin.write(f"{name} {n}\n")
        self.process.stdin.flush()
        answer = json.loads(self._line())
        if "failed" in answer:
            raise UnableError(answer["failed"])
        return answer

    def _line(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args!r} ended")
        return line

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(60)


class Children:
    """The processes of several environments, and the memory they share."""

    def __init__(self, environments: list[str], dtype: str) -> None:
        folder = "/dev/shm" if os.path.isdir("/dev/shm") else None
        self.file = tempfile.NamedTemporaryFile(dir=folder)  # noqa: SIM115
        self.shared = np.memmap(self.file.name, np.float64, "w+", shape=(len(SHARED), 2 * CHUNK))
        self.each = {e: Child(e, dtype, self.file.name) for e in environments}
        self.dtype = dtype

    def measure(self, name: str, environments: list[str], stride: int) -> dict[str, Any]:
        """The number of arguments, and each environment's largest errors, of one function."""
        primitive, total, found = ONE_ARGUMENT[name], 0, {}
        able = list(environments)
        for x in arguments(self.dtype, primitive, stride):
            rows = truth(primitive, self.dtype, x)
            n = rows.shape[1]
            total += n
            self.shared[:, :n] = rows
            for e in able[:] if n else []:
                try:
                    new = self.each[e].ask(primitive.function or name, n)
                except UnableError as error:
                    print(f"{self.dtype} {name}, {e}: {error}", file=sys.stderr)
                    able.remove(e)
                    continue
                found[e] = merged(found[e], new) if e in found else new
        return {"arguments": total, "found": found}

    def close(self) -> None:
        """End all processes."""
        for child in self.each.values():
            child.close()
        self.file.close()
