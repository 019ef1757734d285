"""What a suite is: one kind of check, from what it plans to what runs one of its units again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
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
        name: permanent; the first word of its places.
        checks: the names of the checks that it may run, which may have `*`.
        option: the field of `Settings` that asks for single units of it; "" if none does.
        batch: units that a process runs before it reports.
    """

    name: ClassVar[str]
    checks: ClassVar[tuple[str, ...]]
    option: ClassVar[str] = ""
    batch: ClassVar[int] = 1

    @abstractmethod
    def units(self, settings: Settings) -> Iterable[Index]:
        """The units that settings ask for which ask for no single one."""

    @abstractmethod
    def run(self, subject: Subject, settings: Settings, index: Any) -> Iterator[Result]:
        """The results of one unit.

        Raises:
            AdapterError: the implementation did not do what an implementation must.
        """

    @abstractmethod
    def alone(self, settings: Settings, indices: tuple[Any, ...]) -> Settings:
        """The settings that run these units again, and nothing else."""

    def plan(self, settings: Settings) -> list[Place]:
        """The places where something is to be checked."""
        if settings.names_units:
            indices = getattr(settings, self.option) if self.option else ()
        elif not settings.identities and any(settings.wants(check) for check in self.checks):
            indices = self.units(settings)
        else:
            indices = ()
        return [Place(self.name, index) for index in indices]

    def place(self, index: Index = None) -> Place:
        """The place of a unit."""
        return Place(self.name, index)


class Numbered(Suite):
    """A suite of small random cases, of which single ones can be asked for by their numbers.

    Attributes:
        stream: what the cases are drawn from besides the seed and their number.
    """

    stream: ClassVar[tuple[int, ...]] = ()

    @abstractmethod
    def draw(self, family: Family, rng: np.random.Generator) -> AnyCase:
        """A case."""

    def trial(self, subject: Subject, settings: Settings, index: int) -> Trial:
        """The trial of the case of this number, at the configuration that the user asked for.

        Without one it is the closest to the case's own that the implementation says it can do.
        """
        rng, family = np.random.default_rng([settings.seed, index, *self.stream]), subject.family
        case = self.draw(family, rng)
        config = settings.config or subject.closest(case.config)
        case = case if config == case.config else family.with_config(case, config)
        return case_trial(subject, case, self.place(index))

    def alone(self, settings: Settings, indices: tuple[Any, ...]) -> Settings:
        """Those of these numbers."""
        return settings.only_for(**{self.option: indices})


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
