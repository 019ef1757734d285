"""Causes, by a controlled change: one property of a departing point at a time, and another look.

From a point where the implementation departs, each property takes its plainest value, one after the
other, for as long as it still departs. What is left cannot be taken away: with it the
implementation departs, and with the plain value, all else equal, it does not. Each such sentence is
tried at new numbers too, and what fails there is not said.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from vitspec.config_text import config_argument
from vitspec.errors import NotWellFormed
from vitspec.testing.diagnosis.points import Sample
from vitspec.testing.diagnosis.properties import PLAIN, others, properties, with_property
from vitspec.testing.families import AnyCase
from vitspec.testing.implementations import AdapterError, Subject

NEW_SEEDS = 2
"""At which a cause must be one, too."""
SHOWN = 4
"""Causes that are said."""
BEGINS = "Changing one thing at a time, from "


class Causes:
    """What makes an implementation depart.

    Args:
        subject: the implementation.
        seconds: of processor time, after which nothing more is tried.
    """

    def __init__(self, subject: Subject, seconds: float) -> None:
        self.subject, self.deadline = subject, time.process_time() + seconds
        self._seen: dict[AnyCase, bool | None] = {}

    def of(self, departing: AnyCase) -> list[str]:
        """The causes at a small case where it departs, in sentences; none if nothing is needed."""
        case = departing
        for name, plain in PLAIN.items():
            if properties(case).get(name, plain) != plain:
                simpler = self._with(case, name, plain)
                if simpler is not None and self._departs(simpler):
                    case = simpler
        found = list(self._sentences(case))[:SHOWN]
        return [f"{BEGINS}{_short(case)}:", *found] if found else []

    def of_size(self, large: AnyCase) -> list[str]:
        """Which sizes of a large case, where it departs, make a plain one depart."""
        plain = large
        for name, value in PLAIN.items():
            if name in properties(plain):
                plain = self._with(plain, name, value) or plain
        if self._departs(plain):
            return self.of(plain)
        for names in _sizes(large):
            case: AnyCase | None = plain
            for name in names:
                case = case and self._with(case, name, properties(large)[name])
            if case is not None and self._departs(case):
                return self.of(case)
        return []

    def _sentences(self, case: AnyCase) -> Iterator[str]:
        """What cannot be changed in a case without an end to its departing."""
        own = properties(case)
        # First what is not at its plainest: it is so because it was needed.
        for name in sorted(own, key=lambda name: own[name] == PLAIN[name]):
            value, plain = properties(case)[name], PLAIN[name]
            instead = others(name, value) if value == plain else (plain, *others(name, value))
            right = [one for one in dict.fromkeys(instead) if self._ends(case, name, one)]
            if not right:
                continue
            if isinstance(value, int) and not isinstance(value, bool) and value > right[0]:
                nearest, lowest = self._threshold(case, name, right[0])
                if self._ends(nearest, name, lowest):
                    case, value, right = nearest, properties(nearest)[name], [lowest]
            yield f"it departs where {name} is {value}, and not where it is {_or(right)}."

    def _threshold(self, case: AnyCase, name: str, right: int) -> tuple[AnyCase, int]:
        """The case with the smallest number that was found to depart, and the largest that not."""
        wrong = properties(case)[name]
        while wrong - right > 1 and not self.late:
            middle = (wrong + right) // 2
            between = self._with(case, name, middle)
            if between is None:
                break
            departs = self._departs(between)
            if departs is None:
                break
            case, wrong = (between, middle) if departs else (case, wrong)
            right = right if departs else middle
        return case, right

    def _ends(self, case: AnyCase, name: str, value: Any) -> bool:
        """Whether the case departs, and does not with another value; at new numbers too."""
        other = self._with(case, name, value)
        if other is None or self._departs(other) is not False:
            return False
        return all(
            self._departs(replace(case, seed=case.seed + i)) is True
            and self._departs(replace(other, seed=case.seed + i)) is False
            for i in range(1, NEW_SEEDS + 1)
        )

    @property
    def late(self) -> bool:
        """Whether there is no more time."""
        return time.process_time() > self.deadline

    def _with(self, case: AnyCase, name: str, value: Any) -> AnyCase | None:
        """The case with a property changed; None if there is none, or it is not supported."""
        changed = with_property(case, name, value)
        own, config = properties(case), changed.config
        if any(own[n] != v for n, v in properties(changed).items() if n != name):
            return None  # another property would change with it
        if changed == case or config.violations():
            return None
        if self.subject.why_unsupported(config) is not None:
            return None
        size = changed.image_shape[1:]
        if getattr(changed, "image_size", None) is not None:
            return None if self.subject.why_size_unsupported(config, size) else changed
        return changed if _has_tokens(self.subject, changed) else None

    def _departs(self, case: AnyCase) -> bool | None:
        """Whether the implementation does; None if that cannot be seen."""
        if case not in self._seen:
            if self.late:
                return None
            try:
                sample = Sample.of(self.subject, case)
                at_once = sample.departs_at_once
                self._seen[case] = sample.departs if at_once is None else at_once
            except AdapterError:
                self._seen[case] = None
        return self._seen[case]


def _has_tokens(subject: Subject, case: AnyCase) -> bool:
    rows, columns = subject.family.grid(case.config, *case.image_shape[1:])
    return rows * columns > 0


def _sizes(case: AnyCase) -> list[tuple[str, ...]]:
    """The sizes to try alone, and those that only together make many tokens."""
    names = [name for name, plain in PLAIN.items() if properties(case).get(name, plain) != plain]
    tokens = [name for name in names if "of patches" in name or name in ("height", "width")]
    return [*((name,) for name in names), tuple(tokens)]


def _short(case: AnyCase) -> str:
    """A case in few words."""
    images = (
        f"{case.batch} image{'s' * (case.batch > 1)} of {' x '.join(map(str, case.image_shape))}"
    )
    try:
        return f"{config_argument(case.config)}, {images}"
    except (ValueError, NotWellFormed):
        return f"{case.config!r}, {images}"


def _or(values: list[Any]) -> str:
    return " or ".join(map(str, values))
