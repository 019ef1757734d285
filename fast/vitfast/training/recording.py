"""What a run notes and shows as it goes: records, its directory, the display."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import jax

from vitfast.training.config import TrainConfig


class Recorder:
    """Where a run's figures go: into `history`, and, with a directory, into its files.

    Only process 0 writes and shows.

    Args:
        stack: closes what is opened.
        config: whether TensorBoard is wanted.
        directory: a `RunDirectory`, or None.
        quiet: whether nothing is shown.
    """

    def __init__(
        self, stack: ExitStack, config: TrainConfig, directory: Any, *, quiet: bool
    ) -> None:
        self.stack, self.config, self.directory = stack, config, directory
        self.writes = jax.process_index() == 0
        self.shows = self.writes and not quiet
        self.metrics = None if directory is None else directory.metrics()
        self.scalars: Any = None
        self.history: list[dict[str, Any]] = []

    def begin(self, steps: int, steps_per_epoch: int, done: int) -> None:
        """Begin, or go on after so many steps: what was noted after them is forgotten."""
        from vitfast.training.reporting import TensorBoardScalars, TrainingDisplay

        self.steps, self.steps_per_epoch = steps, steps_per_epoch
        if self.metrics is not None:
            self.metrics.truncate_after(done)
            self.history = self.metrics.records()
        if self.config.tensorboard and self.directory is not None:
            self.scalars = TensorBoardScalars(
                self.directory.tensorboard, first_step=done, writes=self.writes
            )
            self.stack.callback(self.scalars.close)
        self.display = self.stack.enter_context(
            TrainingDisplay(steps, self.config.batch_size, first_step=done, writes=self.shows)
        )
        for note in () if self.directory is None else self.directory.notes:
            self.line(note)
        if done:
            self.line(f"going on after step {done} of {steps}")

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """The figures of a step: shown, and recorded now and then."""
        self.display.step(step, loss=values["loss"])
        if step % self.config.log_every and step != self.steps:
            return
        speed = self.display.images_per_second
        rest = {} if speed is None else {"images_per_second": round(speed, 1)}
        self.record(
            step,
            train_loss=values["loss"],
            learning_rate=values["learning_rate"],
            grad_norm=values["grad_norm"],
            **rest,
        )

    def evaluation(self, step: int, name: str, loss: float, accuracy: float | None) -> None:
        """What an evaluation has found: shown, and recorded unless it is there already."""
        values = {f"{name}_loss": loss}
        said = f"step {step} of {self.steps}: {name} loss {loss:.4f}"
        if accuracy is not None:
            values[f"{name}_accuracy"] = accuracy
            said += f", {name} accuracy {100 * accuracy:.2f} %"
        if not any(one["step"] == step and f"{name}_loss" in one for one in self.history):
            self.record(step, **values)
        self.line(said)

    def record(self, step: int, **values: Any) -> None:
        """Note figures of a step."""
        record = {"step": step, "epoch": round(step / self.steps_per_epoch, 4), **values}
        self.history.append(record)
        if self.metrics is not None:
            self.metrics.append(record)
        if self.scalars is not None:
            self.scalars.append(record)

    def line(self, text: str) -> None:
        """Show a line."""
        self.display.line(text)

    def pause(self, doing: str) -> AbstractContextManager[None]:
        """Something else than a step takes its time."""
        pause: AbstractContextManager[None] = self.display.pause(doing)
        return pause

    def finish(self, confusion: Any, class_names: Any, title: str) -> None:
        """Draw the curves, and the confusion matrix if there is one."""
        if self.directory is not None:
            with self.pause("drawing"):
                self.directory.finish(
                    confusion=confusion,
                    class_names=class_names,
                    steps_per_epoch=self.steps_per_epoch,
                    title=title,
                )
