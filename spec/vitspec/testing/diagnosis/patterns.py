"""What a wrong tensor looks like: a multiple of the right one, a permutation, another tensor's.

A pattern is a phrase that holds at every point where the tensor departs, such as "the number of
tokens x the truth": the factor is 12 at one point and 20 at another, so only its name holds.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vitspec.testing.diagnosis.points import Sample
from vitspec.typing import Array

LAYER = re.compile(r"encoder\.layers\.(\d+)\.")
Same = Callable[[Array, Array], bool]

MANY_ROWS = 256
"""Rows whose order is looked for."""
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
    of_kind = {kind: common(places) for kind, places in kinds.items()}
    return {
        name: of_kind[LAYER.sub("", name)] or common([(name, sample) for sample in samples])
        for name, samples in departing.items()
    }


def common(places: Sequence[tuple[str, Sample]]) -> str:
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

    yield from _factors(found, truth, sample, same, tolerance)
    yield from _other_tensors(name, found, sample, same)
    yield from _orders(found, truth, same)
    yield from _heads(found, truth, sample.point.config, same)
    yield from _rows(found, truth, tolerance)
    if truth.size > 1 and same(np.sort(found.reshape(-1)), np.sort(truth.reshape(-1))):
        yield "the truth's entries in another order"


def _factors(
    found: Array, truth: Array, sample: Sample, same: Same, tolerance: float
) -> Iterator[str]:
    fitted = float(np.vdot(found, truth) / np.vdot(truth, truth))
    if not same(found, fitted * truth):
        return
    for label, value in _named_factors(sample.quantities).items():
        if same(found, value * truth):
            yield _phrase(label)
    yield f"{digits(fitted, tolerance)} x the truth"


def digits(number: float, tolerance: float) -> str:
    """A number by as many digits as it has.

    >>> digits(1.000100001, 1e-7), digits(2.5, 1e-12)
    ('1.0001', '2.5')
    """
    return f"{number:.{int(np.clip(-np.log10(tolerance) - 0.5, 2, 15))}g}"


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
    for axes in itertools.permutations(range(truth.ndim)) if truth.ndim <= 4 else ():
        if axes == tuple(range(truth.ndim)) or min(truth.shape) < 1 or truth.size < 2:
            continue
        words = "transposed" if truth.ndim == 2 else f"with its axes in the order {axes}"
        if same(found, truth.transpose(axes).reshape(truth.shape)):
            yield f"the truth {words}"
        elif same(found.transpose(axes).reshape(-1), truth.reshape(-1)):
            yield f"what, {words}, is the truth" if truth.ndim > 2 else f"the truth {words}"
    for axis in range(truth.ndim):
        along = f"axis {axis}" if truth.ndim > 1 else "its axis"
        if truth.shape[axis] > 1 and same(found, np.flip(truth, axis)):
            yield f"the truth reversed along {along}"
        for shift in (1, -1):
            if truth.shape[axis] > 2 and same(found, np.roll(truth, shift, axis)):
                yield f"the truth shifted by {shift:+d} along {along}"


def _heads(found: Array, truth: Array, config: Any, same: Same) -> Iterator[str]:
    """Features of heads in another order, wherever an axis has those of all heads."""
    heads, width = config.head_count, config.head_dim
    for axis, size in enumerate(truth.shape):
        if size != heads * width or heads < 2:
            continue
        for outer, inner in ((heads, width), (width, heads)):
            order = np.arange(size).reshape(outer, inner).T.reshape(-1)
            if width > 1 and same(found, truth.take(order, axis)):
                yield f"the truth with heads and their features exchanged, along axis {axis}"
        for turned in itertools.permutations(range(heads)) if heads <= 4 else ():
            order = np.arange(size).reshape(heads, width)[list(turned)].reshape(-1)
            if list(turned) != sorted(turned) and same(found, truth.take(order, axis)):
                yield f"the truth with its heads in the order {turned}, along axis {axis}"


def _rows(found: Array, truth: Array, tolerance: float) -> Iterator[str]:
    """Rows in another order."""
    if truth.ndim < 2 or not 2 < len(truth) <= MANY_ROWS:
        return
    rows = truth.reshape(len(truth), -1)
    apart = np.linalg.norm(found.reshape(len(truth), 1, -1) - rows, axis=-1)
    order = apart.argmin(axis=1)
    near = apart.min(axis=1) <= tolerance * max(_norm(truth), np.finfo(float).tiny)
    if near.all() and sorted(order) == list(range(len(rows))) and np.any(np.diff(order) != 1):
        few = f"the order {', '.join(map(str, order))}"
        yield f"the truth's rows in {few if len(order) <= 8 else 'another order'}"


def _norm(x: Array) -> float:
    return float(np.linalg.norm(x))
