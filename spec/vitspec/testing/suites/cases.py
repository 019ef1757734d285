"""Small random cases against the truth."""

from __future__ import annotations

import numpy as np

from vitspec.testing.families import AnyCase, Family
from vitspec.testing.suites.suite import AGAINST_THE_TRUTH, Numbered


class Cases(Numbered):
    """The logits and every gradient at small random configurations."""

    name = option = "case"
    count = "cases"
    checks = tests = AGAINST_THE_TRUTH
    batch, rank = 5, 1

    def draw(self, family: Family, rng: np.random.Generator, index: int) -> AnyCase:
        """A small case; between them the cases have every option."""
        return family.random_case(rng)
