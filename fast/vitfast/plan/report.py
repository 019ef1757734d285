"""A plan as tables for people, Markdown for documents, JSON for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

import vitspec
from vitfast.plan.devices import Device
from vitfast.plan.job import Job, parameters
from vitfast.plan.memory import Footprint, footprint
from vitfast.plan.network import Collective, collectives
from vitfast.plan.prediction import Prediction, predict
from vitfast.plan.search import ROOM
from vitspec.testing.results import environment


@dataclass(frozen=True)
class Plan:
    """All about a job on a kind of device.

    Attributes:
        name: what the user calls the model.
        compared: how many meshes were compared; None if it was given.
    """

    name: str
    job: Job
    device: Device
    footprint: Footprint
    collectives: list[Collective]
    prediction: Prediction
    compared: int | None = None

    @property
    def fits(self) -> bool:
        """Whether the memory has room, with some to spare."""
        return self.footprint.total <= ROOM * self.device.memory


def make_plan(name: str, job: Job, device: Device, compared: int | None = None) -> Plan:
    """The plan of a job that was checked."""
    return Plan(
        name, job, device, footprint(job), collectives(job), predict(job, device), compared
    )  # fmt: skip


PURPOSES = ("forward", "backward", "gradients", "loss")


class Section(NamedTuple):
    """A table and what stands below it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    remark: str = ""


def sections(plan: Plan) -> list[Section]:
    """The tables of a plan."""
    return [_memory(plan), _sent(plan), _time(plan)]


def title(plan: Plan) -> str:
    """The job in words."""
    job = plan.job
    count = sum(one.arrays * math.prod(one.shape) for one in parameters(job))
    mesh = ", ".join(f"{axis}={size}" for axis, size in job.mesh.items())
    chosen = "" if plan.compared is None else f", the best of {plan.compared} plans"
    remat = "with" if job.remat else "without"
    return (
        f"{plan.name}: {count / 1e6:,.1f} million parameters on {job.devices} x {plan.device.name} "
        f"({mesh}{chosen}); {job.batch} images in a step, {job.images} on each device; "
        f"{job.optimizer}, parameters {job.param_dtype}, computed in {job.dtype}, {remat} gradient "
        "checkpointing"
    )


def _memory(plan: Plan) -> Section:
    f, device = plan.footprint, plan.device
    names = {
        "parameters": f.parameters, "gradients": f.gradients, "moments": f.moments,
        "activations kept for the backward": f.activations,
        "one layer gathered, and its gradients": f.gathered,
        "one layer's activations, computed again": f.recomputed,
        "logits and their gradient": f.logits,
        "total": f.total,
    }  # fmt: skip
    rows = [
        (name, amount(size), f"{size / device.memory:.1%}") for name, size in names.items() if size
    ]
    spare = device.memory * ROOM - f.total
    fits = f"fits, with {amount(spare)} to spare" if plan.fits else f"lacks {amount(-spare)}"
    remark = f"Of {amount(device.memory)}, {ROOM:.0%} may be used: it {fits}."
    return Section("Memory of each device", ("", "bytes", "of the device"), rows, remark)


def _sent(plan: Plan) -> Section:
    """Collectives of a kind, purpose and axis together."""
    groups: dict[tuple[str, str, str, int], list[Collective]] = {}
    for one in plan.collectives:
        key = (one.purpose, one.kind, "+".join(one.axes), one.devices)
        groups.setdefault(key, []).append(one)
    rows = []
    order = {purpose: i for i, purpose in enumerate(PURPOSES)}
    for (purpose, kind, axes, devices), ones in sorted(
        groups.items(), key=lambda item: order[item[0][0]]
    ):
        count, size = sum(one.times for one in ones), sum(one.size for one in ones)
        sent = sum(one.sent for one in ones)
        rows.append(
            (purpose, kind, f"{axes} ({devices})", f"{count:,}", amount(size), amount(sent))
        )
    columns = ("for", "collective", "axis (devices)", "number", "result", "sent")
    remark = "" if rows else "One device: nothing is sent."
    return Section("Collectives of a step, for each device", columns, rows, remark)


