"""What must hold before a run begins, all of it said at once, and what the run is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import get_abstract_mesh

from vitfast.sharding import on_mesh
from vitfast.training.config import TrainConfig
from vitfast.training.evaluation import hold_out
from vitfast.vision_transformer import VisionTransformer
from vitspec.errors import NotWellFormed
from vitspec.vision_transformer_config import VisionTransformerConfig


class Splits(NamedTuple):
    """The images: those trained on, those looked at on the way, those looked at in the end.

    Attributes:
        train: what is left of the training images.
        watched: the validation part, or the test images.
        watched_name: "validation" or "test".
        test: the test images.
    """

    train: Any
    watched: Any
    watched_name: str
    test: Any


def require_trainable(model: Any, dataset: Any, config: TrainConfig) -> None:
    """Refuse what cannot be trained.

    Raises:
        NotWellFormed: with everything that is wrong.
    """
    problems = config.problems()
    if not problems:
        problems += config.to_objective().problems(model.config)
        problems += _data_problems(model, dataset, config) + _device_problems(model, config)
    if problems:
        raise NotWellFormed("training", problems)


def _data_problems(model: Any, dataset: Any, config: TrainConfig) -> list[str]:
    problems = []
    K, names = model.config.num_classes, len(dataset.class_names)
    if config.objective == "classification" and K and names != K:
        problems.append(f"num_classes: the model has {K} classes, {dataset.name} has {names}")
    count = len(dataset.train)
    left = count - round(config.validation_fraction * count)
    if config.batch_size > left:
        problems.append(
            f"batch_size: expected at most the {left} images that {dataset.name} has for training, "
            f"got {config.batch_size}"
        )
    return problems


def _device_problems(model: Any, config: TrainConfig) -> list[str]:
    problems = []
    if np.dtype(model.param_dtype) == np.float64 and not jax.config.jax_enable_x64:
        problems.append(
            "float64: JAX would round it to float32; jax.config.update('jax_enable_x64', True)"
        )
    if config.check_gradients and not isinstance(model, VisionTransformer):
        problems.append("check_gradients: is for a VisionTransformer")
    if on_mesh():
        shape = get_abstract_mesh().shape
        devices = math.prod(shape[axis] for axis in model.sharding.batch_axes)
        part = config.batch_size // config.accumulation
        if part % devices:
            problems.append(
                f"batch_size: parts of {part} images do not divide over {devices} devices "
                f"({', '.join(model.sharding.batch_axes)})"
            )
        size = config.evaluation_batch_size
        if size is not None and size % devices:
            problems.append(
                f"evaluation_batch_size: {size} images do not divide over {devices} devices"
            )
    return problems


def to_splits(dataset: Any, config: TrainConfig) -> Splits:
    """The images of a run; a validation part is chosen by the run's seed."""
    if not config.validation_fraction:
        return Splits(dataset.train, dataset.test, "test", dataset.test)
    train, validation = hold_out(dataset.train, config.validation_fraction, config.seed)
    return Splits(train, validation, "validation", dataset.test)


def processor_for(model: Any, dataset: Any) -> Any:
    """The image processor of a model that is trained on a dataset from nothing."""
    from vitfast.data import dataset_processor

    height, width, channels = model.image_shape
    sizes = VisionTransformerConfig(image_h=height, image_w=width, in_channels=channels)
    return dataset_processor(sizes, dataset)


def open_directory(
    path: Any,
    resume: bool,
    model: Any,
    dataset: Any,
    config: TrainConfig,
    processor: Any,
    about: Mapping[str, Any] | None,
) -> Any:
    """The `RunDirectory` of the run, which says what the run is.

    Raises:
        RunRefused: it is another run's, or there already, and the run does not resume.
    """
    from vitfast.training.reporting import RunDirectory, describe_run

    types = {"dtype": str(model.dtype), "param_dtype": str(model.param_dtype)}
    described = describe_run(
        config, model.config, dataset, processor=processor.to_dict(), **types, **(about or {})
    )
    make = RunDirectory.create_or_open if resume else RunDirectory.create
    return make(path, described, writes=jax.process_index() == 0)


def what_follows(model: Any, splits: Splits, config: TrainConfig, steps: int) -> str:
    """What is trained on what, for whoever has to wait for it."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(model))
    return (
        f"{parameters:,} parameters in {model.dtype}, {len(splits.train):,} training and "
        f"{len(splits.watched):,} {splits.watched_name} images of "
        f"{' x '.join(map(str, model.image_shape))}, {steps:,} steps of {config.batch_size}; "
        "the first compiles"
    )
