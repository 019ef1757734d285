"""The step itself, compiled for as many devices as there are, and what it sends: read, not planned.

Only shapes go in, so that the model may be of any size. XLA compiles for the platform that it
finds: for CPUs it writes a reduce-scatter as an all-reduce, of which each device keeps its part,
and computes in bfloat16 by way of float32.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from vitfast.memory import OPTIMIZERS
from vitfast.plan.job import SHARDING, Job, parameters
from vitfast.plan.network import GATHER, REDUCE, SCATTER, Collective
from vitfast.sharding import make_mesh
from vitfast.training import make_train_step
from vitfast.vision_transformer import VisionTransformer

_LINE = re.compile(
    r"= (?P<type>\(.*?\)|\S+) (?P<kind>all-gather|all-reduce|reduce-scatter|all-to-all|"
    r"collective-permute|collective-broadcast|ragged-all-to-all)(?:-start)?\("
)
_SHAPE = re.compile(r"\b(?:pred|[a-z]+\d+)\[([\d,]*)\]")
_MESH_GROUPS = re.compile(
    r"replica_groups=mesh\[(?P<mesh>[^\]]*)\](?:, device_ids=\([^{]*\))? \{(?P<axes>.*?)\}"
)
_IOTA_GROUPS = re.compile(r"replica_groups=\[(?P<groups>[\d,]+)\]<=")
_LISTED_GROUPS = re.compile(r"replica_groups=\{\{(?P<first>[\d,]+)\}")


class Found(NamedTuple):
    """One result of a collective in a program.

    Attributes:
        kind: as XLA calls it.
        devices: how many take part.
        shape: of the result on one device.
        times: how often a step makes it; in a loop, as often as the loop runs.
    """

    kind: str
    devices: int
    shape: tuple[int, ...]
    times: int


def compile_step(job: Job, options: Mapping[str, Any] | None = None) -> Any:
    """The compiled step, for the devices that there are.

    Raises:
        ValueError: the mesh has another number of devices.
    """
    with jax.set_mesh(make_mesh(data=job.data, fsdp=job.fsdp, model=job.model)):
        mesh = jax.sharding.get_mesh()

        def placed(leaf: Any) -> jax.ShapeDtypeStruct:
            spec = PartitionSpec() if leaf.sharding is None else leaf.sharding.spec
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

        optimizer = OPTIMIZERS[job.optimizer](1e-3)
        model = jax.eval_shape(lambda: new_model(job))
        state = jax.eval_shape(optimizer.init, model)
        c, rows = job.config, NamedSharding(mesh, SHARDING.images)
        images = jax.ShapeDtypeStruct(
            (job.batch, c.image_h, c.image_w, c.in_channels), jnp.dtype(job.dtype), sharding=rows
        )
        labels = jax.ShapeDtypeStruct((job.batch,), jnp.int32, sharding=rows)
        given = (*jax.tree.map(placed, (model, state)), images, labels)
        step = make_train_step(optimizer)
        return step.lower(*given).compile(None if options is None else dict(options))


def new_model(job: Job) -> VisionTransformer:
    """The model that the plan is of."""
    return VisionTransformer(
        job.config,
        sharding=SHARDING,
        dtype=jnp.dtype(job.dtype),
        param_dtype=jnp.dtype(job.param_dtype),
        use_gradient_checkpointing=job.remat,
        rngs=nnx.Rngs(0),
    )


def read(text: str, devices: int) -> list[Found]:
    """The collectives in a program's text, the results of combined ones apart."""
    times, found, within = _runs(text), [], ""
    for line in text.splitlines():
        if _opens(line):
            within = _name(line)
        if match := _LINE.search(line):
            for shape in _SHAPE.findall(match["type"]):
                dims = tuple(int(n) for n in shape.split(",") if n)
                size = _group_size(line, devices)
                found.append(Found(match["kind"], size, dims, times.get(within, 1)))
    return found


def counted(found: Iterable[Found]) -> Counter[tuple[str, int, int]]:
    """How often which kind is made among how many devices of how many numbers."""
    counts: Counter[tuple[str, int, int]] = Counter()
    for one in found:
        parts = one.devices if one.kind == SCATTER else 1
        kind = REDUCE if one.kind == SCATTER else one.kind
        counts[kind, one.devices, int(np.prod(one.shape)) * parts] += one.times
    return counts


def expected(planned: Iterable[Collective]) -> Counter[tuple[str, int, int]]:
    """The same of a plan; a reduce-scatter counts as the all-reduce that CPUs make of it."""
    counts: Counter[tuple[str, int, int]] = Counter()
    for one in planned:
        kind = GATHER if one.kind == GATHER else REDUCE
        counts[kind, one.devices, one.numbers] += one.times
    return counts


def shared_by_model(job: Job) -> set[int]:
    """The sizes of gradients in which the model axis, which would idle, shares.

    With all three axes, XLA has it sum a part of the kernel's and of the head's gradient, and then
    puts the parts in order by a permutation, instead of in two sums over fsdp and data.
    """
    if min(job.mesh.values()) == 1:
        return set()
    ends = [one for one in parameters(job) if one.name in ("patch_embed.kernel", "head.weights")]
    parts = (1, job.fsdp, job.model, job.fsdp * job.model)
    return {one.gathered(job) // part for one in ends for part in parts}


def _opens(line: str) -> bool:
    return bool(line) and not line[0].isspace() and line.rstrip().endswith("{")


def _name(line: str) -> str:
    words = line.split()
    return words[1] if words[0] == "ENTRY" else words[0]


def _runs(text: str) -> dict[str, int]:
    """How often each computation runs in a step: loops that say how often they do, multiplied."""
    calls: dict[str, list[tuple[str, int]]] = {}
    within = entry = ""
    for line in text.splitlines():
        if _opens(line):
            within = _name(line)
            entry = within if line.startswith("ENTRY") else entry
        trips = re.search(r'known_trip_count"?:\{"n":"(\d+)"', line)
        called = re.findall(r"(body|to_apply|calls|computation)=(%[\w.\-]+)", line)
        for kind, name in called:
            count = int(trips[1]) if kind == "body" and trips else 1
            calls.setdefault(within, []).append((name, count))
    runs: dict[str, int] = {entry: 1}
    queue = [entry]
    while queue:
        caller = queue.pop()
        for name, count in calls.get(caller, ()):
            runs[name] = runs[caller] * count
            queue.append(name)
    return runs


def _group_size(line: str, devices: int) -> int:
    """How many devices take part in a collective, in any of the notations for groups."""
    if match := _MESH_GROUPS.search(line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match["mesh"]))
        named = re.findall(r"'(\w+)'", match["axes"])
        return int(np.prod([int(sizes[name]) for name in named]))
    if match := _IOTA_GROUPS.search(line):
        return int(match["groups"].split(",")[-1])
    if match := _LISTED_GROUPS.search(line):
        return len(match["first"].split(","))
    return devices
