"""Checkpoints of a run of training: what a killed run needs to go on as if nothing had happened.

    with RunCheckpoints(folder, keep=3) as checkpoints:
        found = checkpoints.restore(state)          # (state, progress), or None
        ...
        checkpoints.save(step, state, progress)     # in the background
        checkpoints.check()                         # at each step: has a save failed?

    folder/30/state/          the arrays, as Orbax writes them
    folder/30/progress/       a JSON object: where the data's iterator is, and the like
    folder/30/contents.json   the arrays' names, types and shapes, and the digest of each file

`manager` has the class, `seal` the digests, `leaves` the names of a state's arrays.
"""

from vitfast.training.run_checkpoints.errors import (
    CheckpointDamaged,
    CheckpointDiffers,
    CheckpointFailed,
    RunCheckpointError,
)
from vitfast.training.run_checkpoints.manager import RunCheckpoints

__all__ = [
    "CheckpointDamaged",
    "CheckpointDiffers",
    "CheckpointFailed",
    "RunCheckpointError",
    "RunCheckpoints",
]
