"""A run of training: `fit`.

    for s in 0 ... S - 1:
        state, figures = update(state, batch_s)         # the device works, the host goes on
        figures of step s - 1: are they finite?         # one step late: nobody waits

The host waits only to evaluate, and to save: before parameters are saved, they and the last loss
have been found to be finite. So a checkpoint is never of a run that has gone wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vitfast.training.config import TrainConfig
from vitfast.training.evaluation import Evaluation, make_evaluate
from vitfast.training.feeding import feed, rows_of_process
from vitfast.training.optimizers import make_optimizer, make_schedule
from vitfast.training.preparation import (
    export_problem,
    processor_for,
    require_trainable,
    to_splits,
)
from vitfast.training.state import TrainState, new_state, step_key
from vitfast.training.steps import make_update

OnStep = Callable[[int, dict[str, float]], None]
"""Called after each step with how many are done, and its figures."""


class NotFinite(ArithmeticError):  # noqa: N818
    """The loss, the gradient or a parameter is infinite or no number; str() is one line."""


class Result(NamedTuple):
    """What has come of a run.

    Attributes:
        model: the parameters after the last step; or, with a validation part or patience, those
            whose evaluation was best.
        step: how many steps these have had.
        steps: how many steps have been made.
        history: records by step, as metrics.jsonl has them.
        test_loss, test_accuracy: of `model`, on the test images; no accuracy without classes.
        confusion: (K, K) counts of test images of class i that were taken for class j, or None.
        stopped_early: whether patience has ended the run.
        exported: the folder with the model as Hugging Face stores it, or None.
    """

    model: Any
    step: int
    steps: int
    history: list[dict[str, Any]]
    test_loss: float
    test_accuracy: float | None
    confusion: np.ndarray | None
    stopped_early: bool
    exported: Path | None


def fit(
    model: Any,
    dataset: Any,
    config: TrainConfig,
    *,
    run_directory: Any = None,
    resume: bool = True,
    resume_from: int | None = None,
    export: Any = None,
    processor: Any = None,
    on_step: OnStep | None = None,
    quiet: bool = False,
    about: Mapping[str, Any] | None = None,
) -> Result:
    """Train a model on a dataset.

    The same model, dataset and configuration make the same result, bit for bit, on the same
    machine: in one go, or killed and resumed. With several processes, or a mesh, call it in each,
    inside `jax.set_mesh`, with a model that was made there.

    Args:
        model: initial parameters, which are left as they are.
        dataset: a `vitfast.data.ImageDataset`.
        config: how it is trained.
        run_directory: where to keep checkpoints, metrics, curves and the export; if the run has
            been there before, it goes on. None keeps nothing.
        resume: whether a run that is there goes on; if not, one that is there is refused.
        resume_from: go on from the checkpoint of this step, not from the last.
        export: where to write the model in the end, as Hugging Face stores it; None is `export` in
            the run directory, for a model that Hugging Face has.
        processor: a `vitfast.images.ImageProcessor`; None is one for the dataset.
        on_step: called after each step.
        quiet: whether nothing is shown.
        about: what else the result follows from, as the checkpoint that the model is from: it is
            noted, and a run that is resumed must have the same.

    Raises:
        NotWellFormed: the model, dataset and configuration do not fit; every fault is listed.
        RunRefused: the directory is another run's.
        NotFinite: the loss or a parameter is no number; the last checkpoint is intact.
        GradientDeparts: the gradient is not the specification's.
        CheckpointDamaged, CheckpointFailed, ReportFailed: files cannot be read or written.
    """
    require_trainable(model, dataset, config)
    if export is not None and (problem := export_problem(model)):
        raise ValueError(f"export: {problem}")
    with ExitStack() as stack:
        run = _Run(model, dataset, config, processor, stack)
        run.on_step, run.export = on_step, export
        run.open(run_directory, resume, about or {}, quiet)
        run.restore(resume_from)
        run.train()
        return run.finish()


class _Run:
    """A run, while it runs."""

    def __init__(
        self, model: Any, dataset: Any, config: TrainConfig, processor: Any, stack: ExitStack
    ) -> None:
        from vitfast.data import evaluation_batches, train_batches

        self.dataset, self.config, self.stack = dataset, config, stack
        self.sharding, self.model_config = model.sharding, model.config
        self.exportable = export_problem(model) is None
        self.objective = config.to_objective()
        self.processor = processor or processor_for(model, dataset)
        self.splits = to_splits(dataset, config)
        self.rows = dict(zip(("process_index", "process_count"), rows_of_process(self.sharding),
                             strict=True))  # fmt: skip
        self.batches = train_batches(
            self.splits.train, self.processor, batch_size=config.batch_size, seed=config.seed,
            augmentation=config.augmentation, **self.rows,
        )  # fmt: skip
        stack.callback(self.batches.close)
        self.evaluation_batches = evaluation_batches
        self.steps_per_epoch = self.batches.steps_per_epoch
        self.steps = config.total_steps(len(self.splits.train))
        schedule = make_schedule(config, self.steps)
        optimizer = make_optimizer(config, schedule)
        self.state = new_state(model, optimizer, config.seed)
        self.update = make_update(
            optimizer, self.objective, accumulation=config.accumulation, schedule=schedule
        )
        self.evaluate_model = make_evaluate(self.objective)
        # Of two runs, one of which was resumed, everything below is the same at the same step.
        self.done, self.waited, self.stopped = 0, 0, False
        self.best: dict[str, Any] | None = None
        self.best_model: Any = None
        self.last: tuple[int, Evaluation] | None = None
        self.history: list[dict[str, Any]] = []

    @property
    def keeps_best(self) -> bool:
        """Whether the result is the best model, by evaluations, and not the last."""
        return self.config.patience is not None or self.config.validation_fraction > 0

    def open(self, path: Any, resume: bool, about: Mapping[str, Any], quiet: bool) -> None:
        """Open the run directory, if there is to be one, and the display."""
        from vitfast.training import reporting

        writes = jax.process_index() == 0
        self.directory = self.metrics = self.checkpoints = self.best_checkpoints = None
        self.scalars: Any = None
        if path is not None:
            from vitfast.training.run_checkpoints import RunCheckpoints

            dtypes = {"dtype": str(self.state.model.dtype), "param_dtype": str(
                self.state.model.param_dtype)}  # fmt: skip
            described = reporting.describe_run(
                self.config, self.model_config, self.dataset,
                processor=self.processor.to_dict(), **dtypes, **about,
            )  # fmt: skip
            make = (
                reporting.RunDirectory.create_or_open if resume else reporting.RunDirectory.create
            )
            self.directory = make(path, described, writes=writes)
            self.metrics = self.directory.metrics()
            folder = self.directory.checkpoints
            self.checkpoints = self.stack.enter_context(
                RunCheckpoints(folder, keep=self.config.keep)
            )
            if self.keeps_best:
                self.best_checkpoints = self.stack.enter_context(
                    RunCheckpoints(self.directory.path / "best", keep=1)
                )
        self.show = writes and not quiet

    def restore(self, step: int | None) -> None:
        """Go on where the run was, if it was anywhere."""
        if self.checkpoints is not None and self.metrics is not None:
            found = self.checkpoints.restore(self.state, step)
            if found is not None:
                self.state, progress = found
                self.done = int(self.state.step)
                self.batches.set_state(progress["data"])
                self.best, self.waited = progress["best"], progress["waited"]
                self.stopped = progress["stopped"]
            self.metrics.truncate_after(self.done)
            self.history = self.metrics.records()
        if self.config.tensorboard and self.directory is not None:
            from vitfast.training.reporting import TensorBoardScalars

            self.scalars = TensorBoardScalars(
                self.directory.tensorboard, first_step=self.done, writes=jax.process_index() == 0
            )
            self.stack.callback(self.scalars.close)

    def train(self) -> None:
        """Make the steps that are left."""
        from vitfast.training.reporting import TrainingDisplay

        self.display = self.stack.enter_context(
            TrainingDisplay(
                self.steps, self.config.batch_size, first_step=self.done, writes=self.show
            )
        )
        for note in () if self.directory is None else self.directory.notes:
            self.display.line(note)
        if self.done:
            self.display.line(f"going on after step {self.done} of {self.steps}")
        self.checker = self._gradient_check()
        c, pending = self.config, None
        while self.done < self.steps and not self.stopped:
            batch = feed(next(self.batches), self.sharding)
            if c.check_gradients and self.done % c.check_gradients == 0:
                self._check_gradient(batch)
            self.state, figures = self.update(self.state, batch)
            self.done += 1
            if pending is not None:
                self._settle(*pending)
            pending = (self.done, figures)
            if self._due(c.evaluate_every) or self._due(c.checkpoint_every):
                self._settle(*pending)
                pending = None
                self._evaluate_and_save()

    def finish(self) -> Result:
        """Evaluate the model that is the result, and write what is to be written."""
        model, step = self._result_model()
        with self.display.pause("evaluating"):
            found = self._evaluation(model, step, self.splits.test, "test")
        exported = self._export(model)
        if self.directory is not None:
            with self.display.pause("drawing"):
                self.directory.finish(
                    confusion=found.confusion,
                    class_names=self.dataset.class_names,
                    steps_per_epoch=self.steps_per_epoch,
                    title=self.dataset.name,
                )
        return Result(
            model, step, self.done, self.history, found.loss, found.accuracy, found.confusion,
            self.stopped, exported,
        )  # fmt: skip

    # ---- of a step -------------------------------------------------------------------------------

    def _due(self, every: int | None) -> bool:
        """Whether something that is done every so many steps is due after this one."""
        every = self.steps_per_epoch if every is None else every
        return self.done == self.steps or bool(every and self.done % every == 0)

    def _settle(self, step: int, figures: Mapping[str, Any]) -> None:
        """Look at the figures of a step, which this waits for."""
        values = {name: float(value) for name, value in figures.items()}
        for name in ("loss", "grad_norm"):
            if not math.isfinite(values[name]):
                raise self._not_finite(step, f"{name} is {values[name]}")
        if self.checkpoints is not None:
            self.checkpoints.check()
        self.display.step(step, loss=values["loss"])
        if step % self.config.log_every == 0 or step == self.steps:
            speed = self.display.images_per_second
            self._record(
                step,
                train_loss=values["loss"],
                learning_rate=values["learning_rate"],
                grad_norm=values["grad_norm"],
                **({} if speed is None else {"images_per_second": round(speed, 1)}),
            )
        if self.on_step is not None:
            self.on_step(step, values)

    def _record(self, step: int, **values: Any) -> None:
        record = {"step": step, "epoch": round(step / self.steps_per_epoch, 4), **values}
        self.history.append(record)
        if self.metrics is not None:
            self.metrics.append(record)
        if self.scalars is not None:
            self.scalars.append(record)

    def _not_finite(self, step: int, what: str) -> NotFinite:
        kept = () if self.checkpoints is None else self.checkpoints.steps()
        last = f"the checkpoint of step {kept[-1]} is intact" if kept else "nothing was saved"
        return NotFinite(
            f"step {step}: the {what}; {last}; try a lower learning_rate, a clip_norm, or "
            "warmup_steps, in another run directory"
        )

    def _gradient_check(self) -> Any:
        if not self.config.check_gradients:
            return None
        from vitfast.training.gradient_check import GradientCheck

        return GradientCheck(
            self.model_config,
            self.objective,
            images=self.config.check_images,
            accumulation=self.config.accumulation,
            folder=None if self.directory is None else self.directory.path,
        )

    def _check_gradient(self, batch: Any) -> None:
        with self.display.pause("checking the gradient"):
            report = self.checker.check(self.done, self.state.model, batch, step_key(self.state))
        self.display.line(report.line())
        self._record(self.done, **report.record())

    # ---- evaluations and checkpoints -------------------------------------------------------------

    def _evaluate_and_save(self) -> None:
        """What is due after this step, whose loss is known to be finite."""
        if not _all_finite(self.state.model):
            raise self._not_finite(self.done, "update has made parameters that are not finite")
        if self._due(self.config.evaluate_every):
            self._watch()
        if self.checkpoints is not None and (self.stopped or self._due(
                self.config.checkpoint_every)):  # fmt: skip
            with self.display.pause("saving"):
                self.checkpoints.save(self.done, self.state, self._progress())

    def _watch(self) -> None:
        """Evaluate on the watched images; is it the best so far, and is it time to stop?"""
        name = self.splits.watched_name
        with self.display.pause("evaluating"):
            found = self._evaluation(self.state.model, self.done, self.splits.watched, name)
        if not self.keeps_best:
            return
        if self.best is None or found.score > self.best["score"]:
            self.best, self.waited = {"step": self.done, "score": found.score}, 0
            if self.best_checkpoints is None:
                self.best_model = jax.tree.map(jnp.copy, self.state.model)
            else:
                self.best_checkpoints.save(self.done, self.state, self.best)
            return
        self.waited += 1
        if self.config.patience is not None and self.waited >= self.config.patience:
            self.stopped = self.done < self.steps
            if self.stopped:
                self.display.line(
                    f"stopped after step {self.done}: the best {name} result is that of step "
                    f"{self.best['step']}, {self.waited} evaluations ago"
                )

    def _evaluation(self, model: Any, step: int, split: Any, name: str) -> Evaluation:
        """Of a model on a split, recorded; that of the same step and split is not made twice."""
        key = (step, name)
        if self.last is not None and self.last[0] == key:
            return self.last[1]
        size = self.config.evaluation_batch_size or self.config.batch_size
        batches = self.evaluation_batches(split, self.processor, batch_size=size, **self.rows)
        found = self.evaluate_model(model, batches)
        values = {f"{name}_loss": found.loss}
        if found.accuracy is not None:
            values[f"{name}_accuracy"] = found.accuracy
        if not any(one["step"] == step and f"{name}_loss" in one for one in self.history):
            self._record(step, **values)
        self.display.line(_line(step, self.steps, values))
        self.last = (key, found)
        return found

    def _progress(self) -> dict[str, Any]:
        return {
            "data": self.batches.get_state(),
            "best": self.best,
            "waited": self.waited,
            "stopped": self.stopped,
        }

    def _result_model(self) -> tuple[Any, int]:
        """The model that is the result, and its step."""
        if self.checkpoints is not None:
            with self.display.pause("saving"):
                self.checkpoints.wait()
        if self.best is None or self.best["step"] == self.done:
            return self.state.model, self.done
        if self.best_checkpoints is None:
            return self.best_model, self.best["step"]
        self.best_checkpoints.wait()
        found = self.best_checkpoints.restore(self.state)
        assert found is not None
        state: TrainState = found[0]
        return state.model, int(state.step)

    def _export(self, model: Any) -> Path | None:
        """Write the model as Hugging Face's, with its image processor and the classes' names."""
        path = self.export
        if path is None and self.directory is not None and self.exportable:
            path = self.directory.export
        if path is None:
            return None
        labels = list(self.dataset.class_names) if self.model_config.num_classes else None
        with self.display.pause("exporting"):
            model.save_pretrained(path, labels=labels)
            if jax.process_index() == 0:
                self.processor.save_pretrained(path)
        return Path(path)


@jax.jit
def _all_finite(model: Any) -> jax.Array:
    """Whether every parameter is a finite number."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(model)]).all()


def _line(step: int, steps: int, values: Mapping[str, float]) -> str:
    """What an evaluation has found."""
    said = [
        f"{name.replace('_', ' ')} " + (f"{100 * v:.2f} %" if "accuracy" in name else f"{v:.4f}")
        for name, v in values.items()
    ]
    return f"step {step} of {steps}: " + ", ".join(said)
