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
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from vitfast.training.config import TrainConfig
from vitfast.training.evaluation import Evaluation, make_evaluate
from vitfast.training.export import export as write_export
from vitfast.training.export import export_problem
from vitfast.training.feeding import feed, rows_of_process
from vitfast.training.interruption import Interrupted, Request, noted_signals
from vitfast.training.optimizers import make_optimizer, make_schedule
from vitfast.training.preparation import (
    open_directory,
    processor_for,
    require_trainable,
    to_splits,
    what_follows,
)
from vitfast.training.recording import Recorder
from vitfast.training.saving import Saves
from vitfast.training.state import new_state, step_key
from vitfast.training.steps import make_update
from vitspec.errors import NotWellFormed

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
    stop_on_signals: bool = False,
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
        stop_on_signals: whether SIGINT (Ctrl-C) and SIGTERM end the run after the step that it is
            at, with a checkpoint from which it goes on; in a single process only.

    Raises:
        NotWellFormed: the model, dataset and configuration do not fit; every fault is listed.
        RunRefused: the directory is another run's.
        NotFinite: the loss or a parameter is no number; the last checkpoint is intact.
        Interrupted: a signal has ended it.
        GradientDeparts: the gradient is not the specification's.
        CheckpointDamaged, CheckpointFailed, ReportFailed: files cannot be read or written.
    """
    require_trainable(model, dataset, config)
    if export is not None and (problem := export_problem(model)):
        raise NotWellFormed("training", [f"export: {problem}"])
    processor = processor or processor_for(model, dataset)
    with ExitStack() as stack:
        directory = None
        if run_directory is not None:
            directory = open_directory(
                run_directory, resume, model, dataset, config, processor, about
            )
        recorder = Recorder(stack, config, directory, quiet=quiet)
        run = _Run(model, dataset, config, processor, recorder, stack)
        run.restore(resume_from)
        with noted_signals(stop_on_signals) as request:
            run.train(on_step, request)
        return run.finish(export)


class _Run:
    """A run, while it runs.

    Of two runs of the same, one of which was resumed, the same is here at the same step.
    """

    def __init__(
        self,
        model: Any,
        dataset: Any,
        config: TrainConfig,
        processor: Any,
        recorder: Recorder,
        stack: ExitStack,
    ) -> None:
        from vitfast.data import evaluation_batches, train_batches

        self.dataset, self.config, self.recorder = dataset, config, recorder
        self.sharding, self.model_config = model.sharding, model.config
        self.unexportable = export_problem(model)
        self.objective, self.processor = config.to_objective(), processor
        self.splits = to_splits(dataset, config)
        index, count = rows_of_process(self.sharding)
        self.rows = {"process_index": index, "process_count": count}
        self.batches = train_batches(
            self.splits.train,
            processor,
            batch_size=config.batch_size,
            seed=config.seed,
            augmentation=config.augmentation,
            **self.rows,
        )
        stack.callback(self.batches.close)
        self.evaluation_batches = evaluation_batches
        self.steps = config.total_steps(len(self.splits.train))
        self.saves = Saves(stack, config, recorder)
        schedule = make_schedule(config, self.steps)
        optimizer = make_optimizer(config, schedule)
        self.state = new_state(model, optimizer, config.seed)
        self.update = make_update(
            optimizer, self.objective, accumulation=config.accumulation, schedule=schedule
        )
        self.evaluate = make_evaluate(self.objective)
        self.done, self.stopped = 0, False
        self.last: tuple[tuple[int, str], Evaluation] | None = None

    def restore(self, step: int | None) -> None:
        """Go on where the run was, if it was anywhere."""
        found = self.saves.restore(self.state, step)
        if found is not None:
            self.state, progress = found
            self.done, self.stopped = int(self.state.step), progress["stopped"]
            self.batches.set_state(progress["data"])
        self.recorder.begin(self.steps, self.batches.steps_per_epoch, self.done)
        if self.done < self.steps:
            self.recorder.line(what_follows(self.state.model, self.splits, self.config, self.steps))
            if self.recorder.directory is not None and self.unexportable:
                self.recorder.line(f"nothing will be exported: {self.unexportable}")

    def train(self, on_step: OnStep | None, request: Request) -> None:
        """Make the steps that are left, unless a signal asks for an end."""
        c, pending = self.config, None
        checker = self._gradient_checker()
        while self.done < self.steps and not self.stopped:
            batch = feed(next(self.batches), self.sharding)
            if checker is not None and self.done % c.check_gradients == 0:
                if pending is not None:  # a loss that is not finite is to be said as such
                    self._settle(*pending, on_step)
                    pending = None
                self._check_gradient(checker, batch)
            self.state, figures = self.update(self.state, batch)
            self.done += 1
            if pending is not None:
                self._settle(*pending, on_step)
            pending = (self.done, figures)
            if self._due(c.evaluate_every) or self._due(c.checkpoint_every):
                self._settle(*pending, on_step)
                pending = None
                self._evaluate_and_save()
            if request.signal is not None and self.done < self.steps:
                if pending is not None:
                    self._settle(*pending, on_step)
                self._leave(request.signal)

    def finish(self, export: Any) -> Result:
        """Evaluate the model that is the result, and write what is to be written."""
        model, step, best = self.state.model, self.done, self.saves.best
        self.saves.wait()
        if best is not None:
            model, step = best.model(self.state, self.done)
        found = self._evaluation(model, step, self.splits.test, "test")
        exported = self._export(model, export)
        self.recorder.finish(found.confusion, self.dataset.class_names, self.dataset.name)
        return Result(
            model=model,
            step=step,
            steps=self.done,
            history=self.recorder.history,
            test_loss=found.loss,
            test_accuracy=found.accuracy,
            confusion=found.confusion,
            stopped_early=self.stopped,
            exported=exported,
        )

    # ---- of a step -------------------------------------------------------------------------------

    def _due(self, every: int | None) -> bool:
        """Whether something that is done every so many steps is due after this one."""
        every = self.batches.steps_per_epoch if every is None else every
        return self.done == self.steps or bool(every and self.done % every == 0)

    def _settle(self, step: int, figures: Mapping[str, Any], on_step: OnStep | None) -> None:
        """Look at the figures of a step, for which this waits."""
        values = {name: float(value) for name, value in figures.items()}
        for name, said in (("loss", "loss"), ("grad_norm", "gradient's norm")):
            if not math.isfinite(values[name]):
                raise self._not_finite(step, f"the {said} is {values[name]}")
        self.saves.check()
        self.recorder.step(step, values)
        if on_step is not None:
            on_step(step, values)

    def _not_finite(self, step: int, what: str) -> NotFinite:
        kept = self.saves.wait()
        last = f"the checkpoint of step {kept[-1]} is intact" if kept else "nothing was saved"
        return NotFinite(
            f"step {step}: {what}; {last}; try a lower learning_rate, a clip_norm or warmup_steps, "
            "in another run directory"
        )

    def _gradient_checker(self) -> Any:
        if not self.config.check_gradients:
            return None
        from vitfast.training.gradient_check import GradientCheck

        directory = self.recorder.directory
        return GradientCheck(
            self.model_config,
            self.objective,
            images=self.config.check_images,
            accumulation=self.config.accumulation,
            folder=None if directory is None else directory.path,
        )

    def _check_gradient(self, checker: Any, batch: Any) -> None:
        with self.recorder.pause("checking the gradient"):
            report = checker.check(self.done, self.state.model, batch, step_key(self.state))
        self.recorder.line(report.line())
        self.recorder.record(self.done, **report.record())

    # ---- evaluations and checkpoints -------------------------------------------------------------

    def _evaluate_and_save(self) -> None:
        """What is due after this step, whose loss is known to be finite."""
        self._require_finite()
        if self._due(self.config.evaluate_every):
            self._watch()
        if self.stopped or self._due(self.config.checkpoint_every):
            self._save()

    def _require_finite(self) -> None:
        if not _all_finite(self.state.model):
            raise self._not_finite(self.done, "the update has made parameters that are not finite")

    def _leave(self, signal: int) -> NoReturn:
        """Save this step's state, whose loss is known to be finite, and say where it goes on."""
        self._require_finite()
        self._save()
        said = "the same again goes on there"
        if not self.saves.wait():
            said = "nothing was saved: there is no run directory"
        raise Interrupted(f"stopped after step {self.done} of {self.steps}; {said}", signal)

    def _save(self) -> None:
        progress = {"data": self.batches.get_state(), "stopped": self.stopped}
        self.saves.save(self.done, self.state, progress)

    def _watch(self) -> None:
        """Evaluate on the watched images; is it the best so far, and is it time to stop?"""
        name, best = self.splits.watched_name, self.saves.best
        found = self._evaluation(self.state.model, self.done, self.splits.watched, name)
        if best is None or not best.look(self.done, self.state, found.score):
            return
        self.stopped = self.done < self.steps
        if self.stopped:
            self.recorder.line(
                f"stopped after step {self.done}: none of the last {best.waited} evaluations "
                f"was better than that of step {best.step}"
            )

    def _evaluation(self, model: Any, step: int, split: Any, name: str) -> Evaluation:
        """Of a model on a split; that of the same step and split is not made twice."""
        if self.last is not None and self.last[0] == (step, name):
            return self.last[1]
        size = self.config.evaluation_batch_size or self.config.batch_size
        with self.recorder.pause("evaluating"):
            batches = self.evaluation_batches(split, self.processor, batch_size=size, **self.rows)
            found = self.evaluate(model, batches)
        self.recorder.evaluation(step, name, found.loss, found.accuracy)
        self.last = ((step, name), found)
        return found

    def _export(self, model: Any, path: Any) -> Path | None:
        """Write the model as Hugging Face's, with its image processor and the classes' names."""
        directory = self.recorder.directory
        if path is None and directory is not None and not self.unexportable:
            path = directory.export
        if path is None:
            return None
        labels = list(self.dataset.class_names) if self.model_config.num_classes else None
        with self.recorder.pause("exporting"):
            write_export(model, path, labels, self.processor)
        return Path(path)


@jax.jit
def _all_finite(model: Any) -> jax.Array:
    """Whether every parameter is a finite number."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(model)]).all()
