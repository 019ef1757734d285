"""Training: one step as one program (`steps`), and all that makes a run of steps.

`fit`, and what it needs beyond JAX, is only imported when it is used.
"""

from typing import Any

from vitfast.training.config import TrainConfig
from vitfast.training.objectives import Classification, MaskedImageModelling, Objective
from vitfast.training.state import Batch, TrainState, new_state, step_key
from vitfast.training.steps import (
    Loss,
    Step,
    Update,
    cross_entropy,
    logits_of,
    loss_and_gradients,
    make_train_step,
    make_update,
)

__all__ = [
    "Batch",
    "Classification",
    "Loss",
    "MaskedImageModelling",
    "Objective",
    "Result",
    "Step",
    "TrainConfig",
    "TrainState",
    "Update",
    "cross_entropy",
    "fit",
    "logits_of",
    "loss_and_gradients",
    "make_train_step",
    "make_update",
    "new_state",
    "step_key",
]


def __getattr__(name: str) -> Any:
    if name in ("fit", "Result"):
        from vitfast.training import loop

        return getattr(loop, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
