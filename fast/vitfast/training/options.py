"""What the options of `vitfast train` mean: a recipe, how it is trained, what it begins with.

Options are a mapping by the names of the command's parameters; None is what was not given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from vitfast.data import Augmentation
from vitfast.sharding import (
    NoSharding,
    ShardingSpec,
    ViTSharding,
    ViTTensorParallelSharding,
    on_mesh,
)
from vitfast.training import starting
from vitfast.training.config import TrainConfig
from vitfast.training.recipes import FINE_TUNING, Recipe, default_recipe, recipe
from vitspec.config_text import changed
from vitspec.errors import NotWellFormed

Options = Mapping[str, Any]


def recipe_of(options: Options) -> Recipe:
    """The recipe, with the changes to its model.

    Raises:
        ValueError: a name or a value is wrong, or given to a checkpoint.
    """
    if options["from_"] is not None and (options["preset"] or options["set_"]):
        raise ValueError("--preset, --set: a checkpoint (--from) has a configuration of its own")
    if options["image_size"] is not None:
        parse_size(options["image_size"])
    return recipe(",".join((_recipe_name(options), *(options["set_"] or ()))))


def config_of(options: Options, found: Recipe) -> TrainConfig:
    """How the model is trained: as its recipe has it, and what is given in place of that.

    Raises:
        NotWellFormed: with everything that is wrong.
    """
    values = dict(FINE_TUNING if options["from_"] else found.training)
    names = {one.name for one in fields(TrainConfig)} - {"augmentation"}
    values |= {n: options[n] for n in names if options.get(n) is not None}
    if options["steps"] is not None and options["epochs"] is None:
        values["epochs"] = None
        if options["warmup_steps"] is None:
            values["warmup_steps"] = min(values.get("warmup_steps", 0), options["steps"])
    if options["optimizer"] == "sgd" and found.training.get("optimizer") != "sgd":
        values["weight_decay"] = options["weight_decay"] or 0.0
    augmentation = {} if options["from_"] else dict(found.augmentation)
    augmentation |= {
        n: options[n] for n in ("crop_padding", "horizontal_flip") if options[n] is not None
    }
    if augmentation:
        values["augmentation"] = Augmentation(**augmentation)
    config = TrainConfig(**values)
    if problems := config.problems():
        raise NotWellFormed("training", problems)
    return config


def warmed_up(config: TrainConfig, options: Options, images: int) -> TrainConfig:
    """With a short warm-up in a short run: a recipe's is meant for many steps."""
    if options["warmup_steps"] is not None:
        return config
    return replace(config, warmup_steps=min(config.warmup_steps, config.total_steps(images) // 5))


def run_directory_of(options: Options) -> Path:
    """Where the run is kept."""
    start = Path(options["from_"] or _recipe_name(options).split(",")[0]).name
    return options["run_directory"] or Path("runs") / f"{Path(options['data']).name}-{start}"


def model_of(
    options: Options, found: Recipe, config: TrainConfig, dataset: Any
) -> tuple[Any, Any, dict[str, Any]]:
    """The model, its image processor if it has its own, and what the run directory notes of it."""
    size, dtype = options["image_size"], options["dtype"]
    how: dict[str, Any] = {
        "param_dtype": "float64" if dtype == "float64" else "float32",
        "dtype": None if dtype in ("float32", "float64") else dtype,
        "sharding": _sharding(options["tensor_parallel"]),
        "use_gradient_checkpointing": options["remat"],
    }
    wanted: dict[str, Any] = {
        "classes": len(dataset.class_names),
        "image_size": None if size is None else parse_size(size),
        "masked": config.objective != "classification",
    }
    path = options["from_"]
    if path is not None:
        model = starting.from_checkpoint(path, seed=config.seed, **wanted, **how)
        processor = starting.processor_of_checkpoint(path, model.config)
        return model, processor, {"initial_checkpoint": path}
    fitted = starting.adapted(found.model, channels=dataset.channels, **wanted)
    # What the user has asked for is said last: mask_token=true of a classifier, say.
    fitted = changed(fitted, options["set_"] or [])
    scale = found.position_scale
    model = starting.fresh(fitted, seed=config.seed, position_scale=scale, **how)
    return model, None, {"position_scale": scale}


def parse_size(text: str) -> tuple[int, int]:
    """Height and width.

    >>> parse_size("96"), parse_size("32,48")
    ((96, 96), (32, 48))
    """
    parts = text.split(",")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(f"--image-size {text}: expected HEIGHT,WIDTH or one number, in pixels")
    return int(parts[0]), int(parts[-1])


def _recipe_name(options: Options) -> str:
    return options["preset"] or default_recipe(Path(options["data"]).name)


def _sharding(tensor_parallel: int) -> ShardingSpec:
    if not on_mesh():
        return NoSharding()
    return ViTTensorParallelSharding() if tensor_parallel > 1 else ViTSharding()
