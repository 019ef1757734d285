"""Hypothesis profiles: in CI deterministic and without a database."""

import os

from hypothesis import HealthCheck, settings

_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("ci", derandomize=True, database=None, **_COMMON)
settings.register_profile("dev", database=None, **_COMMON)
settings.load_profile("ci" if os.environ.get("CI") else "dev")
