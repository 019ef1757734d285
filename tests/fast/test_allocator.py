"""`keep_freed_memory`: a block that was freed is not cleared again for the next one."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
from vitfast.allocator import keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
size = 2**28

def fresh_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(ctypes.c_size_t(size))
    ctypes.memset(block, 1, size)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "keep":
    assert keep_freed_memory()
fresh_pages()
print(fresh_pages())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_memory_that_was_freed_is_used_again_without_fresh_pages():
    def pages(how):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    returned, kept = pages("return"), pages("keep")
    assert kept * 10 < returned  # 65536 pages of 4 kB, or 128 of 2 MB, against a few
