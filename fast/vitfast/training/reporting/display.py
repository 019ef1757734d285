"""How far a run is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any


class TrainingDisplay:
    """A context that shows the step, the loss, images per second and the estimated end.

    Args:
        steps: how many there are in all.
        batch_size: images of one step, of all processes together.
        first_step: how many are done already, on resuming.
        writes: whether anything is shown; False in all processes but the first.
        every: seconds between two lines where standard error is no terminal.
        console: a `rich.console.Console` to print to; None is standard error.
    """

    def __init__(
        self,
        steps: int,
        batch_size: int,
        *,
        first_step: int = 0,
        writes: bool = True,
        every: float = 30.0,
        console: Any = None,
    ) -> None:
        raise NotImplementedError

    def __enter__(self) -> TrainingDisplay:
        raise NotImplementedError

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        raise NotImplementedError

    def step(self, step: int, **values: float) -> None:
        """So many steps are done; `values` (loss, accuracy, test_accuracy) are shown until new."""
        raise NotImplementedError

    def line(self, text: str) -> None:
        """Print a line that stays, above the display."""
        raise NotImplementedError

    @contextmanager
    def pause(self, doing: str) -> Iterator[None]:
        """Something else takes time, as an evaluation does: it does not count in the speed."""
        raise NotImplementedError
        yield

    @property
    def images_per_second(self) -> float | None:
        """The speed lately, without pauses and without the first step, which compiles."""
        raise NotImplementedError
