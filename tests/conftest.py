"""Hypothesis profiles: in CI deterministic and without a database. And many small programs.

`--few` runs a few cases of each test: all of the code, for a second version of Python.
"""

import gc
import os
import sys
from pathlib import Path

# A test compiles many small programs and runs each a few times, so most of its time is XLA's. At
# its lowest level it makes the same program of operations, in plainer machine code. `vitspec check`
# and the benchmarks run what users run.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# There is a process of pytest for each core already. More threads of BLAS wait for each other, and
# spin meanwhile: on two busy cores a product of matrices takes ten times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("ci", derandomize=True, database=None, **_COMMON)
settings.register_profile("dev", database=None, **_COMMON)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

MAPPED = Path("/proc/self/maps")
MANY = 20_000
"""Regions of memory; Linux lets a process have 65,530, and XLA takes some eight a program."""


@pytest.fixture(autouse=True, scope="module")
def room_for_programs():
    """Forget JAX's programs before they are too many: one more, and the compiler crashes."""
    yield
    if "jax" in sys.modules and MAPPED.exists() and MAPPED.read_bytes().count(b"\n") > MANY:
        sys.modules["jax"].clear_caches()
        gc.collect()


def pytest_addoption(parser):
    words = "of each test, the first case, the last and one in the middle"
    parser.addoption("--few", action="store_true", help=words)


def pytest_collection_modifyitems(config, items):
    if not config.getoption("few"):
        return
    cases = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    few = {id(some[i]) for some in cases.values() for i in (0, len(some) // 2, -1)}
    left = [item for item in items if id(item) not in few]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if id(item) in few]
