"""The shipped test vectors; `vitspec.testing.vectors` has them and grades by them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vitspec.testing.families import MODELS
from vitspec.testing.implementations import Subject
from vitspec.testing.results import Place, Result
from vitspec.testing.settings import Settings
from vitspec.testing.suites.suite import Index, Suite
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

    def run(self, subject: Subject, settings: Settings, index: Any) -> Iterator[Result]:
        """Every vector, or the one of this name."""
        if subject.spec not in MODELS and index is None:
            reason = f"there are no test vectors of {subject.spec}"
            yield Result("vector.forward", self.place(), "skipped", reason=reason)
        yield from (r for r in check_vectors(subject, index) if settings.wants(r.check))
