"""The check itself: the step's own program on a few images of its batch, against `vitspec`."""

from __future__ import annotations

import functools
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vitfast.convert import load, to_flat
from vitfast.training import steps
from vitfast.training.gradient_check.examples import (
    Example,
    examples_of,
    like,
    on_host,
    weights_for,
)
from vitfast.training.gradient_check.kinks import move_biases, move_pixels
from vitfast.training.gradient_check.naming import advice, nearest
from vitfast.training.gradient_check.reference import Flat, Reference
from vitfast.training.gradient_check.report import GradientDeparts, GradientReport
from vitfast.training.objectives import Objective
from vitspec.testing.precision import PRECISIONS
from vitspec.vision_transformer_config import VisionTransformerConfig


class GradientCheck:
    """Checks of a training run's gradients.

    The function that the update differentiates, `loss_and_gradients`, is called on the very batch
    of the step, with its key, and with weights that leave a few images of it: so shapes, masks,
    dropout, parts, types and sharding are the step's own. Its gradients are graded as
    `vitspec check` grades them.

    Args:
        config: the model's.
        objective: what is minimised.
        images: how many images of a batch are looked at.
        accumulation: into how many parts the step cuts its batch.
        folder: where the report is written if a gradient departs; None writes none.

    Raises:
        TypeError: the configuration is not of the family that this is for.
        ValueError: there are no images to look at.
    """

    def __init__(
        self,
        config: VisionTransformerConfig,
        objective: Objective,
        *,
        images: int = 1,
        accumulation: int = 1,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        if not isinstance(config, VisionTransformerConfig):
            raise TypeError(
                "gradient check: expected the configuration of a VisionTransformer, got "
                f"{type(config).__name__}: train that model without --check-gradients"
            )
        if images < 1:
            raise ValueError(f"check_images: expected at least 1 image, got {images}")
        self.config, self.objective = config, objective
        self.images, self.accumulation = images, accumulation
        self.folder = None if folder is None else Path(folder)
        self._program = jax.jit(
            functools.partial(
                # Looked up at the call, so that it is what the update calls.
                lambda *given, **options: steps.loss_and_gradients(*given, **options),
                objective=objective,
                accumulation=accumulation,
            )
        )
        self._began: float | None = None
        self._spent = 0.0

    def check(self, step: int, model: Any, batch: Any, key: Any) -> GradientReport:
        """Check one step, before the update: it donates what this reads.

        With several processes, all must call this; each comes to the same verdict.

        Args:
            step: the number of updates so far.
            model: as the step has it.
            batch: the images and labels that the step gets.
            key: the step's key, which `loss_and_gradients` gets.

        Returns:
            The report, if the gradient conforms.

        Raises:
            GradientDeparts: it does not; the report is in the folder, too.
            NotFinite: the parameters are not, so there is nothing to compare with.
        """
        start = time.perf_counter()
        self._began = start if self._began is None else self._began
        precision = PRECISIONS[model.dtype.name]
        rows = self._rows(step, len(batch[0]))
        flat, examples, moved = self._point(step, model, batch, key, rows)
        prepared = time.perf_counter()
        loss, found = self._gradients(*moved, key, rows)
        computed = time.perf_counter()
        rng = np.random.default_rng([step, *rows])
        reference = Reference(self.config, flat, examples, self.objective, precision, rng)
        true = time.perf_counter()
        grades = reference.grades(found)
        end = time.perf_counter()
        self._spent += end - start
        elapsed = end - self._began
        parts = {
            "prepare": prepared - start,
            "step": computed - prepared,
            "truth": true - computed,
            "price": end - true,
        }
        report = GradientReport(
            step, rows, precision.name, tuple(grades), loss, reference.loss, reference.runs,
            end - start, {name: round(s, 4) for name, s in parts.items()},
            self._spent / elapsed if self._spent < elapsed else None,
        )  # fmt: skip
        if not report.conforms:
            self._stop(report, reference, found)
        return report

    def _rows(self, step: int, size: int) -> tuple[int, ...]:
        """Images that are spread over the batch, others at each checked step."""
        if size < self.images:
            raise ValueError(f"check_images: expected at most {size}, the batch, got {self.images}")
        return tuple(int(step + i * size // self.images) % size for i in range(self.images))

    def _point(
        self, step: int, model: Any, batch: Any, key: Any, rows: tuple[int, ...]
    ) -> tuple[Flat, tuple[Example, ...], tuple[Any, Any]]:
        """Parameters, examples, and the model and batch: as they are, but for kinks."""
        flat = to_flat(model)
        wrong = [name for name, leaf in flat.items() if not np.isfinite(leaf).all()]
        if wrong:
            from vitfast.training.loop import NotFinite

            raise NotFinite(
                f"step {step}: NaN or infinity in {len(wrong)} parameters, the first {wrong[0]}: "
                "there is no gradient to check; try a lower learning_rate, a clip_norm or "
                "warmup_steps, in another run directory"
            )
        precision = PRECISIONS[model.dtype.name]
        examples = examples_of(model, batch, key, self.objective, rows, self.accumulation)
        if self.config.activation == "relu":
            flat = move_biases(self.config, flat, examples, precision)
            model = load(model, flat)
        moved = move_pixels(self.config, flat, examples, self.objective, precision)
        if moved != examples:
            images = np.array(on_host(batch[0]))
            for example in moved:
                images[example.row] = example.image.transpose(1, 2, 0)
            batch = (like(images, batch[0]), *tuple(batch)[1:])
        return flat, moved, (model, batch)

    def _gradients(
        self, model: Any, batch: Any, key: Any, rows: tuple[int, ...]
    ) -> tuple[float, Flat]:
        """The loss and the gradients of these images, by the step's function."""
        images, labels = tuple(batch)[:2]
        weights = weights_for(rows, labels, model.param_dtype)
        loss, gradients = self._program(model, (images, labels), key, weights)
        wide = {
            name: leaf if leaf.dtype.name in ("float32", "float64") else leaf.astype(np.float32)
            for name, leaf in to_flat(gradients).items()
        }
        return float(on_host(loss)), wide

    def _stop(self, report: GradientReport, reference: Reference, found: Flat) -> None:
        report = replace(
            report, named=nearest(reference, found), advice=advice(report.precision)
        )  # fmt: skip
        if self.folder is not None and jax.process_index() == 0:
            report.write(self.folder)
        raise GradientDeparts(report)
