"""What devices can do at most: published peaks, and how to measure those of the machine at hand.

Peaks are what a data sheet promises; programs reach less of them. Products of float32 are computed
in full precision here (`precision="highest"`): on GPUs not by TF32 units, on TPUs by six products
of bfloat16, which XLA makes of each.

Links are per device and direction. A device reaches those of its domain (the GPUs of a node, the
chips of a TPU slice) by `link`, and others by `network`. A torus has several dimensions; one axis
of a mesh is taken to lie along one of them.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

GB, T = 1e9, 1e12


@dataclass(frozen=True)
class Device:
    """One accelerator, or what stands for it, and how it is connected.

    Attributes:
        name: what it is called.
        source: where the figures are from.
        memory: bytes.
        flops: floating-point operations per second in matrix products, by type.
        memory_bandwidth: bytes per second, to and from its memory.
        link: bytes per second that it sends within its domain, along one axis of the mesh.
        domain: how many devices are in a domain.
        network: bytes per second that it sends to other domains.
    """

    name: str
    source: str
    memory: float
    flops: Mapping[str, float]
    memory_bandwidth: float
    link: float
    domain: int
    network: float

    def bandwidth(self, stride: int, extent: int) -> float:
        """Bytes per second that each device sends in a ring of `extent`, every `stride`-th device.

        Rings that leave a domain share its network: of each ring, as many devices as are in one
        domain send and receive at once.
        """
        if stride * extent <= self.domain:
            return self.link
        together = max(1, self.domain // stride)
        return min(self.link, together * self.network)


_NVIDIA = "NVIDIA's data sheet, without sparsity; NVLink per direction, one network adapter each"
_GOOGLE = "Cloud TPU documentation; interconnect per direction along one dimension of the torus"


def _gpu(name: str, memory: float, half: float, single: float, *rates: float) -> Device:
    bandwidth, link, network = rates
    flops = {"bfloat16": half * T, "float16": half * T, "float32": single * T}
    return Device(
        name, _NVIDIA, memory * GB, flops, bandwidth * GB, link * GB, 8, network * GB
    )  # fmt: skip


def _tpu(name: str, memory: float, half: float, bandwidth: float, *links: float) -> Device:
    link, domain, network = links
    flops = {"bfloat16": half * T, "float32": half / 6 * T}
    return Device(
        name, _GOOGLE, memory * GB, flops, bandwidth * GB, link * GB, int(domain), network * GB
    )  # fmt: skip


DEVICES: Mapping[str, Device] = {
    one.name: one
    for one in (
        _gpu("a100", 80.0, 312.0, 19.5, 2039.0, 300.0, 25.0),
        _gpu("h100", 80.0, 989.0, 67.0, 3350.0, 450.0, 50.0),
        _gpu("h200", 141.0, 989.0, 67.0, 4800.0, 450.0, 50.0),
        _tpu("tpu-v4", 32.0, 275.0, 1200.0, 100.0, 4096.0, 6.25),
        _tpu("tpu-v5e", 16.0, 197.0, 819.0, 100.0, 256.0, 3.125),
        _tpu("tpu-v5p", 95.0, 459.0, 2765.0, 200.0, 6144.0, 6.25),
        _tpu("tpu-v6e", 32.0, 918.0, 1640.0, 200.0, 256.0, 12.5),
    )
}
"""By name: NVIDIA's SXM modules in nodes of eight, and Google's TPUs by the chip."""


def measured(dtype: str, seconds: float = 1.0) -> Device:
    """The first device here: its ceilings, as far as short programs reach them.

    A product of 1024 x 1024 matrices (of 8192 but on CPUs), a pass over an array, and, with several
    devices, an all-gather. With one, the links are never used, and infinite.

    Args:
        dtype: of the products.
        seconds: how long to try each; the fastest run counts.
    """
    on_cpu = jax.default_backend() == "cpu"
    n = 1024 if on_cpu else 8192
    a = jnp.ones((n, n), jnp.dtype(dtype))
    product = _fastest(jax.jit(lambda a: jnp.matmul(a, a, precision="highest")), a, seconds)
    x = jnp.ones(2**25 if on_cpu else 2**29, jnp.float32)
    passes = _fastest(jax.jit(lambda x: x + 1), x, seconds)
    link = _gather_rate(seconds) if jax.device_count() > 1 else math.inf
    return Device(
        "here",
        f"measured here: {jax.devices()[0].device_kind}, {jax.device_count()} of it",
        _memory(),
        {dtype: 2 * n**3 / product},
        2 * x.nbytes / passes,
        link,
        jax.device_count(),
        link,
    )


def _fastest(run: Callable[..., Any], argument: Any, seconds: float) -> float:
    """The time of the fastest of the runs that fit into so many seconds, after two to warm up."""
    for _ in range(2):
        jax.block_until_ready(run(argument))
    best, end = math.inf, time.perf_counter() + seconds
    while best == math.inf or time.perf_counter() < end:
        start = time.perf_counter()
        jax.block_until_ready(run(argument))
        best = min(best, time.perf_counter() - start)
    return best


def _gather_rate(seconds: float) -> float:
    """Bytes per second that each device sends when all gather 64 MiB."""
    mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=(jax.sharding.AxisType.Auto,))
    cut, whole = (jax.NamedSharding(mesh, jax.P(axes)) for axes in ("all", None))
    x = jax.device_put(jnp.ones(2**24, jnp.float32), cut)
    taken = _fastest(jax.jit(lambda x: x + 0, out_shardings=whole), x, seconds)
    return x.nbytes * (1 - 1 / jax.device_count()) / taken


def _memory() -> float:
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return float(stats["bytes_limit"])
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
