"""What a suite is: one kind of check, from what it plans to what runs one of its units again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import numpy as np

from vitspec.testing.families import AnyCase, Family
from vitspec.testing.implementations import Subject
from vitspec.testing.results import Place, Result
from vitspec.testing.settings import Settings
from vitspec.testing.trial import Trial, case_trial

Index = int | str | None


class Suite(ABC):
    """One kind of check; `vitspec.testing.run` knows it by this interface alone.

    Attributes:
        name: permanent; `Place.suite` of all of its places.
        checks: the names of the checks that it may run; one that ends with `*` stands for several.
        option: the field of `Settings` that asks for single units of it; "" if none does.
        batch: units that a process runs before it reports.
        rank: where a report shows it: the lowest first, and those of one rank by name.
        tests: the checks that are a pytest test each.
        only_in_full: whether these need `--vitspec-full`.
    """

    name: ClassVar[str]
    checks: ClassVar[tuple[str, ...]]
    option: ClassVar[str] = ""
    batch: ClassVar[int] = 1
    rank: ClassVar[int] = 5
    tests: ClassVar[tuple[str, ...]] = ()
    only_in_full: ClassVar[bool] = False

    @abstractmethod
    def units(self, settings: Settings) -> Iterable[Index]:
        """The units to run where the settings name no single unit."""

    @abstractmethod
    def run(self, subject: Subject, settings: Settings, index: Any) -> Iterator[Result]:
        """The results of one unit.

        Raises:
            AdapterError: the implementation did not do what an implementation must.
        """

    @abstractmethod
    def alone(self, settings: Settings, indices: tuple[Any, ...]) -> Settings:
        """The settings that run these units again, and no other suite."""

    def plan(self, settings: Settings) -> list[Place]:
        """The places where something is to be checked."""
        if settings.names_units:
            indices = getattr(settings, self.option) if self.option else ()
        elif not settings.identities and self._asked_for(settings):
            indices = self.units(settings)
        else:
            indices = ()
        return [self.place(index) for index in indices]

    def _asked_for(self, settings: Settings) -> bool:
        """Whether one of its checks is; a name and what is asked for may both have a `*`."""
        return self.runs(settings.only or "") or any(settings.wants(name) for name in self.checks)

    def place(self, index: Index = None) -> Place:
        """The place of a unit."""
        return Place(self.name, index)

    def order(self, place: Place) -> int:
        """The rank of one of its places."""
        return self.rank

    def runs(self, check: str) -> bool:
        """Whether this suite has that check; "run" and "supports" are no checks."""
        return any(fnmatchcase(check, name) for name in self.checks)


class Numbered(Suite):
    """A suite of small random cases, of which single ones can be asked for by their numbers.

    Attributes:
        count: the field of `Settings` that says how many cases.
        prefix: of the names of its checks against the truth.
        stream: what the cases are drawn from besides the seed and their number: unique, and not
            ending in 0.
    """

    count: ClassVar[str]
    prefix: ClassVar[str] = ""
    stream: ClassVar[tuple[int, ...]] = ()

    @abstractmethod
    def draw(self, family: Family, rng: np.random.Generator, index: int) -> AnyCase:
        """Draw the small case of this number."""

    def units(self, settings: Settings) -> Iterable[Index]:
        """As many cases as are asked for."""
        return range(getattr(settings, self.count))

    def alone(self, settings: Settings, indices: tuple[Any, ...]) -> Settings:
        """The settings that run the cases with these numbers."""
        return settings.only_for(**{self.option: indices})

    def run(self, subject: Subject, settings: Settings, index: int) -> Iterator[Result]:
        """Against the truth, and then whatever the suite adds."""
        trial = self.trial(subject, settings, index)
        if reason := self.why_unsupported(trial):
            yield trial.skip(f"{self.prefix}supports", reason)
            return
        yield from against_the_truth(trial, settings, self.prefix)
        yield from self.more(trial, settings)

    def trial(self, subject: Subject, settings: Settings, index: int) -> Trial:
        """The trial of the case with this number, at the configuration that the user asked for.

        If the user asked for none, it is the case's own, or the closest to it that the
        implementation says it can do.
        """
        rng, family = np.random.default_rng([settings.seed, index, *self.stream]), subject.family
        case = self.draw(family, rng, index)
        config = settings.config or subject.closest(case.config)
        case = case if config == case.config else family.with_config(case, config)
        return case_trial(subject, case, self.place(index))

    def why_unsupported(self, trial: Trial) -> str | None:
        """Why the implementation cannot do this case; None if it can."""
        return trial.subject.why_unsupported(trial.point.config)

    def more(self, trial: Trial, settings: Settings) -> Iterator[Result]:
        """Checks besides those against the truth."""
        yield from ()


AGAINST_THE_TRUTH = ("forward", "vjp")


def against_the_truth(trial: Trial, settings: Settings, prefix: str = "") -> Iterator[Result]:
    """The logits, and the gradients of the images and of every parameter, are the specification's.

    Args:
        trial: where.
        settings: which of the two checks are asked for.
        prefix: of the checks' names.
    """
    if settings.wants(f"{prefix}forward"):
        yield trial.result(f"{prefix}forward", [trial.grade("logits")])
    if not settings.wants(f"{prefix}vjp"):
        return
    if trial.subject.has_vjp:
        tensors = [tensor for tensor in trial.truth if tensor != "logits"]
        yield trial.result(f"{prefix}vjp", [trial.grade(tensor) for tensor in tensors])
    else:
        yield trial.skip(f"{prefix}vjp", "it has no vjp")
