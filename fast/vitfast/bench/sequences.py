"""Attention over long sequences: what each implementation needs, in memory and time.

The memory is what the compiler says that a program needs beside its inputs and outputs; for that
nothing runs. A program is then timed only if it fits.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from vitfast.bench.apart import in_fresh_process
from vitfast.bench.cases import FORWARD, GRADIENT, SIZES
from vitfast.bench.worker import visit

PLAIN = "plain"
SHARE = 0.5
"""The share of the free memory that a program may take."""


def implementations() -> tuple[str, ...]:
    """The names of what runs on JAX's default device."""
    from vitfast.tokamax_attention import working_implementations

    return (PLAIN, *(name for name in working_implementations() if name != PLAIN))


def measure_apart(size: str, tokens: int, implementation: str, dtype: str) -> dict[str, Any]:
    """`measure` in a process of its own, whose end is a result too."""
    try:
        return in_fresh_process(measure, size, tokens, implementation, dtype)
    except BrokenProcessPool:
        detail = "the process ended before it was done"
        return {"implementation": implementation, "tokens": tokens, "detail": detail}


def measure(size: str, tokens: int, implementation: str, dtype: str) -> dict[str, Any]:
    """The forward and the gradient of one attention, with heads as in a model of this size."""
    import jax
    import jax.numpy as jnp

    from vitfast.attention import PlainAttention
    from vitfast.bench.peers.jax_model import temp_bytes
    from vitfast.tokamax_attention import make_tokamax_attention

    c = SIZES[size]
    attention: Any = (
        PlainAttention() if implementation == PLAIN else make_tokamax_attention(implementation)
    )
    shape = (1, tokens, c.head_count, c.head_dim)
    keys = jax.random.split(jax.random.key(0), 4)
    *operands, cotangent = (jax.random.normal(key, shape, getattr(jnp, dtype)) for key in keys)

    def gradient(cotangent: Any, *operands: Any) -> Any:
        out, pullback = jax.vjp(attention, *operands)
        return out, pullback(cotangent)

    programs = {
        FORWARD: (jax.jit(attention), operands),
        GRADIENT: (jax.jit(gradient), [cotangent, *operands]),
    }
    row: dict[str, Any] = {"implementation": implementation, "tokens": tokens}
    for name, (program, arguments) in programs.items():
        try:
            needed = temp_bytes(program.lower(*arguments))
        except Exception as error:  # this implementation does not take this shape
            row["detail"] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        row[f"{name}_temp"] = needed
        if needed > SHARE * free_bytes(jax.local_devices()[0]):
            row["detail"] = "does not fit"
            continue
        run = _finished(program, arguments)
        row[f"{name}_ms"] = visit(run, 1.0).seconds * 1e3
    return row


def _finished(program: Callable[..., Any], arguments: Any) -> Callable[[], Any]:
    import jax

    return lambda: jax.block_until_ready(program(*arguments))


def free_bytes(device: Any) -> int:
    """The memory that a device has left, or the machine where the device does not say."""
    statistics = device.memory_stats() or {}
    if "bytes_limit" in statistics:
        return int(statistics["bytes_limit"] - statistics["bytes_in_use"])
    information = Path("/proc/meminfo")
    if information.exists():
        for line in information.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
