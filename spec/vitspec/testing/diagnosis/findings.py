"""Which tensors depart, and what their pattern says."""

from __future__ import annotations

from collections.abc import Sequence

from vitspec.testing.diagnosis.diagnosis import Departure
from vitspec.testing.diagnosis.patterns import LAYER, common, patterns
from vitspec.testing.diagnosis.points import Sample
from vitspec.testing.noise import SUSPICION
from vitspec.testing.tolerance import worst

ONE_FACTOR = "All gradients have one factor"
NEAR = 100.0
"""Standard deviations of rounding up to which a departure is called near it."""


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


def rules(found: Sequence[Departure], samples: Sequence[Sample]) -> list[str]:
    """What needs no name: a parameter that is not used, one factor for all gradients."""
    gradients = [d for d in found if d.kind == "gradient"]
    everything = {n for s in samples for n in s.tensors if n != "logits"}
    notes = []
    if any(d.tensor == "logits" for d in found):
        unused = dict.fromkeys(
            LAYER.sub("", d.tensor) for d in gradients
            if d.pattern == "zero" and _unused(d.tensor, samples)
        )  # fmt: skip
        notes += [f"{name} is not used: its gradient is zero wherever the logits depart."
                  for name in unused if name != "image"]  # fmt: skip
    spared = everything - {d.tensor for d in gradients}
    if len(gradients) > 1 and all(_is_nothing(name, samples) for name in spared):
        places = [(d.tensor, s) for d in gradients for s in samples
                  if d.tensor in s.grades and not s.grades[d.tensor].conforms]  # fmt: skip
        pattern = common(places)
        if " x the truth" in pattern or "the truth / " in pattern:
            notes.append(f"{ONE_FACTOR}: each is {pattern}.")
    return notes


def _unused(name: str, samples: Sequence[Sample]) -> bool:
    """Whether its gradient is zero at every sample where the logits depart."""
    where = [s for s in samples if name in s.found and not s.grades["logits"].conforms]
    return bool(where) and not any(s.found[name].any() for s in where)


def _is_nothing(name: str, samples: Sequence[Sample]) -> bool:
    """Whether a gradient is zero but for rounding, so that no factor can be seen."""
    return all(s.grades[name].cancelled for s in samples if name in s.grades)


def near_rounding(found: Sequence[Departure], samples: Sequence[Sample]) -> list[str]:
    """Said of departures that are hardly beyond what rounding explains."""
    means = [
        abs(g.confirmation.mean) if (g := s.grades[d.tensor]).confirmation else SUSPICION * g.ratio
        for d in found for s in samples
        if d.tensor in s.grades and not s.grades[d.tensor].conforms
    ]  # fmt: skip
    if not means or max(means) > NEAR:
        return []
    return [
        f"All of it is near rounding: at most {max(means):.1f} standard deviations of it. Whether "
        "it is a mistake or a coarse approximation, float64 would tell."
    ]


def hints(found: Sequence[Departure], samples: Sequence[Sample]) -> list[str]:
    """What the pattern of the departures says, if they have no name."""
    tensors = {d.tensor for d in found if d.kind != "tap"}
    gradients = tensors - {"logits"}
    notes = []
    taps = any(d.kind == "tap" for d in found)
    if gradients and "logits" not in tensors and not taps:
        notes.append("The logits are right and gradients are wrong: the fault is in the backward.")
        notes += _one_place(gradients, samples)
    notes += rules(found, samples) + near_rounding(found, samples)
    if tensors == {"logits"} and len(samples[0].tensors) > 1:
        notes.append("Only the logits are wrong: forward and vjp do not compute the same model.")
    if taps and not tensors:
        notes.append("A tap departs, but nothing else does: another value has that tap's name.")
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
        every = " in every layer" if any(LAYER.match(n) for n in gradients) else ""
        return [f"It is {' and '.join(sorted(kinds))}{every}, and nothing else."]
    layers = {m[1] for n in gradients if (m := LAYER.match(n))}
    if len(layers) == 1 and all(LAYER.match(n) for n in gradients) and len(everything) > 20:
        return [f"It is layer {layers.pop()} alone."]
    return []


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
