"""`vitfast train`: a model on images, from nothing or from a checkpoint, in a run directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from signal import SIGINT
from typing import Annotated, Any

import typer

from vitspec.commands.common import BROKEN, MISMATCH, USAGE, console, fail

SIGNALLED = 128
"""To which a shell adds the number of the signal that has ended a process."""

DTYPES = ("bfloat16", "float16", "float32", "float64")

MODEL, TRAINING = "Model", "Training"
DATA, RUN, DEVICES = "Data", "Run", "Devices"


def train(
    data: Annotated[
        str,
        typer.Option(
            help="digits, fashion-mnist, or a directory: IDX files, or images in folders by class.",
            rich_help_panel=DATA,
        ),
    ] = "digits",
    crop_padding: Annotated[
        int | None,
        typer.Option(
            min=0, help="Shift training images by up to so many pixels.", rich_help_panel=DATA
        ),
    ] = None,
    horizontal_flip: Annotated[
        bool | None, typer.Option(help="Mirror every other training image.", rich_help_panel=DATA)
    ] = None,
    validation_fraction: Annotated[
        float | None,
        typer.Option(
            help="Hold out this part of the training images, for early stop and the choice of the "
            "best; the test images are then looked at in the end only.",
            rich_help_panel=DATA,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="A recipe (digits, fashion-mnist-small, d2l) or a preset (hf-vit-base, ...), with "
            "changes: digits,num_layers=2. Image channels and classes are those of the data. "
            "Default: the recipe for the data, or deit-tiny.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="field=value of the configuration.", rich_help_panel=MODEL),
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(help="HEIGHT,WIDTH or one number: images are resized.", rich_help_panel=MODEL),
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Begin with this checkpoint: its folder, or its name on the hub. It gets a head "
            "for the data's classes, and positions for --image-size.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    freeze_backbone: Annotated[
        bool, typer.Option("--freeze-backbone", help="Train the head only.", rich_help_panel=MODEL)
    ] = False,
    dtype: Annotated[
        str,
        typer.Option(
            help="Of the computation: bfloat16 with float32 parameters is mixed precision; float64 "
            "is of the parameters too.",
            rich_help_panel=MODEL,
        ),
    ] = "float32",
    remat: Annotated[
        bool,
        typer.Option("--remat", help="Gradient checkpointing: less memory.", rich_help_panel=MODEL),
    ] = False,
    objective: Annotated[
        str,
        typer.Option(help="classification or masked-image-modelling.", rich_help_panel=TRAINING),
    ] = "classification",
    mask_ratio: Annotated[
        float, typer.Option(help="The part of the patches masked.", rich_help_panel=TRAINING)
    ] = 0.5,
    epochs: Annotated[float | None, typer.Option(rich_help_panel=TRAINING)] = None,
    steps: Annotated[
        int | None, typer.Option(help="Instead of epochs.", rich_help_panel=TRAINING)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Over all processes.", rich_help_panel=TRAINING)
    ] = None,
    accumulation: Annotated[
        int | None,
        typer.Option(help="Cut each batch into so many parts.", rich_help_panel=TRAINING),
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="adamw or sgd.", rich_help_panel=TRAINING)
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(rich_help_panel=TRAINING)] = None,
    schedule: Annotated[
        str | None, typer.Option(help="constant, cosine or linear.", rich_help_panel=TRAINING)
    ] = None,
    warmup_steps: Annotated[int | None, typer.Option(rich_help_panel=TRAINING)] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Of matrices only.", rich_help_panel=TRAINING)
    ] = None,
    momentum: Annotated[float | None, typer.Option(help="SGD's.", rich_help_panel=TRAINING)] = None,
    clip_norm: Annotated[
        float | None, typer.Option(help="The longest gradient.", rich_help_panel=TRAINING)
    ] = None,
    label_smoothing: Annotated[float | None, typer.Option(rich_help_panel=TRAINING)] = None,
    seed: Annotated[int, typer.Option(rich_help_panel=TRAINING)] = 0,
    patience: Annotated[
        int | None,
        typer.Option(
            help="Stop after so many evaluations without a better one.", rich_help_panel=TRAINING
        ),
    ] = None,
    check_gradients: Annotated[
        int,
        typer.Option(
            help="Compare every N-th step's gradient with the specification's, and stop if it "
            "departs.",
            metavar="N",
            rich_help_panel=TRAINING,
        ),
    ] = 0,
    check_images: Annotated[
        int, typer.Option(help="Images of the batch compared.", rich_help_panel=TRAINING)
    ] = 1,
    run_directory: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoints, metrics, curves, export. A run that is there goes on. Default: "
            "runs/DATA-PRESET.",
            rich_help_panel=RUN,
        ),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            help="Where to write the model in the end. Default: export in the run directory.",
            rich_help_panel=RUN,
        ),
    ] = None,
    evaluate_every: Annotated[
        int | None,
        typer.Option(help="Steps; 0 in the end only. Default: an epoch.", rich_help_panel=RUN),
    ] = None,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(help="Steps; 0 in the end only. Default: an epoch.", rich_help_panel=RUN),
    ] = None,
    keep: Annotated[int, typer.Option(help="Checkpoints kept.", rich_help_panel=RUN)] = 3,
    log_every: Annotated[
        int, typer.Option(help="Steps between records of the loss.", rich_help_panel=RUN)
    ] = 10,
    resume_from: Annotated[
        int | None,
        typer.Option(help="Go on from this step's checkpoint, not the last.", rich_help_panel=RUN),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write scalars too.", rich_help_panel=RUN)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", rich_help_panel=RUN)] = False,
    fsdp: Annotated[
        int,
        typer.Option(
            min=1, help="Devices that parameters are spread over.", rich_help_panel=DEVICES
        ),
    ] = 1,
    tensor_parallel: Annotated[
        int,
        typer.Option(min=1, help="Devices that heads are spread over.", rich_help_panel=DEVICES),
    ] = 1,
    coordinator: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT of process 0, for several processes.", rich_help_panel=DEVICES
        ),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="How many.", rich_help_panel=DEVICES)
    ] = None,
    process: Annotated[
        int | None, typer.Option(min=0, help="Which this is, from 0.", rich_help_panel=DEVICES)
    ] = None,
    distributed: Annotated[
        bool,
        typer.Option(
            "--distributed",
            help="Several processes, as the cluster's environment says.",
            rich_help_panel=DEVICES,
        ),
    ] = False,
) -> None:
    """Train a model; the same command again goes on where it was, also after Ctrl-C.

    Exit codes: 0 done; 1 the loss was not finite, or --check-gradients found a departure; 2 wrong
    usage; 3 could not be run; 130 or 143 stopped by Ctrl-C or SIGTERM.
    """
    given = dict(locals())
    if dtype not in DTYPES:
        fail(USAGE, f"--dtype {dtype}: expected one of {', '.join(DTYPES)}")
    with _said_in_one_line(checks=check_gradients > 0):
        _join_processes(coordinator, processes, process, distributed, dtype)
        from vitfast.data import load_dataset
        from vitfast.training.options import config_of, recipe_of

        try:
            recipe = recipe_of(given)
        except ValueError as error:
            fail(USAGE, str(error))
        config = config_of(given, recipe)
        with _mesh(fsdp, tensor_parallel):
            _run(given, recipe, config, load_dataset(data))


def _run(given: dict[str, Any], recipe: Any, config: Any, dataset: Any) -> None:
    """Make the model, train it, and say what came of it."""
    from vitfast.training import fit
    from vitfast.training.options import model_of, run_directory_of, warmed_up

    config, folder = warmed_up(config, given, len(dataset.train)), run_directory_of(given)
    model, processor, about = model_of(given, recipe, config, dataset)
    result = fit(
        model, dataset, config, run_directory=folder, resume_from=given["resume_from"],
        export=given["export"], processor=processor, quiet=given["quiet"], about=about,
        stop_on_signals=True,
    )  # fmt: skip
    import jax

    if jax.process_index():
        return
    found = f"test loss {result.test_loss:.4f}"
    if result.test_accuracy is not None:
        found = f"test accuracy {100 * result.test_accuracy:.2f} %, {found}"
    console.print(f"{folder}: {found}, after step {result.step}", highlight=False, soft_wrap=True)
    if result.exported is not None:
        use = f"train --data {given['data']} --from"
        if result.test_accuracy is not None:
            use = "classify IMAGE --model"
        console.print(f"vitfast {use} {result.exported}", highlight=False, soft_wrap=True)


def _join_processes(
    coordinator: str | None, processes: int | None, process: int | None, cluster: bool, dtype: str
) -> None:
    """Join the other processes, if there are any; all that must be done before devices are used."""
    explicit = (coordinator, processes, process)
    if any(one is not None for one in explicit) and None in explicit:
        fail(USAGE, "--coordinator, --processes and --process: give all three, or --distributed")
    from vitfast.allocator import keep_freed_memory

    keep_freed_memory()  # before JAX has threads: what is theirs already is not kept
    import jax

    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    if coordinator is not None:
        jax.distributed.initialize(coordinator, num_processes=processes, process_id=process)
    elif cluster:
        jax.distributed.initialize()


def _mesh(fsdp: int, tensor_parallel: int) -> Any:
    """The mesh of all devices, of all processes; none for one device alone."""
    import jax

    from vitfast.sharding import make_mesh

    devices = jax.device_count()
    if devices % (fsdp * tensor_parallel):
        fail(
            USAGE,
            f"--fsdp {fsdp} --tensor-parallel {tensor_parallel}: there are {devices} devices, "
            "which their product must divide",
        )
    if devices == 1:
        return nullcontext()
    return jax.set_mesh(make_mesh(data=-1, fsdp=fsdp, model=tensor_parallel))


@contextmanager
def _said_in_one_line(*, checks: bool) -> Iterator[None]:
    """What goes wrong, said without a traceback, with its exit code."""
    from vitfast.checkpoints import CheckpointError
    from vitfast.data import DatasetError
    from vitfast.images import InvalidImage
    from vitfast.sharding import MeshDoesNotDivide
    from vitfast.training.interruption import Interrupted
    from vitfast.training.loop import NotFinite
    from vitfast.training.reporting import ReportFailed, RunRefused
    from vitfast.training.run_checkpoints import RunCheckpointError
    from vitspec.errors import InvalidArray, NotWellFormed

    departs = _gradient_departs() if checks else ()
    try:
        yield
    except NotFinite as error:
        fail(MISMATCH, str(error))
    except Interrupted as error:
        fail(SIGNALLED + error.signal, str(error))
    except KeyboardInterrupt:
        fail(SIGNALLED + SIGINT, "stopped; the same command goes on from the last checkpoint")
    except departs as error:
        console.print(error.report.table())
        fail(MISMATCH, str(error))
    except (NotWellFormed, RunRefused, MeshDoesNotDivide) as error:
        fail(USAGE, str(error))
    except (
        CheckpointError, DatasetError, InvalidImage, InvalidArray, RunCheckpointError, ReportFailed,
        OSError, ImportError,
    ) as error:  # fmt: skip
        fail(BROKEN, str(error))


def _gradient_departs() -> Any:
    from vitfast.training.gradient_check import GradientDeparts

    return GradientDeparts
