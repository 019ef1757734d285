"""`vitfast classify | inspect | attention | convert`: what one does with a checkpoint.

A checkpoint is a folder as Hugging Face writes it, or the name of a model on its hub.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from vitspec.commands.common import BROKEN, USAGE, console, fail, require_writable

Model = Annotated[str, typer.Option(help="A checkpoint: its folder, or its name on the hub.")]
Json = Annotated[Path | None, typer.Option(help="Write the figures as JSON.")]
UsePytorch = Annotated[bool, typer.Option("--use-pytorch", help="Read pytorch_model.bin.")]

SMALLEST = 224
"""Pixels of the smaller side of a picture of attention: smaller ones are enlarged."""

DTYPES = ("float16", "bfloat16", "float32", "float64")


def classify(
    images: Annotated[list[Path], typer.Argument(help="Picture files.")],
    model: Model,
    top: Annotated[int, typer.Option(min=1, help="Classes to show of each picture.")] = 5,
    use_pytorch: UsePytorch = False,
    json: Json = None,
) -> None:
    """Name what pictures show: the most probable classes of each."""
    require_writable("--json", json)
    import jax

    from vitfast.checkpoints import Labels

    with _one_line_errors():
        checkpoint = _open(model, use_pytorch)
        K = checkpoint.config.num_classes
        if K == 0:
            fail(USAGE, f"{model} has no classifier; `vitfast inspect {model}` shows what it has")
        with console.status("reading pictures and weights"):
            pixels = _processor(checkpoint)(images)
            vit = _read(model, use_pytorch)
        results: list[dict[str, Any]] = []
        for path, image in zip(images, pixels, strict=True):
            with console.status(f"looking at {path}"):
                probabilities = jax.nn.softmax(vit(image[None]).logits[0].astype("float32"))
            best = [int(k) for k in probabilities.argsort()[::-1][: min(top, K)]]
            names = (checkpoint.labels or Labels.default(K)).names
            classes = [
                {"class": k, "label": names[k], "probability": float(probabilities[k])}
                for k in best
            ]
            results.append({"image": str(path), "classes": classes})
    for result in results:
        rows = ((one["label"], f"{one['probability']:.4f}") for one in result["classes"])
        _print_table(str(result["image"]), ("label", "probability"), rows)
    _write(json, {"schema": "vitfast-classify/1", "model": model, "results": results})


def inspect(
    model: Annotated[str, typer.Argument(help="A checkpoint: its folder, or its name.")],
    use_pytorch: UsePytorch = False,
    json: Json = None,
) -> None:
    """Show what a checkpoint is: its architecture, parameters, preset; or why it is refused."""
    require_writable("--json", json)
    from vitspec.models.vision_transformer_parameters import parameter_shapes
    from vitspec.presets import PRESETS

    with _one_line_errors(), console.status("reading"):
        checkpoint = _open(model, use_pytorch)
    config = checkpoint.config
    presets = [name for name, known in PRESETS.items() if known == config]
    counts: dict[str, int] = {}
    for name, shape in parameter_shapes(config).items():
        part = name.split(".")[0].removesuffix("_gamma").removesuffix("_beta")
        counts[part] = counts.get(part, 0) + math.prod(shape)
    labels = checkpoint.labels.names if checkpoint.labels else ()
    about = {
        "architecture": checkpoint.architecture,
        "preset": ", ".join(presets) or "none",
        "parameters": sum(counts.values()),
        "dtype": checkpoint.flat.dtype("patch_embed.bias").name,
        "tokens": config.token_count,
        "labels": ", ".join(labels[:3]) + (f", ... ({len(labels)})" if len(labels) > 3 else ""),
    }
    rows = ((name, f"{v:,}" if isinstance(v, int) else v) for name, v in about.items())
    _print_table(model, ("", ""), rows)
    _print_table(
        "configuration", ("field", "value"), ((n, str(v)) for n, v in vars(config).items())
    )
    _print_table("parameters", ("part", "numbers"), ((n, f"{v:,}") for n, v in counts.items()))
    fields = {n: vars(v) if n == "dropout" else v for n, v in vars(config).items()}
    _write(
        json,
        {"schema": "vitfast-inspect/1", "model": model, **about, "labels": list(labels),
         "parameters_by_part": counts, "config": fields},
    )  # fmt: skip


def attention(
    image: Annotated[Path, typer.Argument(help="A picture file.")],
    model: Model,
    out: Annotated[Path, typer.Option(help="The picture to write, as PNG.")],
    layer: Annotated[
        int | None, typer.Option(help="Of this block alone, from 0, or from the end: -1.")
    ] = None,
    use_pytorch: UsePytorch = False,
) -> None:
    """Draw where the CLS token looks: attention rollout, or one block's weights, on the picture."""
    require_writable("--out", out)
    import numpy as np

    from vitfast.attention_maps import cls_attention, cls_rollout, draw_attention, save_picture

    with _one_line_errors():
        checkpoint = _open(model, use_pytorch)
        config = checkpoint.config
        if not config.cls_token or not config.num_layers:
            fail(USAGE, f"{model} has no CLS token, or no blocks, whose attention could be drawn")
        L = config.num_layers
        if layer is not None and not -L <= layer < L:
            fail(USAGE, f"--layer {layer}: expected {-L} to {L - 1}")
        processor = _processor(checkpoint)
        with console.status("looking"):
            seen, pixels = processor.pixels(image), processor([image])
            vit = _read(model, use_pytorch)
            other_size = pixels.shape[1:3] != (config.image_h, config.image_w)
            _, taps = vit.forward_with_taps(
                pixels, attention_weights=True, interpolate_positions=other_size
            )
        weights = np.asarray(taps.attention_weights)[:, 0]
        grid = config.grid_of(*pixels.shape[1:3])
        if layer is None:
            found, title = cls_rollout(weights, grid), "attention rollout"
        else:
            found, title = cls_attention(weights, grid, layer), f"attention of block {layer % L}"
        # Pixels that fill no patch are not looked at, so they are not shown.
        shown = seen[: grid[0] * config.patch_h, : grid[1] * config.patch_w]
        picture = np.repeat(shown, 3, axis=2) if shown.shape[2] == 1 else shown
        times = math.ceil(SMALLEST / min(picture.shape[:2]))
        picture = picture.repeat(times, axis=0).repeat(times, axis=1)
        save_picture(draw_attention(picture, found, title), out)
    console.print(f"{out}: {title} of {grid[0]} x {grid[1]} patches", highlight=False)


