"""The best model so far, by its evaluations, and when there has been none better for long."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from vitfast.training.state import TrainState


class Best:
    """Keeps the state whose evaluation was best: in a folder of checkpoints, or in memory.

    Args:
        checkpoints: a `RunCheckpoints` of its own, or None.
        patience: after how many evaluations without a better one training is to stop; None is
            never.

    Attributes:
        step: of the best; None before the first evaluation.
        score: of the best; the larger, the better.
        waited: evaluations since.
    """

    def __init__(self, checkpoints: Any, patience: int | None) -> None:
        self.checkpoints, self.patience = checkpoints, patience
        self.step: int | None = None
        self.score, self.waited = 0.0, 0
        self._model: Any = None

    def look(self, step: int, state: TrainState, score: float) -> bool:
        """Consider an evaluation; whether training is to stop."""
        if self.step is not None and score <= self.score:
            self.waited += 1
            return self.patience is not None and self.waited >= self.patience
        self.step, self.score, self.waited = step, score, 0
        if self.checkpoints is None:
            self._model = jax.tree.map(jnp.copy, state.model)
        else:
            # Waited for: a checkpoint of the run that says so must not be whole before this is.
            self.checkpoints.save(step, state, {"score": score})
            self.checkpoints.wait()
        return False

    def model(self, state: TrainState, step: int) -> tuple[Any, int]:
        """The best model and its step, if the state is that after so many steps."""
        if self.step is None or self.step == step:
            return state.model, step
        if self.checkpoints is None:
            return self._model, self.step
        found = self.checkpoints.restore(state, self.step)
        return found[0].model, self.step

    def progress(self) -> dict[str, Any]:
        """What a checkpoint notes of it."""
        return {"step": self.step, "score": self.score, "waited": self.waited}

    def go_on(self, progress: dict[str, Any]) -> None:
        """Take up what a checkpoint has noted."""
        self.step, self.score = progress["step"], progress["score"]
        self.waited = progress["waited"]
