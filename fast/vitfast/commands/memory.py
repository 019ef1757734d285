"""`vitfast memory`: the bytes on each device, by mesh."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitspec.commands.common import USAGE, console, fail, require_writable

MESHES = ("fsdp=8", "data=2,fsdp=4", "model=8", "data=2,fsdp=2,model=2")
"""What is measured if no mesh is named."""

DTYPES = ("bfloat16", "float16", "float32", "float64")


def memory(
    size: Annotated[
        list[str] | None,
        typer.Option(help="tiny, small, base, large, 1b, a JSON file, or key=value,..."),
    ] = None,
    mesh: Annotated[
        list[str] | None,
        typer.Option(help="Sizes of the axes data, fsdp, model, such as data=2,fsdp=4."),
    ] = None,
    optimizer: Annotated[str, typer.Option(help="adamw, lion, momentum or sgd.")] = "adamw",
    param_dtype: Annotated[str, typer.Option(help="Of parameters and moments.")] = "float32",
    dtype: Annotated[str | None, typer.Option(help="Of the computation.")] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Images in a step, over all devices: adds the activations."),
    ] = None,
    remat: Annotated[bool, typer.Option("--remat", help="With gradient checkpointing.")] = False,
    markdown: Annotated[Path | None, typer.Option(help="Write the table as Markdown.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures as JSON.")] = None,
) -> None:
    """Print what a training step keeps on each device of a mesh, of any size, against the whole.

    Parameters, gradients and optimiser state, by shapes alone: nothing is allocated. Weights are
    over fsdp, heads and hidden_dim over model, the batch over data and fsdp.
    """
    for option, file in {"--markdown": markdown, "--json": json}.items():
        require_writable(option, file)
    from vitfast import memory as measuring
    from vitfast.memory_table import Measured, to_json, to_markdown, to_table
    from vitspec.testing.report import write_atomically, write_json

    if optimizer not in measuring.OPTIMIZERS:
        expected = ", ".join(measuring.OPTIMIZERS)
        fail(USAGE, f"--optimizer {optimizer}: expected one of {expected}")
    for option, value in {"--param-dtype": param_dtype, "--dtype": dtype or param_dtype}.items():
        if value not in DTYPES:
            fail(USAGE, f"{option} {value}: expected one of {', '.join(DTYPES)}")
    how: dict[str, Any] = {
        "optimizer": optimizer,
        "param_dtype": param_dtype,
        "dtype": dtype,
        "batch": batch,
        "remat": remat,
    }
    measured = []
    for name in size or ["large", "1b"]:
        try:
            training = measuring.Training(**parse_size(name), **how)
        except (ValueError, OSError) as error:
            fail(USAGE, f"--size {name}: {error}")
        memories = []
        for axes in mesh or MESHES:
            try:
                memories.append(measuring.measure(training, parse_mesh(axes)))
            except ValueError as error:
                fail(USAGE, f"--size {name} --mesh {axes}: {error}")
        measured.append(Measured(name, training, memories))
    for one in measured:
        console.print(to_table(one))
    if markdown is not None:
        write_atomically(markdown, to_markdown(measured))
    if json is not None:
        write_json(json, to_json(measured))


def parse_size(text: str) -> dict[str, Any]:
    """The fields of a `Training` that a model's size decides.

    >>> parse_size("tiny")["config"].embed_dim, parse_size("embed_dim=64,head_count=4")["height"]
    (192, 224)
    """
    from vitfast.memory import SIZES
    from vitspec.config_text import parse_config

    if text in SIZES:
        return {"config": SIZES[text]}
    config, spec, in_channels, height, width = parse_config(text)
    pool = "cls" if spec == "vit-cls" else "mean"
    return {
        "config": config,
        "in_channels": in_channels,
        "height": height,
        "width": width,
        "pool": pool,
    }


def parse_mesh(text: str) -> dict[str, int]:
    """The sizes of a mesh's axes.

    >>> parse_mesh("data=2,fsdp=4")
    {'data': 2, 'fsdp': 4}
    """
    from vitfast.memory import AXES

    mesh: dict[str, int] = {}
    for part in text.split(","):
        axis, _, number = part.partition("=")
        if axis not in AXES or axis in mesh or not number.isdecimal() or int(number) == 0:
            raise ValueError(
                f"got {part!r}; expected AXIS=SIZE,... with each axis of {', '.join(AXES)} at most "
                "once, and sizes of at least 1"
            )
        mesh[axis] = int(number)
    return mesh
