"""The directory of a run: what made it, what came of it, and from where it goes on.

run.json says what the result follows from (configurations, data) and, for each time that the run
was started or resumed, which command, versions, devices and specification ran it. A run goes on
only where the former are the same; where the latter are not, it says so.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitfast.training.reporting.errors import ReportFailed, RunRefused
from vitfast.training.reporting.files import failed, plain, write_json
from vitfast.training.reporting.metrics import MetricsLog

RUN, LOCK = "run.json", ".lock"
OURS = (LOCK, f".{RUN}.new")
"""What a process that was killed as it began may have left."""

MAY_CHANGE = tuple(
    f"config.{name}"
    for name in ("keep", "checkpoint_every", "check_gradients", "check_images", "log_every",
                 "tensorboard", "evaluation_batch_size")
)  # fmt: skip
"""What can be other when a run goes on: the weights do not follow from it."""

_LOCKS: dict[Path, int] = {}
"""Files that are locked until this process ends, by directory."""


class RunDirectory:
    """A run's directory; make it by `create`, `open` or `create_or_open`.

        run.json                        what made it
        metrics.jsonl, metrics.csv      of `metrics()`; the table comes with `finish()`
        curves.png, confusion.png, confusion.json       of `finish()`
        checkpoints/  export/  tensorboard/             for others to write

    Attributes:
        path: where it is.
        run: what run.json says.
        notes: lines for the user: what is other than when the run was last started.
    """

    def __init__(
        self, path: Path, run: dict[str, Any], notes: Sequence[str] = (), *, writes: bool = True
    ) -> None:
        self.path, self.run, self.notes = path, run, tuple(notes)
        self._writes = writes

    @classmethod
    def create(cls, path: Any, run: Mapping[str, Any], *, writes: bool = True) -> RunDirectory:
        """One for a new run.

        Args:
            path: the directory, which is new or empty.
            run: what `describe_run` says.
            writes: whether anything is written; False in all processes but the first.

        Raises:
            RunRefused: there is something in it.
            ReportFailed: it cannot be written.
        """
        path = Path(path)
        content = plain({"format": 1, **run})
        content["sessions"] = [content.pop("session")]
        if writes:
            _require_empty(path, content)
            _lock(path)
            write_json(path / RUN, content)
        return cls(path, content, writes=writes)

    @classmethod
    def open(cls, path: Any, run: Mapping[str, Any], *, writes: bool = True) -> RunDirectory:
        """That of a run which is to go on.

        Raises:
            RunRefused: it is another run's, and the message says what differs; or another process
                works in it.
            ReportFailed: run.json is missing, damaged or cannot be written.
        """
        path = Path(path)
        content, session = _read(path), plain(run["session"])
        if differing := list(differences(content, plain({"format": 1, **run}))):
            raise RunRefused(
                f"{path}: is the directory of another run ({'; '.join(differing)}); "
                "give another directory, or what that run was given"
            )
        before = content["sessions"][-1]
        notes = [f"{line} since the run was last started" for line in _changes(before, session)]
        content["sessions"] = [*content["sessions"], session]
        if writes:
            _lock(path)
            write_json(path / RUN, content)
        return cls(path, content, notes, writes=writes)

    @classmethod
    def create_or_open(
        cls, path: Any, run: Mapping[str, Any], *, writes: bool = True
    ) -> RunDirectory:
        """`open` where there is a run, else `create`."""
        make = cls.open if writes and (Path(path) / RUN).exists() else cls.create
        return make(path, run, writes=writes)

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
        return MetricsLog(self.path / "metrics.jsonl", writes=self._writes)

    def finish(
        self,
        *,
        confusion: Any = None,
        class_names: Sequence[str] = (),
        steps_per_epoch: int | float | None = None,
        title: str = "",
    ) -> None:
        """Write the table of metrics, the curves and, if given, the confusion matrix.

        Args:
            confusion: counts (true class, predicted class).
            class_names: of its rows and columns.
            steps_per_epoch: for an axis in epochs.
            title: above the pictures, as what was trained on what.

        Raises:
            ReportFailed: a file cannot be written, or matplotlib is missing.
        """
        if not self._writes:
            return
        from vitfast.training.reporting.confusion import draw_confusion
        from vitfast.training.reporting.curves import draw_curves

        metrics = self.metrics()
        metrics.write_csv(self.path / "metrics.csv")
        draw_curves(
            metrics.records(),
            self.path / "curves.png",
            title=title,
            steps_per_epoch=steps_per_epoch,
        )
        if confusion is not None:
            draw_confusion(confusion, class_names, self.path / "confusion.png", title=title)


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    """What differs between two runs, by its place, but for what may change and the sessions."""
    missing = object()
    old, new = dict(_leaves(there)), dict(_leaves(here))
    for name in dict.fromkeys([*old, *new]):
        if name.split(".")[0] in ("session", "sessions") or name in MAY_CHANGE:
            continue
        a, b = old.get(name, missing), new.get(name, missing)
        if a != b:
            a, b = ("nothing" if value is missing else json.dumps(value) for value in (a, b))
            yield f"{name} is {a} there and {b} here"


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _leaves(one, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What else runs it: the same steps follow, but not always the same bits."""
    old, new = dict(_leaves(before)), dict(_leaves(now))
    for name in dict.fromkeys([*old, *new]):
        if name not in ("started", "command") and old.get(name) != new.get(name):
            a, b = (
                "nothing" if one is None else str(one)[:12]
                for one in (old.get(name), new.get(name))
            )
            yield f"{name} has changed from {a} to {b}"


def _read(path: Path) -> dict[str, Any]:
    """What run.json says."""
    file = path / RUN
    try:
        content = json.loads(file.read_bytes())
        if isinstance(content["sessions"][-1], dict):
            return content
    except FileNotFoundError:
        raise RunRefused(
            f"{path}: holds no run ({RUN} is missing); expected one's directory"
        ) from None
    except OSError as error:
        raise ReportFailed(f"{file}: could not be read ({error.strerror})") from error
    except (ValueError, KeyError, IndexError, TypeError):
        pass
    raise ReportFailed(
        f"{file}: is damaged, so that nobody can say which run this is; put a copy in its place, "
        "or give another directory"
    )


def _require_empty(path: Path, run: Mapping[str, Any]) -> None:
    """Make the directory, or require that nothing is in it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        found = sorted({one.name for one in path.iterdir()} - {*OURS})
    except (FileExistsError, NotADirectoryError):
        raise RunRefused(f"{path}: is a file, or below one; expected a directory") from None
    except OSError as error:
        raise failed(path, error) from error
    if RUN in found:
        differing = "; ".join(differences(_read(path), run)) or "the same one"
        raise RunRefused(
            f"{path}: holds a run already ({differing}); give another directory, or resume"
        )
    if found:
        raise RunRefused(
            f"{path}: is not empty ({found[0]} is there) and holds no run; give another directory"
        )


def _lock(path: Path) -> None:
    """Hold the directory until this process ends, so that two do not write into each other's run.

    Where files cannot be locked, as on some network drives, nothing is held.
    """
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return
    where = path.resolve()
    if where in _LOCKS:
        return
    try:
        file = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise failed(path / LOCK, error) from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise RunRefused(
                f"{path}: another process is training in it; wait for it, or give another directory"
            ) from None
        return
    _LOCKS[where] = file
