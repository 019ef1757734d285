"""Where the states of a run are kept: checkpoints from which it goes on, and the best one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from vitfast.training.best import Best
from vitfast.training.config import TrainConfig
from vitfast.training.recording import Recorder
from vitfast.training.state import TrainState


class Saves:
    """The checkpoints of a run; without a run directory there are none, and nothing is saved.

    Attributes:
        best: a `Best`, if the best state is to be the result; else None.
    """

    def __init__(self, stack: ExitStack, config: TrainConfig, recorder: Recorder) -> None:
        self.recorder, directory = recorder, recorder.directory
        self.checkpoints: Any = None
        of_best = None
        keeps_best = config.patience is not None or config.validation_fraction > 0
        if directory is not None:
            from vitfast.training.run_checkpoints import RunCheckpoints

            self.checkpoints = stack.enter_context(
                RunCheckpoints(directory.checkpoints, keep=config.keep)
            )
            if keeps_best:
                of_best = stack.enter_context(RunCheckpoints(directory.path / "best", keep=1))
        self.best = Best(of_best, config.patience) if keeps_best else None

    def restore(self, state: TrainState, step: int | None) -> tuple[TrainState, Any] | None:
        """The last state, or that of a step, with its progress; None if none was saved."""
        found = None if self.checkpoints is None else self.checkpoints.restore(state, step)
        if found is not None and self.best is not None:
            self.best.go_on(found[1]["best"])
        return found

    def save(self, step: int, state: TrainState, progress: Mapping[str, Any]) -> None:
        """Begin to save a state, and what else is needed to go on from there."""
        if self.checkpoints is None:
            return
        of_best = {} if self.best is None else {"best": self.best.progress()}
        with self.recorder.pause("saving"):
            self.checkpoints.save(step, state, {**progress, **of_best})

    def check(self) -> None:
        """Raise what has gone wrong with a save that was begun."""
        if self.checkpoints is not None:
            self.checkpoints.check()

    def wait(self) -> tuple[int, ...]:
        """The steps whose states are kept, when all that was begun is saved."""
        if self.checkpoints is None:
            return ()
        with self.recorder.pause("saving"):
            self.checkpoints.wait()
        return tuple(self.checkpoints.steps())
