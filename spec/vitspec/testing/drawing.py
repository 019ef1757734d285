"""Cases within what an implementation supports, so that a check compares as many as it says.

A case that an implementation does not support is moved: to the closest configuration that it names,
or else to its fixed options (a pooling, an activation, whether there are biases), which are found
by trying; and where its sizes are not supported either, a case is drawn again. All of it follows
from the seed, the case's number and what `supports` says, so a printed command draws the same case.
What is supported as it was drawn stays as it was drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from vitspec.testing.families import AnyCase, Config, Family
from vitspec.testing.implementations import Subject

DRAWS = 100
"""How often a case is drawn until its sizes are supported."""
DRAWN_AGAIN = 7
"""Marks the random numbers of a case that is drawn again; not 0, which a seed may end with."""

Draw = Callable[[np.random.Generator], AnyCase]
WhyNot = Callable[[AnyCase], str | None]
Choice = Mapping[str, Any]
"""Values of options that belong together, such as a pooling and whether there is a CLS token."""


@dataclass(frozen=True)
class Known:
    """What is known of an implementation's options.

    Attributes:
        config: one that it supports.
        choices: for each group of the family's options, the choices that it supports; first that of
            `config`.
    """

    config: Config
    choices: tuple[tuple[Choice, ...], ...]

    def moved(self, config: Config) -> Iterator[Config]:
        """`config` with the options changed that alone are not supported; then with all changed."""
        changes: dict[str, Any] = {}
        for group in self.choices:
            if not any(_has(config, choice) for choice in group):
                changes |= group[0]
        yield replace(config, **changes)
        yield replace(config, **{k: v for group in self.choices for k, v in group[0].items()})


@lru_cache(maxsize=8)
def known_of(subject: Subject) -> Known | None:
    """What is found by trying small configurations; None if none is supported."""
    family = subject.family
    config = next((c for c in _tried(subject) if subject.why_unsupported(c) is None), None)
    if config is None:
        return None
    choices = []
    for group in family.options:
        own = {name: getattr(config, name) for name in group[0]}
        others = [c for c in group if c != own]
        may = [c for c in others if subject.why_unsupported(replace(config, **c)) is None]
        choices.append((own, *may))
    return Known(config, tuple(choices))


def _tried(subject: Subject) -> Iterator[Config]:
    """The one-block models, as near as the implementation comes; these with any options."""
    family = subject.family
    yield from (subject.closest(config) for config in family.smoke_configs)
    for config in family.smoke_configs:
        for choices in product(*family.options):
            yield replace(config, **{k: v for choice in choices for k, v in choice.items()})


def supported_case(
    subject: Subject, draw: Draw, numbers: tuple[int, ...], why_not: WhyNot
) -> AnyCase:
    """The case of these numbers, or the nearest that the implementation supports.

    Args:
        subject: what is checked.
        draw: draws a case.
        numbers: what it is drawn from: the seed, the case's number and the suite's own.
        why_not: why the implementation cannot do a case; None if it can.

    Returns:
        A case; `why_not` says why if the implementation supports none of those that were tried.
    """
    family = subject.family
    own = draw(np.random.default_rng(numbers))
    own = _at(family, own, subject.closest(own.config))
    if why_not(own) is None or (known := known_of(subject)) is None:
        return own
    if known.config == family.full_size:
        return own  # no small model is supported
    for i in range(DRAWS):
        case = draw(np.random.default_rng([*numbers, i, DRAWN_AGAIN])) if i else own
        for config in dict.fromkeys(known.moved(case.config)):
            for wish in family.friendlier(_at(family, case, config)):
                if wish.config in family.smoke_configs:
                    break  # the same small model for every case: the last resort
                if why_not(wish) is None:
                    return wish
    last = _at(family, own, known.config)
    return last if why_not(last) is None else own


def _at(family: Family, case: AnyCase, config: Config) -> AnyCase:
    return case if config == case.config else family.with_config(case, config)


def _has(config: Config, choice: Choice) -> bool:
    return all(getattr(config, name) == value for name, value in choice.items())
