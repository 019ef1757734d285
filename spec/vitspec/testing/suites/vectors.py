"""The shipped test vectors; `vitspec.testing.vectors` has them and grades by them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from vitspec.testing.families import MODELS
from vitspec.testing.implementations import Subject
from vitspec.testing.results import Place, Result
from vitspec.testing.settings import Settings
from vitspec.testing.suites.suite import Index, Suite
from vitspec.testing.trial import Trial
from vitspec.testing.vectors.folder import ids, load
from vitspec.testing.vectors.grading import check_vectors


class Vectors(Suite):
    """The vectors of the implementation's own model and of the layers that it exposes."""

    name = "vectors"
    option = "vector"
    checks = ("vector.forward", "vector.vjp", "vector.layer", "vector.ill-formed")
    rank = 4
    tests, only_in_full = ("vector.*",), True

    def units(self, settings: Settings) -> list[Index]:
        """All at once, where no other configuration is asked for."""
        return [None] if settings.vectors and settings.config is None else []

    def alone(self, settings: Settings, indices: tuple[Any, ...]) -> Settings:
        """The settings that run the vectors of these names; without a name, all."""
        if None in indices:
            return settings.nothing_but(vectors=True)
        return settings.only_for(vector=indices)

    def order(self, place: Place) -> int:
        """What is said of all vectors comes after all other suites."""
        return self.rank if place.index else Suite.rank

    def trial_at(self, subject: Subject, settings: Settings, index: Any) -> Trial | str:
        """The trial of a vector's point, if it is of a model."""
        if index is None:
            return "name a single test vector"
        if index not in ids():
            return f"no test vector is named {index!r}"
        vector = load(index)
        if vector.kind != "model" or vector.case["spec"] != subject.spec:
            return f"the vector {index} is none of {subject.spec}"
        point, rng = vector.point().rounded(subject.precision), np.random.default_rng([0, 5])
        reason = subject.why_unsupported(point.config)
        words = str(vector.case["description"])
        return reason or Trial(subject, point, rng, place=self.place(index), description=words)

    def run(self, subject: Subject, settings: Settings, index: Any) -> Iterator[Result]:
        """Every vector, or the one of this name."""
        if subject.spec not in MODELS and index is None:
            reason = f"there are no test vectors of {subject.spec}"
            yield Result("vector.forward", self.place(), "skipped", reason=reason)
        yield from (r for r in check_vectors(subject, index) if settings.wants(r.check))
