"""Processes of the check that stand still, since an implementation has sent them SIGSTOP.

A process that is stopped looks at no clock, and the command would wait for it for ever. So the
command watches its judges, each judge the command, and, in every call, the implementation. Whoever
presses Ctrl-Z stops the command and its judges together: then nobody watches, and when they go on
nobody has seen another stand still for long. (An implementation that stops all of them at once does
the same as Ctrl-Z, and is not told from it.) Linux only: elsewhere nothing is seen.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

LOOK = 0.1
"""Seconds between two looks at a process."""
LOOKS = 10
"""Looks in a row at which it is stopped before it counts: after Ctrl-Z not all go on at once."""


class Stillness:
    """How often in a row processes were seen to be stopped."""

    def __init__(self) -> None:
        self._looks: dict[int, int] = {}

    def of(self, pid: int) -> bool:
        """Look at a process: whether it has been stopped for long."""
        self._looks[pid] = self._looks.get(pid, 0) + 1 if is_stopped(pid) else 0
        return self._looks[pid] >= LOOKS


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal; by a debugger does not count."""
    with suppress(OSError, IndexError):
        # The name of the program, in parentheses, may have any character.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False


def watch(processes: Callable[[], Iterable[int]], act: Callable[[int], None]) -> threading.Event:
    """Look at processes from now on, and act on each that stands still.

    Args:
        processes: those that are there now.
        act: what to do with one.

    Returns:
        What ends the watch when it is set; it ends with this process, too.
    """
    over, stillness = threading.Event(), Stillness()

    def look() -> None:
        while not over.wait(LOOK):
            for pid in processes():
                if stillness.of(pid):
                    act(pid)

    threading.Thread(target=look, daemon=True, name="watch of stopped processes").start()
    return over
