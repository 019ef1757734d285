"""Saving and restoring the checkpoints of a run, through Orbax's CheckpointManager.

Orbax copies the arrays off the devices and writes them in the background, into a folder with a
temporary name. When all processes have written their parts, `contents.json` is added, and the
folder gets its name, the number of steps done: that is one renaming, before which the checkpoint
does not exist and after which it is whole. Only then is the oldest removed, if there are more than
`keep`. So a run may be killed at any moment.

Several processes must see the same folder, and call these methods together.
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vitfast.training.run_checkpoints.errors import (
    CheckpointDamaged,
    CheckpointDiffers,
    CheckpointFailed,
    reason,
)
from vitfast.training.run_checkpoints.leaves import (
    described,
    difference,
    named_leaves,
    to_restore,
    to_save,
    with_leaves,
)
from vitfast.training.run_checkpoints.quiet import silence
from vitfast.training.run_checkpoints.seal import Arrays, faults, read_seal, seal

STATE, PROGRESS = "state", "progress"

UNFINISHED = ".orbax-checkpoint-tmp"
"""In the names of the folders in which Orbax has not finished."""

ASIDE = "set-aside-"
"""Before the names of checkpoints that an earlier one has been preferred to."""

LONGEST = 4096
"""Bytes of what one process tells the others of damage."""


class RunCheckpoints:
    """The checkpoints in a folder. A context manager: it ends with `close`.

    Args:
        folder: where they are; it need not exist.
        keep: how many are kept: the latest.

    Raises:
        ValueError: keep is not positive.
    """

    def __init__(self, folder: str | Path, keep: int = 3) -> None:
        if keep < 1:
            raise ValueError(f"keep: expected at least 1 checkpoint, got {keep}")
        self.folder = Path(folder).absolute()
        self.keep = keep
        self._manager: Any = None
        self._latest: int | None = None  # of this run, that which it resumed from among them
        self._saving: int | None = None
        self._arrays: Arrays = {}

    def steps(self) -> tuple[int, ...]:
        """The steps of which there are checkpoints, the latest last; they may be damaged."""
        if not self.folder.is_dir():
            return ()
        return tuple(sorted(int(path.name) for path in self.folder.iterdir() if _is_step(path)))

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Save in the background; it returns when the state may be donated.

        If the save before is still under way, this waits for it. The step that was saved last, or
        restored, is not saved again. The first save of a run clears up after those that were
        killed: it removes what is unfinished, and sets aside, under another name, checkpoints later
        than the one that was restored; if none was, from this step on.

        Args:
            step: how many updates have been done.
            state: a pytree of arrays.
            progress: what else to remember, as JSON can hold it.

        Raises:
            TypeError, ValueError: JSON cannot hold the progress.
            CheckpointFailed: this, or the one before, could not be written.
        """
        json.dumps(progress)
        self.wait()
        if step == self._latest:
            return
        leaves = named_leaves(state)
        self._arrays, self._saving = described(leaves), step
        try:
            import orbax.checkpoint as ocp

            args = ocp.args.Composite(
                state=ocp.args.StandardSave(to_save(leaves)), progress=ocp.args.JsonSave(progress)
            )
            self._manager = self._manager or self._open(step)
            self._manager.save(step, args=args, force=True)
        except Exception as error:
            raise self._failed(error) from error

    def check(self) -> None:
        """Raise if a save in the background has failed; it costs next to nothing.

        Raises:
            CheckpointFailed: it has.
        """
        if self._saving is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Wait for the save that is under way.

        Raises:
            CheckpointFailed: it failed.
        """
        if self._saving is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error
        self._latest, self._saving = self._saving, None

    def close(self) -> None:
        """Wait, and let go of what Orbax holds. A later save opens it anew.

        Raises:
            CheckpointFailed: the save under way failed.
        """
        self.wait()
        self._let_go()

    def __enter__(self) -> RunCheckpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        try:
            self.close()
        except CheckpointFailed as failure:
            if error is None:
                raise
            error.add_note(str(failure))  # the first error is what the user has to know

    def restore(self, like: Any, step: int | None = None) -> tuple[Any, dict[str, Any]] | None:
        """The state and the progress of the latest checkpoint, or of that of a step.

        Every byte is checked before anything is restored. The arrays are read straight to where
        they are to lie, which need not be where they lay.

        Args:
            like: a state like that which was saved, of arrays or of `jax.ShapeDtypeStruct`s, whose
                shardings are taken. If some are on a mesh, the others come to lie on all of it.
            step: of which step; None is the latest.

        Returns:
            State and progress; None if there is no checkpoint at all, and no step was asked for.

        Raises:
            CheckpointDamaged: the files are not those that were written.
            CheckpointDiffers: the state is of another kind, or there is none of that step.
            CheckpointFailed: it could not be read, though its files are as they were written.
        """
        steps = self.steps()
        if not steps and step is None:
            return None
        if step is not None and step not in steps:
            there = ", ".join(map(str, steps)) or "none"
            raise CheckpointDiffers(f"{self.folder}: no checkpoint of step {step}; found: {there}")
        chosen = steps[-1] if step is None else step
        self._check_whole(chosen)
        leaves = named_leaves(like)
        found = read_seal(self._of(chosen))["arrays"]
        if (problem := difference(found, described(leaves))) is not None:
            raise CheckpointDiffers(
                f"{self._of(chosen)} is of another run: {problem}; resume with the options"
                " that the run was started with, or start another in a new folder"
            )
        arrays, progress = self._read(chosen, to_restore(leaves))
        self._latest = chosen
        return with_leaves(like, arrays), progress

    def _read(self, step: int, targets: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        import orbax.checkpoint as ocp

        silence()
        try:
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
                restored = reader.restore(
                    self._of(step),
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(targets), progress=ocp.args.JsonRestore()
                    ),
                )
        except Exception as error:
            raise CheckpointFailed(
                f"{self._of(step)} is whole but could not be read: {reason(error)}"
            ) from error
        return restored[STATE], restored[PROGRESS]

    def _check_whole(self, step: int) -> None:
        """Raise if a checkpoint is damaged; the processes share the reading, and all raise."""
        found = _together(step, faults(self._of(step), jax.process_index(), jax.process_count()))
        if not found:
            return
        more = f" (and {len(found) - 1} more)" if found[1:] else ""
        earlier = [other for other in reversed(self.steps()) if other < step]
        whole = next((other for other in earlier if not faults(self._of(other))), None)
        advice = (
            "no earlier checkpoint is intact: start again in another folder"
            if whole is None
            else f"the checkpoint of step {whole} is intact: go on from it with --resume-from"
            f" {whole}, or delete the damaged one"
        )
        raise CheckpointDamaged(
            f"{self._of(step)} is damaged: {found[0]}{more}; {advice}; nothing has been deleted"
        )

    def _of(self, step: int) -> Path:
        return self.folder / str(step)

    def _open(self, step: int) -> Any:
        """Orbax's manager, after clearing up, to save a step."""
        import orbax.checkpoint as ocp

        if jax.process_index() == 0:
            self._clear_up(step if self._latest is None else self._latest + 1)
        multihost_utils.sync_global_devices("vitfast: checkpoints cleared up")
        silence()
        return ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=self.keep,
                save_root_metadata=False,
                lightweight_initialize=True,
                async_options=ocp.options.AsyncOptions(post_finalization_callback=self._seal),
            ),
        )

    def _clear_up(self, first: int) -> None:
        """Remove what is unfinished, and set aside the checkpoints from a step on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.iterdir():
            if UNFINISHED in path.name and path.is_dir():
                # If it was this process that failed, its threads may still be writing there.
                shutil.rmtree(path, ignore_errors=True)
        for step in self.steps():
            if step >= first:
                self._of(step).rename(_free(self.folder / f"{ASIDE}{step}"))

    def _seal(self) -> None:
        """Called by Orbax in the background, in one process: all is written, nothing renamed."""
        assert self._saving is not None
        (unfinished,) = self.folder.glob(f"{self._saving}{UNFINISHED}*")
        seal(unfinished, self._saving, self._arrays)

    def _failed(self, error: Exception) -> CheckpointFailed:
        step, self._saving = self._saving, None
        with suppress(Exception):  # which says the same again, or more of it
            self._let_go()
        whole = next((each for each in reversed(self.steps()) if not faults(self._of(each))), None)
        last = (
            "there is none before it"
            if whole is None
            else f"that of step {whole} is intact: resume from it when the cause is mended"
        )
        return CheckpointFailed(
            f"{self.folder}: the checkpoint of step {step} could not be written: {reason(error)};"
            f" {last}"
        )

    def _let_go(self) -> None:
        if self._manager is not None:
            manager, self._manager = self._manager, None
            manager.close()


def _is_step(path: Path) -> bool:
    name = path.name
    return name.isascii() and name.isdecimal() and name == str(int(name)) and path.is_dir()


def _free(path: Path) -> Path:
    """The path, or the first with a number after it that is not taken."""
    taken = 1
    free = path
    while free.exists():
        taken += 1
        free = path.with_name(f"{path.name}-{taken}")
    return free


def _together(step: int, found: list[str]) -> list[str]:
    """What all processes have found wrong with the checkpoint of that step, the same for each."""
    if jax.process_count() == 1:
        return found
    text = json.dumps([step, *(fault[:250] for fault in found[:3])]).encode()
    row = np.zeros(LONGEST, np.uint8)
    row[: len(text)] = np.frombuffer(text, np.uint8)
    rows = multihost_utils.process_allgather(row)
    told = [json.loads(bytes(each).rstrip(b"\0")) for each in np.asarray(rows)]
    if len({each[0] for each in told}) > 1:
        return ["the processes do not see the same folder"]
    return list(dict.fromkeys(fault for each in told for fault in each[1:]))
