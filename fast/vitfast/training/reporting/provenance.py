"""What made a run: configurations, data, versions, devices, and which specification."""

from __future__ import annotations

from typing import Any


def describe_run(config: Any, model: Any, dataset: Any, **more: Any) -> dict[str, Any]:
    """What goes into run.json.

    Args:
        config: the `TrainConfig`, or any dataclass or mapping.
        model: the model's configuration.
        dataset: an `ImageDataset`: its name, fingerprint and class names are taken.
        more: whatever else the run's result depends on, JSON-able, e.g. the checkpoint it began with.
    """
    raise NotImplementedError


def specification_hash() -> str:
    """SHA-256 over the sources of vitspec's specification, the same on every machine."""
    raise NotImplementedError
