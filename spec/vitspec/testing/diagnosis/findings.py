"""Which tensors depart, and what their pattern says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vitspec.testing.diagnosis.diagnosis import Departure
from vitspec.testing.diagnosis.patterns import LAYER, patterns
from vitspec.testing.diagnosis.points import Sample
from vitspec.testing.precision import PRECISIONS, Precision
from vitspec.testing.reference import CASE_RUNS, price_spec
from vitspec.testing.tolerance import grade, worst

FAR_BELOW = 1 / 32
"""Of a precision's price: errors below are not of its making."""


def departures(samples: Sequence[Sample]) -> list[Departure]:
    """Every tensor that departs from the specification somewhere, in the order of computation."""
    names = dict.fromkeys(n for s in samples for n in s.grades if not s.grades[n].conforms)
    where = {
        name: [s for s in samples if name in s.grades and not s.grades[name].conforms]
        for name in sorted(names, key=lambda n: _order(n, samples))
    }
    looks = patterns(where)
    found = []
    for name, places in where.items():
        one = worst([s.grades[name] for s in places])
        kind = "logits" if name == "logits" else "tap" if name in places[0].taps else "gradient"
        found.append(Departure(name, kind, one.error, one.bound, len(places), looks[name]))
    return found


def _order(name: str, samples: Sequence[Sample]) -> tuple[int, int, int]:
    places = [s.taps.index(name) for s in samples if name in s.taps]
    if places:
        return 0, _layer_order(name), places[0]
    if name == "logits":
        return 1, 0, 0
    kind = LAYER.sub("", name)
    place = samples[0].family.backward_order.index(kind)
    if kind.startswith(("head.", "final_norm")):
        return 2, 0 if kind.startswith("head.") else place, 0
    return (4, 0, place) if name == kind else (3, -_layer_order(name), place)


def _layer_order(tap: str) -> int:
    layer = LAYER.match(tap)
    return int(layer[1]) if layer else (-1 if tap == "embedded" else 10**6)


def hints(found: Sequence[Departure], samples: Sequence[Sample]) -> list[str]:
    """What the pattern of the departures says, if they have no name."""
    tensors = {d.tensor for d in found if d.kind != "tap"}
    gradients = tensors - {"logits"}
    notes = []
    taps = any(d.kind == "tap" for d in found)
    if gradients and "logits" not in tensors and not taps:
        notes.append("The logits are right and gradients are wrong: the fault is in the backward.")
        notes += _one_place(gradients, samples)
    if tensors == {"logits"} and len(samples[0].tensors) > 1:
        notes.append("Only the logits are wrong: forward and vjp do not compute the same model.")
    if taps and not tensors:
        notes.append("A tap departs, but nothing else does: another value has that tap's name.")
    notes += _only_where(samples)
    notes += _rows(samples)
    return notes


def _one_place(gradients: set[str], samples: Sequence[Sample]) -> list[str]:
    everything = {n for s in samples for n in s.tensors if n != "logits"}
    kinds = {LAYER.sub("", n) for n in gradients}
    if gradients == everything - {"image"}:
        return [
            "All parameters' gradients are wrong, the images' are right: look at the batch's sum."
        ]
    if {n for n in everything if LAYER.sub("", n) in kinds} == gradients and len(kinds) <= 4:
        return [f"It is {' and '.join(sorted(kinds))} in every layer, and nothing else."]
    layers = {m[1] for n in gradients if (m := LAYER.match(n))}
    if len(layers) == 1 and all(LAYER.match(n) for n in gradients) and len(everything) > 20:
        return [f"It is layer {layers.pop()} alone."]
    return []


def _only_where(samples: Sequence[Sample]) -> list[str]:
    """What all points have in common where something departs, and no other point has."""
    wrong = [not all(g.conforms for g in s.grades.values()) for s in samples]
    if all(wrong) or not any(wrong):
        return []
    shared = [
        oddity for oddity in samples[0].oddities if [s.oddities[oddity] for s in samples] == wrong
    ]
    text = f"It departs at {sum(wrong)} of {len(samples)} points"
    if shared:
        return [f"{text}, those at which {' and '.join(shared)}."]
    return [f"{text}."]


def _rows(samples: Sequence[Sample]) -> list[str]:
    """Whether some images of a batch are right while others are not."""
    right: set[str] = set()
    wrong: set[str] = set()
    for s in samples:
        if len(s.point.images) > 1:
            for i, (found, truth) in enumerate(
                zip(s.found["logits"], s.truth["logits"], strict=True)
            ):
                near = s.rough_ratio("logits", found, truth) <= 1
                (right if near else wrong).add("first" if i == 0 else "others")
    if right == {"first"} and wrong == {"others"}:
        return ["A batch's first image is right and the others are wrong: look at the batch axis."]
    return []


def looks_like_precision(samples: Sequence[Sample]) -> str | None:
    """A coarser precision whose rounding all departures fit, if there is one.

    They fit if they are within its bounds and, in most tensors at every point, not far below its
    price.
    """
    coarser = sorted((p for p in PRECISIONS.values() if p.u > samples[0].precision.u),
                     key=lambda p: p.u)  # fmt: skip
    fitting = (p.name for p in coarser if all(_fits(s, p) for s in samples))
    return next(fitting, None)


def _fits(sample: Sample, precision: Precision) -> bool:
    truth = {name: sample.truth[name] for name in sample.tensors}
    rng = np.random.default_rng([sample.case.seed, 3])
    prices = price_spec(sample.point, truth, precision, CASE_RUNS // 2, rng)
    grades = [grade(n, sample.found[n], truth[n], prices[n]) for n in sample.tensors]
    shares = [g.error / g.price for g in grades if g.price > 0]
    return all(g.conforms for g in grades) and float(np.median(shares)) > FAR_BELOW
