"""The directory of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitfast.training.reporting.metrics import MetricsLog


class RunDirectory:
    """A run's directory.

        run.json            what made it
        metrics.jsonl/.csv  `metrics()`
        curves.png  confusion.png  confusion.json        `finish()`
        checkpoints/        for `RunCheckpoints`
        export/             a Hugging Face folder
        tensorboard/        if asked for

    Attributes:
        path: where it is.
        run: what run.json says.
        notes: lines for the user: what is other than when the run began (versions, devices).
    """

    path: Path
    run: dict[str, Any]
    notes: tuple[str, ...]

    @classmethod
    def create(cls, path: Any, run: Mapping[str, Any], *, writes: bool = True) -> RunDirectory:
        """Make one for a new run; `RunRefused` if there is something in it already."""
        raise NotImplementedError

    @classmethod
    def open(cls, path: Any, run: Mapping[str, Any], *, writes: bool = True) -> RunDirectory:
        """Go on with a run; `RunRefused`, saying what differs, if it is another one."""
        raise NotImplementedError

    @classmethod
    def create_or_open(
        cls, path: Any, run: Mapping[str, Any], *, writes: bool = True
    ) -> RunDirectory:
        """`open` where there is a run, else `create`."""
        raise NotImplementedError

    @property
    def checkpoints(self) -> Path:
        """The folder for checkpoints."""
        return self.path / "checkpoints"

    @property
    def export(self) -> Path:
        """The folder for the model as Hugging Face stores it."""
        return self.path / "export"

    @property
    def tensorboard(self) -> Path:
        """The folder for TensorBoard."""
        return self.path / "tensorboard"

    def metrics(self) -> MetricsLog:
        """The log of metrics."""
        raise NotImplementedError

    def finish(
        self,
        *,
        confusion: Any = None,
        class_names: Sequence[str] = (),
        steps_per_epoch: float | None = None,
        title: str = "",
    ) -> None:
        """Write metrics.csv and curves.png, and the confusion matrix if there is one."""
        raise NotImplementedError
