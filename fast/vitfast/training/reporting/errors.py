"""What can go wrong with a run's directory: each is one line that says what to do."""

from __future__ import annotations


class RunRefused(ValueError):  # noqa: N818
    """The directory is not one for this run: it holds another, or something else."""


class ReportFailed(RuntimeError):  # noqa: N818
    """A file of the run could not be written or read, or a package that it needs is missing."""
