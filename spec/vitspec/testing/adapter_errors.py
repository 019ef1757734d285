"""What goes wrong in an implementation, in a line: nothing that it raises gets past the kit.

An implementation is anybody's code. It may raise what is no `Exception` (`SystemExit`, a test
framework's "skip"), and what it raises, or is, may fail again when it is printed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

LONGEST, WHOLE = 300, 20_000
"""Characters that are shown of a foreign object, and of an exception's own message."""


class AdapterError(RuntimeError):
    """The implementation did not do what an implementation must; it was not graded.

    Args:
        message: one line.
        raised: the class of what the implementation raised, if it raised.
    """

    def __init__(self, message: str = "", raised: str = "") -> None:
        super().__init__(message)
        self.raised = raised

    def __reduce__(self) -> Any:
        """Without the cause, which is the implementation's and perhaps cannot be pickled."""
        return type(self), (str(self), self.raised)


class ProcessEndedError(AdapterError):
    """The implementation's process is gone: it crashed, left, or was ended because it hung."""


def shown(value: Any, how: Callable[[Any], Any] = repr, longest: int = LONGEST) -> str:
    """A foreign object in a short line, even if it cannot be printed."""
    try:
        text = " ".join(str.__str__(how(value)).split())
    except KeyboardInterrupt:
        raise
    except BaseException:  # whatever its own __repr__ or __str__ raises
        text = f"<{_class_name(value)} that cannot be printed>"
    return text if len(text) <= longest else text[: longest - 3] + "..."


def raised(error: BaseException) -> str:
    """An exception in a line: its class and its message."""
    text = shown(error, str, WHOLE)
    return f"{_class_name(error)}: {text}" if text else _class_name(error)


class guarded:  # noqa: N801 - it is called as a function
    """Turn whatever a foreign function raises into an `AdapterError` that says where.

    Only an `AdapterError`, and Ctrl-C, pass unchanged. A class, because `contextmanager` lets a
    `StopIteration` through.

    Args:
        what: the function, as the message calls it.
        where: what it was called on, if that helps.
    """

    def __init__(self, what: str, where: Any = None) -> None:
        self.what, self.where = what, where

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        """Raise what is to be raised instead."""
        if error is None or isinstance(error, KeyboardInterrupt):
            return
        if type(error) in (AdapterError, ProcessEndedError):
            return
        on = "" if self.where is None else f" on {shown(self.where, str)}"
        name, text = _class_name(error), shown(error, str, WHOLE)
        raise AdapterError(f"{self.what} raised {name}{on}: {text}", name) from error


def _class_name(value: Any) -> str:
    return str.__str__(type.__dict__["__name__"].__get__(type(value)))