def _time(plan: Plan) -> Section:
    p, device = plan.prediction, plan.device
    parts = {
        "forward": p.computing["forward"],
        "forward again": p.computing["recomputed"],
        "backward": p.computing["backward"],
        "update": p.computing["update"],
        **{f"sending along {axis}": taken for axis, taken in p.sending.items()},
        "step, if everything overlaps": p.least,
        "step, expected": p.expected,
        "step, if nothing overlaps": p.most,
    }
    rows = [(name, _time_of(taken)) for name, taken in parts.items() if taken]
    rows += [
        ("images per second, expected", f"{plan.job.batch / p.expected:,.0f}"),
        ("model FLOPs utilisation, expected", f"{p.utilisation(p.expected):.1%}"),
    ]
    network = f", and {p.flops / p.sent:,.0f} for each that it sends" if p.sent else ""
    remark = (
        f"The model's products are {p.useful_flops:.3g} FLOPs in a step; each device does "
        f"{p.flops:.3g}, {p.flops / p.bytes:,.0f} for each byte of its memory{network}. Ceilings: "
        f"{p.peak / 1e12:.4g} TFLOP/s, {device.memory_bandwidth / 1e9:.4g} GB/s of memory"
    )
    if p.sent:
        remark += f", {device.link / 1e9:.4g} GB/s of links among {device.domain}"
    if p.sent and plan.job.devices > device.domain:
        remark += f", {device.network / 1e9:.4g} GB/s beyond"
    return Section(
        "Time of a step, by ceilings", ("", "time"), rows, f"{remark} ({device.source})."
    )


def to_tables(plan: Plan) -> list[Table | str]:
    """For a terminal of 80 columns."""
    shown: list[Table | str] = [title(plan), ""]
    for section in sections(plan):
        table = Table(title=section.title, title_justify="left", box=SIMPLE_HEAD, padding=0,
                      collapse_padding=True)  # fmt: skip
        for i, column in enumerate(section.columns):
            right = i > 0 and section.rows and section.rows[0][i][:1].isdigit()
            table.add_column(column, justify="right" if right else "left")
        for row in section.rows:
            table.add_row(*row)
        shown += [table] if section.rows else []
        shown += [section.remark, ""] if section.remark else []
    return shown


def to_markdown(plan: Plan) -> str:
    """The same as Markdown."""
    parts = [f"**{title(plan)}.**\n"]
    for section in sections(plan):
        ruler = ["---", *["---:"] * (len(section.columns) - 1)]
        if section.rows:
            table = [
                [section.columns[0] or section.title, *section.columns[1:]],
                ruler,
                *section.rows,
            ]
            parts.append("".join(f"| {' | '.join(row)} |\n" for row in table))
        parts += [f"{section.remark}\n"] if section.remark else []
    return "\n".join(parts)


def to_json(plan: Plan) -> dict[str, Any]:
    """The same as JSON-serialisable data, in bytes, FLOPs and seconds."""
    p = plan.prediction
    ceilings = asdict(plan.device)
    return {
        "schema": "vitfast-plan/1",
        "vitspec": vitspec.__version__,
        "environment": environment(),
        "name": plan.name,
        "job": asdict(plan.job),
        "device": {k: None if v == float("inf") else v for k, v in ceilings.items()},
        "memory": asdict(plan.footprint) | {"total": plan.footprint.total, "fits": plan.fits},
        "collectives": [
            one._asdict() | {"bytes": one.size, "sent": one.sent} for one in plan.collectives
        ],
        "time": asdict(p) | {"least": p.least, "expected": p.expected, "most": p.most},
        "model_flops_utilisation": p.utilisation(p.expected),
        "meshes_compared": plan.compared,
    }


def amount(size: int | float) -> str:
    """Bytes to three digits, in decimal units, as data sheets have them: 1.13 GB."""
    units = ("B", "kB", "MB", "GB", "TB")
    step = 0
    while abs(size) >= 999.5 and step + 1 < len(units):
        size, step = size / 1000, step + 1
    return f"{size:.3g} {units[step]}"


def _time_of(seconds: float) -> str:
    if seconds >= 0.9995:
        return f"{seconds:,.2f} s"
    return f"{seconds * 1e3:.{4 if seconds < 0.001 else 2 if seconds < 0.1 else 0}f} ms"
