"""How far a run is: a bar in a terminal, elsewhere a line now and then."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

WINDOW = 30.0
"""Seconds over which the speed is taken."""


class Speed:
    """Steps per second, and what remains.

    The first step that is counted is where the clock starts: what comes before it compiles.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._paused = clock, 0.0
        self._begin: tuple[float, int] | None = None
        self._lately: deque[tuple[float, int]] = deque()

    def count(self, step: int) -> None:
        """So many steps are done now."""
        now = self._clock()
        self._begin = self._begin or (now, step)
        self._lately.append((now - self._paused, step))
        while len(self._lately) > 2 and self._lately[1][0] < now - self._paused - WINDOW:
            self._lately.popleft()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """What happens meanwhile is not part of a step."""
        begin = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - begin

    @property
    def steps_per_second(self) -> float | None:
        """Lately, without pauses."""
        if len(self._lately) < 2:
            return None
        (begin, first), (end, last) = self._lately[0], self._lately[-1]
        return (last - first) / (end - begin) if end > begin else None

    def seconds_for(self, steps: int) -> float | None:
        """How long so many more will take, with as many pauses as so far."""
        if self._begin is None:
            return None
        (begin, first), last = self._begin, self._lately[-1][1]
        return steps * (self._clock() - begin) / (last - first) if last > first else None


class TrainingDisplay:
    """A context that shows the step, the metrics, images per second and the estimated end.

    Args:
        steps: how many there are in all.
        batch_size: images of one step, of all processes together.
        first_step: how many are done already, on resuming.
        writes: whether anything is shown; False in all processes but the first.
        every: seconds between two lines where standard error is no terminal.
        console: a `rich.console.Console`; None is one of standard error.
        clock: seconds; it is another only in tests.
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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.steps, self.batch_size = steps, batch_size
        self._done, self._values = first_step, dict[str, float]()
        self._writes, self._console, self._every, self._clock = writes, console, every, clock
        self._speed = Speed(clock)
        self._next_line, self._told = clock(), first_step
        self._bar: Any = None

    def __enter__(self) -> TrainingDisplay:
        if self._writes:
            from rich.console import Console

            self._console = self._console or Console(stderr=True)
            if self._console.is_terminal:
                self._bar, self._task = _bar(self._console, self.steps, self._done)
                self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if self._bar is not None:
            self._show()
            self._bar.stop()
        elif self._done != self._told:
            self._tell()

    def step(self, step: int, **values: float) -> None:
        """So many steps are done.

        Args:
            step: how many.
            values: loss, accuracy, test_accuracy and so on; each is shown until there is a new one.
        """
        self._speed.count(step)
        self._done = step
        self._values |= values
        if self._bar is not None:
            self._show()
        elif self._clock() >= self._next_line:
            self._tell()

    def line(self, text: str) -> None:
        """Print a line that stays, above the bar."""
        if self._writes:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def pause(self, doing: str) -> Iterator[None]:
        """Something else takes time, as an evaluation does: it does not count in the speed."""
        if self._bar is not None:
            self._bar.update(self._task, doing=doing)
        with self._speed.pause():
            yield
        if self._bar is not None:
            self._bar.update(self._task, doing="training")

    @property
    def images_per_second(self) -> float | None:
        """The speed lately, without pauses and without the first step, which compiles."""
        speed = self._speed.steps_per_second
        return None if speed is None else speed * self.batch_size

    def text(self) -> str:
        """What is known, as a line."""
        parts = [f"step {self._done} of {self.steps}", *self._metrics()]
        if self.images_per_second is not None:
            parts.append(f"{self.images_per_second:,.0f} images/s")
        if left := self._left():
            parts.append(f"about {left} left")
        return ", ".join(parts)

    def _metrics(self) -> list[str]:
        return [f"{name.replace('_', ' ')} {_number(name, value)}"
                for name, value in self._values.items()]  # fmt: skip

    def _left(self) -> str:
        seconds = self._speed.seconds_for(self.steps - self._done)
        return duration(seconds) if seconds else ""

    def _tell(self) -> None:
        self.line(self.text())
        self._next_line, self._told = self._clock() + self._every, self._done

    def _show(self) -> None:
        speed, left = self.images_per_second, self._left()
        self._bar.update(
            self._task,
            completed=self._done,
            metrics=", ".join(self._metrics()),
            speed="" if speed is None else f"{speed:,.0f} images/s",
            left=f"{left} left" if left else "",
        )


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(8), duration(100), duration(3000), duration(200000)
    ('8 s', '1 min 40 s', '50 min', '2 d 8 h')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 2 * 3600:
        return f"{whole // 60} min"
    if whole < 2 * 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def _number(name: str, value: float) -> str:
    return f"{100 * value:.2f} %" if name.endswith("accuracy") else f"{value:.4g}"


def _bar(console: Any, steps: int, done: int) -> Any:
    """A bar with a line of metrics below it, and its task."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.text import Text

    class Bar(Progress):
        def get_renderables(self) -> Any:
            yield from super().get_renderables()
            yield Text(self.tasks[0].fields["metrics"] if self.tasks else "")

    bar = Bar(
        TextColumn("{task.fields[doing]}"), BarColumn(20), MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"), TextColumn("{task.fields[left]}"), console=console,
    )  # fmt: skip
    task = bar.add_task(
        "", total=steps, completed=done, doing="training", metrics="", speed="", left=""
    )
    return bar, task
