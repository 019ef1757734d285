"""Work in a process of its own, so that the command's own never starts JAX nor touches a GPU."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

Result = TypeVar("Result")


def in_fresh_process(function: Callable[..., Result], *args: Any) -> Result:
    """What the function returns, computed in a process of its own.

    Raises:
        BrokenProcessPool: the process ended before it was done.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def default_device() -> dict[str, Any]:
    """JAX's default device: "cpu", "gpu" or "tpu", and what it is called."""
    import jax

    device = jax.devices()[0]
    return {"platform": jax.default_backend(), "kind": device.device_kind}
