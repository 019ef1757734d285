"""What a suite is: one kind of check, from what it plans to what runs one of its units again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import numpy as np

from vitspec.testing.drawing import supported_case
from vitspec.testing.families import AnyCase, Family
from vitspec.testing.implementations import AdapterError, Subject
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

    def trial_at(self, subject: Subject, settings: Settings, index: Any) -> Trial | str:
        """The trial of a unit, to look at it more closely; or why there is none."""
        return f"{self.place(index)} has no point of its own"

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
        size = trial.point.images.shape[2:]
        if reason := self.why_unsupported(subject, trial.point.config, size):
            yield trial.skip(f"{self.prefix}supports", reason)
            return
        yield from against_the_truth(trial, settings, self.prefix)
        yield from self.more(trial, settings)

    def trial(self, subject: Subject, settings: Settings, index: int) -> Trial:
        """The trial of the case with this number, at the configuration that the user asked for.

        If the user asked for none, it is the case's own, or the nearest to it that the
        implementation supports.
        """
        numbers, family = (settings.seed, index, *self.stream), subject.family

        def why_not(case: AnyCase) -> str | None:
            return self.why_unsupported(subject, case.config, case.image_shape[1:])

        def draw(rng: np.random.Generator) -> AnyCase:
            return self.draw(family, rng, index)

        if settings.config is None:
            case = supported_case(subject, draw, numbers, why_not)
        else:
            case = draw(np.random.default_rng(numbers))
            if case.config != settings.config:
                case = family.with_config(case, settings.config)
        return case_trial(subject, case, self.place(index))

    def trial_at(self, subject: Subject, settings: Settings, index: Any) -> Trial | str:
        """The trial of the case with this number."""
        trial = self.trial(subject, settings, index)
        size = trial.point.images.shape[2:]
        return self.why_unsupported(subject, trial.point.config, size) or trial

    def why_unsupported(self, subject: Subject, config: Any, size: tuple[int, ...]) -> str | None:
        """Why the implementation cannot do images (H, W) of this size; None if it can."""
        return subject.why_unsupported(config)

    def more(self, trial: Trial, settings: Settings) -> Iterator[Result]:
        """Checks besides those against the truth."""
        yield from ()


AGAINST_THE_TRUTH = ("forward", "vjp")


def against_the_truth(trial: Trial, settings: Settings, prefix: str = "") -> Iterator[Result]:
    """The logits, and the gradients of the images and of every parameter, are the specification's.

    Where there are no gradients because `vjp` raised, the logits are graded all the same.

    Args:
        trial: where.
        settings: which of the two checks are asked for.
        prefix: of the checks' names.
    """
    forward, vjp = (settings.wants(f"{prefix}{check}") for check in AGAINST_THE_TRUTH)
    if not (forward or vjp):
        return
    has_vjp, trouble = trial.subject.has_vjp, vjp_trouble(trial)
    if forward:
        yield trial.result(f"{prefix}forward", [trial.grade("logits")])
    if not vjp:
        return
    if not has_vjp:
        yield trial.skip(f"{prefix}vjp", "it has no vjp")
    elif trouble is not None:
        reason, words = str(trouble), trial.description
        yield Result(f"{prefix}vjp", trial.place, "errored", reason=reason, point=words)
    else:
        tensors = [tensor for tensor in trial.truth if tensor != "logits"]
        yield trial.result(f"{prefix}vjp", [trial.grade(tensor) for tensor in tensors])


def vjp_trouble(trial: Trial) -> AdapterError | None:
    """What keeps the implementation from giving gradients here, if its forward does give logits.

    The trial is then one of a forward only.

    Raises:
        AdapterError: the forward gives none either.
    """
    try:
        trial.found  # noqa: B018 - evaluates it, once for all checks
    except AdapterError as error:
        if not trial.subject.has_vjp:
            raise
        trial.subject = trial.subject.without_vjp()
        trial.found  # noqa: B018 - raises what the forward raises
        return error
    return None
