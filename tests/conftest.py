"""Hypothesis profiles: in CI deterministic and without a database. And quick compilation."""

import os

# A test compiles many small programs and runs each a few times, so most of its time is XLA's. At
# its lowest level it makes the same program of operations, in plainer machine code. `vitspec check`
# and the benchmarks run what users run.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

from hypothesis import HealthCheck, settings

_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("ci", derandomize=True, database=None, **_COMMON)
settings.register_profile("dev", database=None, **_COMMON)
settings.load_profile("ci" if os.environ.get("CI") else "dev")
