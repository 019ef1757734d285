"""What an implementation keeps from the call before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from vitspec.testing.determinism import elsewhere
from vitspec.testing.diagnosis.patterns import LAYER
from vitspec.testing.diagnosis.points import Sample
from vitspec.testing.reference import Point, evaluate_spec

CLOSE = 4.0
"""Rough bounds within which logits are those of a mixture of two calls."""


def kept(sample: Sample) -> str:
    """What it takes from the call before, in words; "" if that is none of what is tried."""
    before, now = sample.point, elsewhere(sample.point)
    sample.trial.evaluate(before)
    found = np.asarray(sample.trial.subject.forward(now)["logits"], np.float64)
    for words, mixed in _mixtures(before, now):
        if sample.rough_ratio("logits", found, evaluate_spec(mixed)["logits"]) <= CLOSE:
            return words
    return ""


def _mixtures(before: Point, now: Point) -> Iterator[tuple[str, Point]]:
    yield "", now  # nothing is kept there
    yield "all parameters", replace(now, params=before.params)
    yield "the images", replace(now, images=before.images)
    for kind in dict.fromkeys(LAYER.sub("", name) for name in now.params):
        old = {n: value for n, value in before.params.items() if LAYER.sub("", n) == kind}
        yield kind, replace(now, params=now.params | old)
