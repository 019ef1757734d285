"""What a wrong tensor looks like: a multiple of the right one, a permutation, another tensor's.

A pattern is a phrase that holds at every point where the tensor departs, such as "the number of
tokens x the truth": the factor is 12 at one point and 20 at another, so only its name holds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from vitspec.testing.diagnosis.points import Sample
from vitspec.typing import Array

LAYER = re.compile(r"encoder\.layers\.(\d+)\.")
Same = Callable[[Array, Array], bool]

SLACK = 4.0
"""Bounds within which a pattern must hold: the price is that of the truth, not of the pattern."""


def patterns(departing: Mapping[str, Sequence[Sample]]) -> dict[str, str]:
    """What each tensor looks like at all of its samples, or "" if nothing simple.

    A phrase that holds for a parameter in all layers goes before one that holds in this one alone:
    the last layer of the deepest model is seen at one point only, where 3 may be this and that.
    """
    kinds: dict[str, list[tuple[str, Sample]]] = {}
    for name, samples in departing.items():
        kinds.setdefault(LAYER.sub("", name), []).extend((name, sample) for sample in samples)
    of_kind = {kind: _common(places) for kind, places in kinds.items()}
    return {
        name: of_kind[LAYER.sub("", name)] or _common([(name, sample) for sample in samples])
        for name, samples in departing.items()
    }


def _common(places: Sequence[tuple[str, Sample]]) -> str:
    """The first phrase that holds everywhere."""
    common: list[str] = []
    for i, (name, sample) in enumerate(places):
        here = list(_patterns(name, sample))
        common = here if i == 0 else [one for one in common if one in here]
        if not common:
            return ""
    if len({id(sample) for _, sample in places}) == 1:  # where a 3 may be the size of anything
        common.sort(key=lambda phrase: not phrase[0].isdigit())
    return common[0]


def _patterns(name: str, sample: Sample) -> Iterator[str]:
    found, truth = sample.found[name], sample.truth[name]
    if not np.isfinite(found).all():
        yield "not finite"
        return
    if not found.any():
        yield "zero"
        return
    tolerance = SLACK * (4 * sample.prices[name].norm + 4 * sample.precision.u * _norm(truth))
    tolerance /= max(_norm(truth), np.finfo(float).tiny)  # relative to the truth
    if tolerance > 0.1:
        return  # noise looks like anything

    def same(a: Array, b: Array) -> bool:
        return _norm(a - b) <= tolerance * max(_norm(a), _norm(b))

    yield from _factors(found, truth, sample, same)
    yield from _other_tensors(name, found, sample, same)
    yield from _orders(found, truth, same)


def _factors(found: Array, truth: Array, sample: Sample, same: Same) -> Iterator[str]:
    fitted = float(np.vdot(found, truth) / np.vdot(truth, truth))
    if not same(found, fitted * truth):
        return
    for label, value in _named_factors(sample.quantities).items():
        if same(found, value * truth):
            yield _phrase(label)
    yield f"{fitted:.4g} x the truth"


def _named_factors(quantities: dict[str, float]) -> dict[str, float]:
    factors = {"-1": -1.0, "2": 2.0, "1/2": 0.5}
    for name, value in quantities.items():
        factors |= {name: value, f"1 / {name}": 1 / value}
    return {name: value for name, value in factors.items() if value != 1}


def _phrase(factor: str) -> str:
    """The pattern of a factor."""
    if factor == "-1":
        return "minus the truth"
    if factor.startswith("1 / "):
        return f"the truth / {factor.removeprefix('1 / ')}"
    return f"{factor} x the truth"


def _other_tensors(name: str, found: Array, sample: Sample, same: Same) -> Iterator[str]:
    for other in sample.tensors:
        truth = sample.truth[other]
        if other != name and truth.shape == found.shape and truth.size > 1:
            if same(found, truth):
                yield f"what {_within_layer(other, name)} should be"
            if same(found, -truth):
                yield f"minus what {_within_layer(other, name)} should be"


def _within_layer(other: str, name: str) -> str:
    """A tensor's name, without that of the layer if it is this tensor's own."""
    layer = LAYER.match(name)
    return other.removeprefix(layer[0]) if layer else other


def _orders(found: Array, truth: Array, same: Same) -> Iterator[str]:
    if truth.ndim == 2 and min(truth.shape) > 1 and same(found, truth.T.reshape(truth.shape)):
        yield "the truth transposed"
    if truth.ndim == 2 and same(found.T.reshape(-1), truth.reshape(-1)):
        yield "the truth transposed"
    for axis in range(truth.ndim):
        along = f"axis {axis}" if truth.ndim > 1 else "its axis"
        if truth.shape[axis] > 1 and same(found, np.flip(truth, axis)):
            yield f"the truth reversed along {along}"
        for shift in (1, -1):
            if truth.shape[axis] > 2 and same(found, np.roll(truth, shift, axis)):
                yield f"the truth shifted by {shift:+d} along {along}"
    if truth.size > 1 and same(np.sort(found.reshape(-1)), np.sort(truth.reshape(-1))):
        yield "the truth's entries in another order"


def _norm(x: Array) -> float:
    return float(np.linalg.norm(x))
