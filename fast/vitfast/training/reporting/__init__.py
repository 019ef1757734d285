"""What a run of training leaves behind and shows meanwhile.

    run = describe_run(train_config, model.config, dataset)         # what makes it, as data
    directory = RunDirectory.create_or_open("runs/digits", run)     # refuses another run's
    metrics = directory.metrics()                                   # metrics.jsonl
    metrics.truncate_after(restored_step)                           # on resuming
    with TrainingDisplay(steps, batch_size, first_step=restored_step) as display:
        ...
        display.step(step, loss=loss)
        metrics.append({"step": step, "train_loss": loss, "train_accuracy": accuracy})
    directory.finish(confusion=counts, class_names=names, steps_per_epoch=n)

Only process 0 writes and prints: elsewhere pass `writes=False`, and every call does nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitfast.training.reporting.confusion import confusion_matrix, draw_confusion
    from vitfast.training.reporting.curves import draw_curves
    from vitfast.training.reporting.display import TrainingDisplay
    from vitfast.training.reporting.errors import ReportFailed, RunRefused
    from vitfast.training.reporting.metrics import MetricsLog
    from vitfast.training.reporting.provenance import describe_run, specification_hash
    from vitfast.training.reporting.run_directory import RunDirectory
    from vitfast.training.reporting.tensorboard import TensorBoardScalars

_MODULES = {
    "MetricsLog": "metrics",
    "ReportFailed": "errors",
    "RunDirectory": "run_directory",
    "RunRefused": "errors",
    "TensorBoardScalars": "tensorboard",
    "TrainingDisplay": "display",
    "confusion_matrix": "confusion",
    "describe_run": "provenance",
    "draw_confusion": "confusion",
    "draw_curves": "curves",
    "specification_hash": "provenance",
}

__all__ = [
    "MetricsLog",
    "ReportFailed",
    "RunDirectory",
    "RunRefused",
    "TensorBoardScalars",
    "TrainingDisplay",
    "confusion_matrix",
    "describe_run",
    "draw_confusion",
    "draw_curves",
    "specification_hash",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: matplotlib and rich take their time."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
