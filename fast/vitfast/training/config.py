"""`TrainConfig`: how a model is trained, as data. Everything that is wrong is said at once.

The defaults are those of a textbook: plain, at a constant rate. What trains a small model well from
nothing is in `vitfast.training.recipes`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from vitfast.training.objectives import (
    OBJECTIVES,
    Classification,
    MaskedImageModelling,
    Objective,
)

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("constant", "cosine", "linear")


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

    Attributes:
        steps: how many updates are made; or
        epochs: how many times the training images are read; one of the two must be given.
        batch_size: images in a step, over all processes.
        optimizer: "adamw" or "sgd".
        learning_rate: the highest of the schedule.
        schedule: "constant", or "cosine" or "linear" down to 0 at the last step.
        warmup_steps: steps over which the rate first grows, in equal parts.
        weight_decay: AdamW's, times the learning rate; with SGD, it is added to the gradient, as
            that of weight_decay / 2 times the squares. Of matrices only: not of biases,
            normalisations, layer scale, positions and tokens.
        momentum: SGD's; 0 is none.
        beta1, beta2: AdamW's.
        clip_norm: the longest gradient, all parameters together; a longer one is shortened.
        accumulation: into how many equal parts each batch is cut, whose gradients are averaged.
        label_smoothing: the part of a label that all classes share.
        objective: "classification" or "masked-image-modelling".
        mask_ratio: the part of the patches that masked image modelling masks.
        freeze_backbone: whether only the heads are trained.
        augmentation: a `vitfast.data.Augmentation` of the training images; None is none.
        seed: of the order of the images, of augmentation, dropout and masks.
        validation_fraction: the part of the training images, of each class alike as far as chance
            has it, that is held out: evaluation on the way, early stop and the choice of the best
            then look at these, and at the test images only at the end. 0 is none: evaluation on the
            way looks at the test images.
        evaluate_every: steps between evaluations; None is once in an epoch; 0 only at the end.
        evaluation_batch_size: images at a time; None is batch_size.
        patience: after how many evaluations without a better result training stops; None is never.
        log_every: steps between records of the loss.
        checkpoint_every: steps between checkpoints; None is once in an epoch; 0 only at the end.
        keep: how many checkpoints are kept.
        check_gradients: every how many steps the gradient is compared with the specification's;
            0 is never.
        check_images: images of the batch whose gradient is compared.
        tensorboard: whether figures are written for TensorBoard too.
    """

    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 128
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    momentum: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    clip_norm: float | None = None
    accumulation: int = 1
    label_smoothing: float = 0.0
    objective: Literal["classification", "masked-image-modelling"] = "classification"
    mask_ratio: float = 0.5
    freeze_backbone: bool = False
    augmentation: Any = None
    seed: int = 0
    validation_fraction: float = 0.0
    evaluate_every: int | None = None
    evaluation_batch_size: int | None = None
    patience: int | None = None
    log_every: int = 10
    checkpoint_every: int | None = None
    keep: int = 3
    check_gradients: int = 0
    check_images: int = 1
    tensorboard: bool = False

    def problems(self) -> list[str]:
        """Everything that is wrong, one line each."""
        problems = []
        for names, fits, expected in _RULES:
            for name in names:
                value = getattr(self, name)
                optional = str(_TYPES[name]).endswith("| None")
                if not (optional and value is None) and not fits(value):
                    problems.append(f"{name}: expected {expected}, got {value!r}")
        if (self.steps is None) == (self.epochs is None):
            both = f"got steps={self.steps!r}, epochs={self.epochs!r}"
            problems.append(f"steps, epochs: expected one of the two, {both}")
        if self.momentum and self.optimizer == "adamw":
            problems.append(f"momentum: is SGD's; adamw has beta1, got {self.momentum!r}")
        if not problems and self.batch_size % self.accumulation:
            problems.append(
                f"accumulation: expected a divisor of batch_size {self.batch_size}, got "
                f"{self.accumulation}"
            )
        if not problems and self.steps is not None and self.warmup_steps > self.steps:
            problems.append(
                f"warmup_steps: expected at most steps={self.steps}, got {self.warmup_steps}"
            )
        return problems

    def total_steps(self, images: int) -> int:
        """How many updates are made with so many training images; batches run on over epochs."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return math.ceil(self.epochs * images / self.batch_size)

    def to_objective(self) -> Objective:
        """What is minimised."""
        if self.objective == "classification":
            return Classification(self.label_smoothing)
        return MaskedImageModelling(self.mask_ratio)

    def to_dict(self) -> dict[str, Any]:
        """The fields, as JSON has them."""
        return dataclasses.asdict(self)


def _natural(least: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and value >= least


def _number(fits: Callable[[float], bool]) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return math.isfinite(value) and fits(value)

    return check


_TYPES = {one.name: one.type for one in dataclasses.fields(TrainConfig)}

_RULES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (
        ("steps", "batch_size", "accumulation", "evaluation_batch_size", "patience", "log_every",
         "keep", "check_images"),
        _natural(1),
        "a positive integer",
    ),
    (
        ("warmup_steps", "evaluate_every", "checkpoint_every", "check_gradients", "seed"),
        _natural(0),
        "an integer, 0 or more",
    ),
    (("epochs", "learning_rate", "clip_norm"), _number(lambda x: x > 0), "a positive number"),
    (("weight_decay",), _number(lambda x: x >= 0), "a number, 0 or more"),
    (
        ("momentum", "beta1", "beta2", "label_smoothing", "validation_fraction"),
        _number(lambda x: 0 <= x < 1),
        "a number from 0 to 1, less than 1",
    ),
    (("mask_ratio",), _number(lambda x: 0 < x <= 1), "a number above 0, to 1"),
    (("optimizer",), lambda x: x in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}"),
    (("schedule",), lambda x: x in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
    (("objective",), lambda x: x in OBJECTIVES, f"one of {', '.join(OBJECTIVES)}"),
    (("freeze_backbone", "tensorboard"), lambda x: isinstance(x, bool), "True or False"),
    (
        ("augmentation",),
        lambda x: x is None or callable(getattr(x, "apply", None)),
        "a vitfast.data.Augmentation or None",
    ),
)  # fmt: skip
