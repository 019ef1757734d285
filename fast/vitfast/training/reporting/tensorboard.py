"""Scalars for TensorBoard, written by tensorboardX."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

from vitfast.training.reporting.errors import ReportFailed


class TensorBoardScalars:
    """Event files in a folder: train_loss is "loss/train" there, beside "loss/test".

    Args:
        folder: where to write.
        first_step: how many steps are done; what a killed run wrote of later ones is hidden.
        writes: whether anything is written; False in all processes but the first.

    Raises:
        ReportFailed: tensorboardX is not installed.
    """

    def __init__(self, folder: Any, *, first_step: int = 0, writes: bool = True) -> None:
        self._writer = None
        if not writes:
            return
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ReportFailed(
                "TensorBoard's files need tensorboardX: python -m pip install 'vitspec[train]'"
            ) from error
        # What is at or after `purge_step` is hidden.
        purge = {"purge_step": first_step + 1} if first_step else {}
        self._writer = SummaryWriter(str(folder), **purge)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write every number of a metrics record at its step."""
        if self._writer is None:
            return
        for name, value in record.items():
            if name != "step" and isinstance(value, numbers.Real):
                self._writer.add_scalar(_tag(name), float(value), record["step"])

    def close(self) -> None:
        """Write what is waiting, and end the file."""
        if self._writer is not None:
            self._writer.close()


def _tag(name: str) -> str:
    split, _, metric = name.partition("_")
    return f"{metric}/{split}" if split in ("train", "validation", "test") else name
