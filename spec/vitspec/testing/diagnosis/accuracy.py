"""Deviations that are the same function over the real numbers, computed with a larger error.

They have no truth of their own. They are planted in the precision itself, at a point that magnifies
their rounding, and the sizes of the two errors are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from vitspec.testing.catalogue import deviation
from vitspec.testing.diagnosis.candidates import Candidate, mistaken
from vitspec.testing.diagnosis.diagnosis import Near
from vitspec.testing.diagnosis.points import Sample
from vitspec.testing.implementations import AdapterError, Subject
from vitspec.testing.precision import PRECISIONS, Precision
from vitspec.testing.reference import CASE_RUNS, Point, evaluate_spec, price_spec
from vitspec.testing.tolerance import grade

ALIKE = 32.0
"""Two errors of the same making are within this factor of each other."""


def nearest(subject: Subject, sample: Sample) -> Near | None:
    """The deviation whose errors are like the implementation's, if it errs more than it should."""
    precision = sample.precision
    if precision.name not in LARGEST_EXPONENT or not sample.point.config.num_layers:
        return None
    for name, transform in POINTS.items():
        point = transform(sample.point, precision).rounded(PRECISIONS[precision.name])
        truth = {"logits": evaluate_spec(point)["logits"]}
        rng = sample.trial.stream("accuracy")
        prices = price_spec(point, truth, precision, CASE_RUNS, rng)

        def ratio(logits: Any, truth: Any = truth, prices: Any = prices) -> float:
            return float(grade("logits", logits, truth["logits"], prices["logits"]).ratio)

        try:
            with np.errstate(all="ignore"):
                found = ratio(subject.forward(point)["logits"])
        except AdapterError:  # it refuses what overflows, or what is not finite
            continue
        if found <= 1:
            continue
        with mistaken(Candidate((deviation(name),))):
            expected = ratio(evaluate_spec(point, np.dtype(precision.carrier))["logits"])
        apart = 1.0 if found == expected else max(found / expected, expected / found)
        if expected > 1 and apart <= ALIKE:
            return Near(name, deviation(name).description, apart / ALIKE, 1, 1, matches=True)
    return None


LARGEST_EXPONENT = {"float32": 88.7, "float64": 709.7}
"""Where exp overflows."""


def _rows_of_large_mean(point: Point, precision: Precision) -> Point:
    """The second normalisation's rows get a mean whose square loses three digits of a variance."""
    mean = np.sqrt(1e-3 / precision.u)
    params = {
        name: value + mean if name.endswith("ffn.b2") else value
        for name, value in _wide(point).params.items()
    }
    return replace(_wide(point), params=params)


def _large_scores(point: Point, precision: Precision) -> Point:
    """The first layer's largest score is twice what exp can take."""
    taps = evaluate_spec(_wide(point), taps=True)
    q, k = (taps[f"encoder.layers.0.mha.{name}"] for name in "qk")
    scores = (q @ k.swapaxes(-1, -2)) / np.sqrt(point.config.head_dim)
    largest = scores.reshape(-1)[np.abs(scores).argmax()]
    params = dict(_wide(point).params)
    params["encoder.layers.0.mha.wq"] = (
        params["encoder.layers.0.mha.wq"] * 2 * LARGEST_EXPONENT[precision.name] / largest
    )
    return replace(_wide(point), params=params)


def _wide(point: Point) -> Point:
    return replace(point, params={n: p.astype(np.float64) for n, p in point.params.items()})


POINTS: dict[str, Callable[[Point, Precision], Point]] = {
    "layer-norm-fast-variance": _rows_of_large_mean,
    "softmax-not-shifted": _large_scores,
}
"""For each deviation, what magnifies it."""
