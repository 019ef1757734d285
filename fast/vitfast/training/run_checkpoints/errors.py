"""The errors of a run's checkpoints: each is one line that says what to do."""

from __future__ import annotations

import errno
import os


class RunCheckpointError(RuntimeError):
    """A checkpoint of a run cannot be written or read."""


class CheckpointDamaged(RunCheckpointError):  # noqa: N818
    """The files of a checkpoint are not those that were written."""


class CheckpointDiffers(RunCheckpointError):  # noqa: N818
    """A checkpoint is whole, but of another model or optimiser; or there is none of that step."""


class CheckpointFailed(RunCheckpointError):  # noqa: N818
    """A checkpoint could not be written, or, though it is whole, not be read."""


SYSTEM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)
"""What a file system says when it cannot write or read, which Orbax buries in longer texts."""


def reason(error: BaseException) -> str:
    """What the system said, or else the first line of another library's error, cut if long."""
    text = str(error).strip()
    for said in map(os.strerror, SYSTEM):
        if said in text:
            return said
    lines = text.splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
