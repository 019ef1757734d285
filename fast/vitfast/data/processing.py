"""dataset_processor."""

from __future__ import annotations

from typing import Any

from vitfast.data.dataset import ImageDataset


def dataset_processor(config: Any, dataset: ImageDataset) -> Any:
    raise NotImplementedError
