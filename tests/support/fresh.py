"""Random numbers that are new on each run; in CI they are always the same."""

import os
import secrets

import numpy as np


def fresh_rng() -> np.random.Generator:
    """A generator whose seed is printed, which pytest shows where a test fails."""
    seed = 0 if os.environ.get("CI") else secrets.randbits(32)
    print(f"np.random.default_rng({seed})")
    return np.random.default_rng(seed)