def convert(
    source: Annotated[str, typer.Argument(help="A checkpoint: its folder, or its name.")],
    target: Annotated[Path, typer.Argument(help="The folder to write.")],
    dtype: Annotated[
        str | None, typer.Option(help=f"{', '.join(DTYPES)}; as it is, if not given.")
    ] = None,
    max_shard_size: Annotated[
        int | None, typer.Option(min=1, help="Bytes of the largest file of weights.")
    ] = None,
    use_pytorch: UsePytorch = False,
) -> None:
    """Write a checkpoint anew: as safetensors, in another type, in several files."""
    if dtype is not None and dtype not in DTYPES:
        fail(USAGE, f"--dtype {dtype}: expected one of {', '.join(DTYPES)}")
    from vitfast.checkpoints import save_checkpoint
    from vitfast.images import ImageProcessor

    with _one_line_errors():
        checkpoint = _open(source, use_pytorch)
        if target.exists() and target.resolve() == checkpoint.folder.resolve():
            fail(USAGE, f"{target} is where the checkpoint is read from; write it elsewhere")
        flat: Any = checkpoint.flat
        with console.status(f"writing {target}"):
            if dtype is not None:
                flat = {name: leaf.astype(dtype) for name, leaf in checkpoint.flat.items()}
            save_checkpoint(
                target,
                checkpoint.config,
                flat,
                checkpoint.labels,
                checkpoint.architecture,
                max_shard_size,
            )
            if (checkpoint.folder / "preprocessor_config.json").exists():
                ImageProcessor.from_pretrained(checkpoint.folder).save_pretrained(target)
    console.print(
        f"{target}: {checkpoint.architecture}, {len(checkpoint.flat)} tensors", highlight=False
    )


# ---- what they share -----------------------------------------------------------------------------


def _open(model: str, use_pytorch: bool) -> Any:
    from vitfast.checkpoints import load_checkpoint

    return load_checkpoint(model, use_pytorch)


def _read(model: str, use_pytorch: bool) -> Any:
    from vitfast import VisionTransformer

    return VisionTransformer.from_pretrained(model, use_pytorch)


def _processor(checkpoint: Any) -> Any:
    """The checkpoint's own image processor; without one, ViT's for the configuration's size."""
    from vitfast.images import ImageProcessor

    if (checkpoint.folder / "preprocessor_config.json").exists():
        return ImageProcessor.from_pretrained(checkpoint.folder)
    config = checkpoint.config
    half = (0.5,) * config.in_channels
    return ImageProcessor(size=(config.image_h, config.image_w), image_mean=half, image_std=half)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """What is wrong with the user's files, said without a traceback."""
    from vitfast.checkpoints import CheckpointError
    from vitfast.images import InvalidImage
    from vitspec.errors import InvalidArray, InvalidParameters, NotWellFormed

    try:
        yield
    except (
        CheckpointError, InvalidImage, InvalidArray, InvalidParameters, NotWellFormed, OSError
    ) as error:  # fmt: skip
        fail(BROKEN, str(error))


def _print_table(title: str, columns: tuple[str, str], rows: Any) -> None:
    # Not as the table's title, which would be folded to the table's width: it may be a path.
    console.print(title, highlight=False, markup=False, soft_wrap=True)
    table = Table(show_header=any(columns))
    table.add_column(columns[0])
    table.add_column(columns[1], overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _write(file: Path | None, content: dict[str, Any]) -> None:
    from vitspec.testing.report import write_json

    if file is not None:
        write_json(file, content)
