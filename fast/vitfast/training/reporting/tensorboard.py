"""Scalars for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class TensorBoardScalars:
    """Event files in a folder; `first_step` hides what a killed run wrote after it.

    Raises:
        ReportFailed: tensorboardX is not installed.
    """

    def __init__(self, folder: Path, *, first_step: int = 0, writes: bool = True) -> None:
        raise NotImplementedError

    def append(self, record: Mapping[str, float]) -> None:
        """Write every number of a record, which has its "step"."""
        raise NotImplementedError

    def close(self) -> None:
        """Write what is waiting, and end the file."""
        raise NotImplementedError
