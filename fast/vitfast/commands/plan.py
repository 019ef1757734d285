"""`vitfast plan`: memory, collectives and time of a training step on any mesh, from shapes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitspec.commands.common import BROKEN, MISMATCH, USAGE, console, fail, require_writable

if TYPE_CHECKING:
    from vitfast.plan.devices import Device
    from vitfast.plan.job import Job


def plan(
    preset: Annotated[str | None, typer.Option(help="A configuration of vitspec.presets.")] = None,
    size: Annotated[
        str | None,
        typer.Option(help="vit-ti, vit-s, vit-b, vit-l, vit-h, vit-g or vit-22b, at 224 x 224."),
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="A change to it: key=value; may be repeated.")
    ] = None,
    devices: Annotated[int, typer.Option(min=1, help="How many there are.")] = 1,
    device: Annotated[
        str,
        typer.Option(
            help="a100, h100, h200, tpu-v4, tpu-v5e, tpu-v5p, tpu-v6e, or here: measured first."
        ),
    ] = "h100",
    data: Annotated[int | None, typer.Option(min=1, help="Groups with copies.")] = None,
    fsdp: Annotated[int | None, typer.Option(min=1, help="Parts of the parameters.")] = None,
    tensor_parallel: Annotated[int | None, typer.Option(min=1, help="Parts of the heads.")] = None,
    mesh: Annotated[
        str | None, typer.Option(help="auto: the fastest that fits, also if none is given.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images in a step, over all devices; or 16 for each.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the computation.")] = "bfloat16",
    param_dtype: Annotated[str, typer.Option(help="Of parameters and moments.")] = "float32",
    optimizer: Annotated[str, typer.Option(help="adamw, lion, momentum or sgd.")] = "adamw",
    remat: Annotated[
        bool | None,
        typer.Option("--remat/--no-remat", help="Gradient checkpointing; else where it pays."),
    ] = None,
    flops: Annotated[
        float | None, typer.Option(help="A measured ceiling instead of the peak, in FLOP/s.")
    ] = None,
    memory_bandwidth: Annotated[float | None, typer.Option(help="The same, in bytes/s.")] = None,
    link: Annotated[float | None, typer.Option(help="The same, within a node or slice.")] = None,
    network: Annotated[float | None, typer.Option(help="The same, between them.")] = None,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Compare with the program compiled here.")
    ] = False,
    run: Annotated[bool, typer.Option("--run", help="Run the step here, and compare.")] = False,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables as Markdown.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures as JSON.")] = None,
) -> None:
    """Plan a training step on a mesh of any size: memory, what is sent, time by ceilings.

    Nothing is allocated, and no such devices are needed. docs/scaling.md says what the figures
    leave out. Exit code 1: the memory has no room, or the compiled program sends something else.
    """
    for option, file in {"--markdown": markdown, "--json": json}.items():
        require_writable(option, file)
    from vitfast.plan.report import make_plan, to_json, to_markdown, to_tables
    from vitspec.testing.report import write_atomically, write_json

    name, config = _config(preset, size, changes or [])
    from vitfast.plan.job import Job

    _check_names(dtype, param_dtype, optimizer)
    ceilings = _device(device, dtype, {
        "flops": flops, "memory_bandwidth": memory_bandwidth, "link": link, "network": network,
    })  # fmt: skip
    job = Job(
        config, batch or 16 * devices, dtype=dtype, param_dtype=param_dtype, optimizer=optimizer,
        fused_attention=device != "here" or _fused_here(),
    )  # fmt: skip
    given = {"data": data, "fsdp": fsdp, "model": tensor_parallel}
    job, compared = _on_mesh(job, mesh, given, devices, ceilings, remat)
    made = make_plan(name, job, ceilings, compared)
    for part in to_tables(made):
        console.print(part, highlight=False)
    if markdown is not None:
        write_atomically(markdown, to_markdown(made))
    if json is not None:
        write_json(json, to_json(made))
    agrees = _compare(job) if compiled else True
    if run:
        _run(job, made.prediction.expected)
    if not (agrees and made.fits):
        raise typer.Exit(MISMATCH)


def _config(preset: str | None, size: str | None, changes: list[str]) -> tuple[str, Any]:
    """The configuration, and what to call it."""
    from vitfast.plan.job import SIZES
    from vitspec.config_text import changed
    from vitspec.presets import preset as preset_named

    if preset is not None and size is not None:
        fail(USAGE, f"--preset {preset} and --size {size}: expected one of the two")
    if preset is None and size not in SIZES:
        given = "no --preset and no --size" if size is None else f"--size {size}"
        fail(USAGE, f"{given}: expected a size of {', '.join(SIZES)}, or a preset")
    try:
        config = SIZES[size or ""] if preset is None else preset_named(preset)
        config = changed(config, changes)
        config.check_well_formed()
    except ValueError as error:
        fail(USAGE, str(error))
    return ", ".join([preset or size or "", *changes]), config


def _check_names(dtype: str, param_dtype: str, optimizer: str) -> None:
    from vitfast.commands.memory import DTYPES
    from vitfast.memory import OPTIMIZERS

    for option, value, known in (
        ("--dtype", dtype, DTYPES),
        ("--param-dtype", param_dtype, DTYPES),
        ("--optimizer", optimizer, tuple(OPTIMIZERS)),
    ):
        if value not in known:
            fail(USAGE, f"{option} {value}: expected one of {', '.join(known)}")


def _device(name: str, dtype: str, ceilings: dict[str, float | None]) -> Device:
    """A device of the table, or the one here, with the ceilings that were given instead."""
    from vitfast.plan.devices import DEVICES, measured

    if name not in (*DEVICES, "here"):
        fail(USAGE, f"--device {name}: expected one of {', '.join(DEVICES)}, or here")
    found = measured(dtype) if name == "here" else DEVICES[name]
    given: dict[str, Any] = {key: value for key, value in ceilings.items() if value is not None}
    if any(value <= 0 for value in given.values()):
        fail(USAGE, f"a ceiling must be positive, got {given}")
    if given:
        given["source"] = f"{found.source}; given: {', '.join(given)}"
    if "flops" in given:
        given["flops"] = {**found.flops, dtype: given["flops"]}
    found = replace(found, **given)
    if dtype not in found.flops:
        fail(USAGE, f"--dtype {dtype}: no peak of {name} is known for it; give one by --flops")
    return found


def _fused_here() -> bool:
    import jax

    return jax.default_backend() != "cpu"


def _on_mesh(
    job: Job,
    mesh: str | None,
    given: dict[str, int | None],
    devices: int,
    device: Device,
    remat: bool | None,
) -> tuple[Job, int | None]:
    """The job on the mesh that was given, or on the best, and how many were compared."""
    from vitfast.plan.search import NoMesh, best_mesh

    named = {axis: size for axis, size in given.items() if size is not None}
    if mesh not in (None, "auto") or (mesh == "auto" and named):
        fail(USAGE, f"--mesh {mesh}: expected auto, or else --data, --fsdp and --tensor-parallel")
    try:
        job.check_model()
        if not named:
            return best_mesh(job, devices, device, (False, True) if remat is None else (remat,))
        sizes: dict[str, Any] = dict.fromkeys(given, 1) | named
        job = replace(job, remat=bool(remat), **sizes)
        if job.devices != devices:
            fail(
                USAGE,
                f"--devices {devices}: the mesh has {job.devices}, data {job.data} x fsdp "
                f"{job.fsdp} x tensor parallel {job.model}; expected their product",
            )
        job.check()
    except NoMesh as error:
        fail(MISMATCH, str(error))
    except ValueError as error:
        fail(USAGE, str(error))
    return job, None


def _compare(job: Job) -> bool:
    """Whether the program that XLA makes here sends what the plan says; prints what differs."""
    from vitfast.plan.network import collectives
    from vitfast.plan.program import compile_step, counted, expected, read, shared_by_model

    _need_devices("--compiled", job)
    step = compile_step(job)
    found, planned = counted(read(step.as_text(), job.devices)), expected(collectives(job))
    arranged = shared_by_model(job)
    apart = (found - planned) + (planned - found)
    differing = Counter({key: n for key, n in apart.items() if key[2] not in arranged})
    console.print(
        f"The program compiled here has {sum(found.values()):,} collectives in a step, the plan "
        f"{sum(planned.values()):,}.",
        highlight=False,
    )
    if apart and not differing:
        console.print("They differ in how the kernel's and the head's gradients are summed: XLA "
                      "has the model axis share in it.")  # fmt: skip
    for kind, devices, numbers in differing:
        console.print(
            f"  {kind} of {numbers:,} numbers among {devices}: planned "
            f"{planned[kind, devices, numbers]}, found {found[kind, devices, numbers]}",
            highlight=False,
        )
    passing = step.memory_analysis()
    if passing is not None:
        from vitfast.plan.report import amount

        console.print(
            f"It takes {amount(passing.argument_size_in_bytes)} of arguments and "
            f"{amount(passing.temp_size_in_bytes)} besides, on each device.",
            highlight=False,
        )
    return not differing


def _run(job: Job, expected: float) -> None:
    """Time the step here, and print both times."""
    from vitfast.plan.running import time_step

    _need_devices("--run", job)
    measured = min(time_step(job))
    console.print(
        f"Run here, a step takes {measured * 1e3:,.0f} ms (the fastest of 5), "
        f"{measured / expected:.2f} times the expected {expected * 1e3:,.0f} ms; "
        f"{job.batch / measured:,.1f} images per second.",
        highlight=False,
    )


def _need_devices(option: str, job: Job) -> None:
    import jax

    if jax.device_count() != job.devices:
        fail(
            BROKEN,
            f"{option}: the mesh has {job.devices} devices and here are {jax.device_count()}; on a "
            f"CPU, set JAX_NUM_CPU_DEVICES={job.devices} for virtual ones",
        )
