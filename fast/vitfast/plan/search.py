"""The mesh on which a step is fastest, of those that divide the model and leave room in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from vitfast.plan.devices import Device
from vitfast.plan.job import Job
from vitfast.plan.memory import footprint
from vitfast.plan.prediction import predict

ROOM = 0.9
"""The part of a device's memory that may be planned for: the rest is the libraries', and what XLA
needs for a while."""


NEAR = 1.02
"""Times apart by less are equal: the ceilings are not known that well."""


class NoMesh(ValueError):  # noqa: N818
    """No mesh of so many devices divides the model and the batch, or leaves room."""


def best_mesh(
    job: Job, devices: int, device: Device, remat: Sequence[bool] = (False, True)
) -> tuple[Job, int]:
    """The job on the mesh with the least expected time, or nearly, and how many were compared.

    Of those that are as good as equal, the one whose longest ring is the shortest: latency, which
    the times leave out, grows with a ring. The model axis stays within a domain: its sums are many,
    and a layer waits for each.

    Raises:
        NoMesh: there is none.
    """
    meshes = [one for one in _dividing(job, devices) if one.model <= device.domain]
    if not meshes:
        raise NoMesh(
            f"no mesh of {devices} devices divides this model's embed_dim, hidden_dim and heads, "
            f"and a batch of {job.batch}; give another number of devices, or a batch that is a "
            "multiple of more of them"
        )
    options = [replace(one, remat=choice) for one in meshes for choice in remat]
    fitting = [one for one in options if footprint(one).total <= ROOM * device.memory]
    if not fitting:
        smallest = min(options, key=lambda one: footprint(one).total)
        needed = footprint(smallest).total / 1e9
        raise NoMesh(
            f"on no mesh of {devices} {device.name} is there room: the least is {needed:.1f} GB on "
            f"each, with data={smallest.data}, fsdp={smallest.fsdp}, model={smallest.model}, and "
            f"{ROOM * device.memory / 1e9:.1f} may be used; give a smaller batch or more devices"
        )
    times = {one: predict(one, device).expected for one in fitting}
    near = [one for one, taken in times.items() if taken <= NEAR * min(times.values())]
    return min(near, key=lambda one: (max(one.mesh.values()), times[one])), len(options)


def _dividing(job: Job, devices: int) -> Iterator[Job]:
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    for data in divisors:
        for fsdp in divisors:
            if devices % (data * fsdp) == 0 and job.batch % (data * fsdp) == 0:
                model = devices // (data * fsdp)
                one = replace(job, data=data, fsdp=fsdp, model=model)
                try:
                    one.check()
                except ValueError:
                    continue
                yield one
