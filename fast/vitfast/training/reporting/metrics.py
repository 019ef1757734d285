"""Metrics as they come: one JSON object a line, and at the end a table.

A run may be killed at any byte. A line that has no end, or a step that is later than the checkpoint
from which the run goes on, is dropped on resuming, so that the file is that of a run that was never
stopped.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitfast.training.reporting.errors import ReportFailed
from vitfast.training.reporting.files import NOT_FINITE, failed, plain, write_whole


class MetricsLog:
    """A file of records, each of which has its "step" and some metrics.

    Names are flat: epoch, learning_rate, grad_norm, images_per_second; loss and accuracy of train,
    validation and test, as train_loss. Two records of one step add to each other. Append what
    belongs to a step before its checkpoint is saved: then it is there when the run goes on from it.

    Args:
        path: the file; it is made if there is none.
        writes: whether anything is written; False in all processes but the first.

    Raises:
        ReportFailed: a file cannot be written; what was there before is still there.
    """

    def __init__(self, path: Any, *, writes: bool = True) -> None:
        self.path = Path(path)
        self._writes = writes
        if writes and any(record is None for _, record in self._lines()):
            self._keep(lambda record: True)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record: the whole line, or nothing."""
        if not isinstance(record.get("step"), int):
            raise TypeError(f"record: expected an int as its step, got {record.get('step')!r}")
        if not self._writes:
            return
        line = json.dumps(plain(dict(record)), allow_nan=False).encode() + b"\n"
        try:
            with open(self.path, "ab", buffering=0) as file:
                before = os.fstat(file.fileno()).st_size
                try:
                    while line:  # a disk that is almost full takes a part of it first
                        line = line[file.write(line) :]
                except OSError:
                    os.ftruncate(file.fileno(), before)
                    raise
        except OSError as error:
            raise failed(self.path, error) from error

    def truncate_after(self, step: int) -> None:
        """Drop the records of later steps."""
        if self._writes and any(record["step"] > step for record in self.records()):
            self._keep(lambda record: record["step"] <= step)

    def records(self) -> list[dict[str, Any]]:
        """All records, in order."""
        return [record for _, record in self._lines() if record is not None]

    def write_csv(self, path: Any) -> None:
        """Write a table with a row for each step and a column for each metric."""
        if not self._writes:
            return
        rows = by_step(self.records())
        names = dict.fromkeys(["step", *(name for row in rows for name in row)])
        text = io.StringIO()
        table = csv.DictWriter(text, list(names), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_whole(Path(path), text.getvalue().encode())

    def _keep(self, wanted: Any) -> None:
        """Write the file again, without what is not wanted and what is no record."""
        lines = [line for line, record in self._lines() if record is not None and wanted(record)]
        write_whole(self.path, b"".join(lines))

    def _lines(self) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
        """Each line, and its record; None if it is not one."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise ReportFailed(f"{self.path}: could not be read ({error.strerror})") from error
        for line in content.splitlines(keepends=True):
            yield line, _record(line)


def by_step(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One record for each step, in the steps' order, with all that was said of it."""
    rows: dict[int, dict[str, Any]] = {}
    for record in records:
        rows.setdefault(record["step"], {}).update(record)
    return [rows[step] for step in sorted(rows)]


def _record(line: bytes) -> dict[str, Any] | None:
    """What a line says, if it is whole."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not (isinstance(record, dict) and isinstance(record.get("step"), int)):
        return None
    return {
        name: NOT_FINITE.get(value, value) if isinstance(value, str) else value
        for name, value in record.items()
    }
