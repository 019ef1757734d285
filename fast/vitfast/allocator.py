"""Memory that a process on a CPU keeps for its next step."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Parameters of mallopt, as in glibc's malloc.h."""

LARGEST = 2**31 - 1
"""The largest value that mallopt takes."""


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, rather than return it to the system.

    XLA's client for the CPU allocates all of a program's intermediate values as one block at each
    call and frees it after; glibc gives blocks of that size (1.4 GB for the gradient of ViT-B/16 at
    batch 8) back to the system, which must clear every page of the next: anything from a tenth of a
    call's time to more than the call itself, on a virtual machine whose host takes pages back too.
    Call this before JAX has found its devices, in a program of your own: what threads that run
    already have is not kept. It concerns the whole process, whose memory then never shrinks. Pages
    of 2 MB do as much again, but only the environment can ask for them, before Python starts:
    `GLIBC_TUNABLES=glibc.malloc.hugetlb=1` (glibc 2.35).

    Returns:
        Whether it took effect: on Linux with glibc it does.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((M_MMAP_THRESHOLD, LARGEST), (M_TRIM_THRESHOLD, LARGEST), (M_ARENA_MAX, 1))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
