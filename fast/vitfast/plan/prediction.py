"""A step's time from ceilings: each operation as fast as the slower of its two, one by one.

    computing = sum over operations of max(FLOPs / peak, bytes / memory bandwidth)
    sending   = bytes sent along an axis / bandwidth of its links, for each axis

    least     = max(computing, sending along any axis)      everything overlaps
    expected  = max(computing, fsdp + data) + model         weights come while layers compute, but
                                                            a layer waits for its sums
    most      = computing + sending                         nothing overlaps

These are bounds from below of a well-written program, not of any. What is left out:

    - that products do not reach the peak, least of all small ones, and passes not the bandwidth
    - the functions within passes (exp, erf), which cost little but on CPUs
    - latencies: of collectives (some 10 to 50 microseconds each, more among thousands), of kernels
    - the step's beginning and end: the first gathering, the last scattering, which overlap nothing
    - traffic on a shared network, stragglers, input, checkpoints
    - dropout, accumulation, norms of gradients, evaluation
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vitfast.plan.devices import Device
from vitfast.plan.job import Job
from vitfast.plan.network import collectives
from vitfast.plan.work import model_flops, operations

STRIDES = {("model",): (), ("fsdp",): ("model",), ("data",): ("model", "fsdp"),
           ("data", "fsdp"): ("model",)}  # fmt: skip
"""The axes that lie within one, whose devices are numbered first."""


@dataclass(frozen=True)
class Prediction:
    """A step by ceilings; times in seconds.

    Attributes:
        computing: by phase.
        sending: by axis.
        flops: of one device, also what is recomputed.
        bytes: of one device's memory, read and written.
        sent: bytes that one device sends.
        useful_flops: of all devices, the model's own.
        devices: how many there are.
        peak: FLOPs per second of one device.
    """

    computing: Mapping[str, float]
    sending: Mapping[str, float]
    flops: int
    bytes: int
    sent: float
    useful_flops: int
    devices: int
    peak: float

    @property
    def least(self) -> float:
        """If everything overlaps."""
        return max(sum(self.computing.values()), *self.sending.values())

    @property
    def expected(self) -> float:
        """If weights and gradients travel while layers compute."""
        of_weights = self.sending["fsdp"] + self.sending["data"]
        return max(sum(self.computing.values()), of_weights) + self.sending["model"]

    @property
    def most(self) -> float:
        """If nothing overlaps."""
        return sum(self.computing.values()) + sum(self.sending.values())

    def utilisation(self, seconds: float) -> float:
        """The share of all peaks that the model's own FLOPs are, in a step of so many seconds."""
        return self.useful_flops / (seconds * self.peak * self.devices)


def predict(job: Job, device: Device) -> Prediction:
    """A step's time.

    Raises:
        ValueError: there is no peak for the type of the computation.
    """
    if job.dtype not in device.flops:
        known = ", ".join(device.flops)
        raise ValueError(f"no peak of {device.name} for {job.dtype} is known; known: {known}")
    peak, work, sent = device.flops[job.dtype], operations(job), collectives(job)
    computing = dict.fromkeys(("forward", "recomputed", "backward", "update"), 0.0)
    for one in work:
        computing[one.phase] += max(one.flops / peak, one.bytes / device.memory_bandwidth)
    sending = dict.fromkeys(("data", "fsdp", "model"), 0.0)
    sizes = job.mesh
    for between in sent:
        stride = 1
        for axis in STRIDES[between.axes]:
            stride *= sizes[axis]
        rate = device.bandwidth(stride, between.devices)
        sending[between.axes[-1]] += between.sent / rate
    return Prediction(
        computing,
        sending,
        sum(one.flops for one in work),
        sum(one.bytes for one in work),
        sum((one.sent for one in sent), 0.0),
        model_flops(job),
        job.devices,
        peak,
    )
