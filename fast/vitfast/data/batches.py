"""Batches for training and evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from vitfast.data.augmentation import Augmentation
from vitfast.data.dataset import Split


class Batch(NamedTuple):
    """Images (b, H, W, C) float32 and labels (b,) int32."""

    images: Any
    labels: Any


class TrainBatches(Iterator):
    """An endless iterator of a process's part of each batch."""

    steps_per_epoch: int

    def __next__(self) -> Batch:
        raise NotImplementedError

    def get_state(self) -> dict[str, Any]:
        raise NotImplementedError

    def set_state(self, state: dict[str, Any]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


def train_batches(
    split: Split,
    processor: Any,
    *,
    batch_size: int,
    seed: int,
    augmentation: Augmentation | None = None,
    process_index: int | None = None,
    process_count: int | None = None,
    threads: int = 2,
) -> TrainBatches:
    raise NotImplementedError


def evaluation_batches(
    split: Split,
    processor: Any,
    *,
    batch_size: int,
    process_index: int | None = None,
    process_count: int | None = None,
    threads: int = 2,
) -> Any:
    raise NotImplementedError
