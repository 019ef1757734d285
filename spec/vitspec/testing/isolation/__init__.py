"""An implementation in a process of its own, as the command line runs it.

Three processes take part in a check. The first reads the command and writes the report. *Judges*
compute truths, prices and verdicts; they never import the implementation. Each starts one process
for each implementation, which imports it and does nothing but answer the judge's calls. So whatever
the implementation does to its process (it leaves, crashes, hangs, patches NumPy, moves to another
folder) happens to nobody else. It is no sandbox: the implementation is the user's code, and may
write to the user's files as it may anywhere.
"""

from __future__ import annotations

from vitspec.testing.isolation.remote import RemoteSubject

__all__ = ["RemoteSubject"]
