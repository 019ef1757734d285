"""The catalogue's deviations, alone and in pairs, against what an implementation computes.

Planting a deviation and evaluating the specification takes milliseconds, so all are tried. Each is
dropped at the first point and the first tensors where it is far from the implementation; those that
are left are judged as `vitspec check` judges, with the deviating specification as the truth, noise
of its own and new points.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitspec.testing.diagnosis import derivatives
from vitspec.testing.diagnosis.candidates import (
    Candidate,
    candidates,
    mistaken,
    mistaken_trial,
)  # fmt: skip
from vitspec.testing.diagnosis.points import Sample
from vitspec.testing.reference import evaluate_spec

DROP = 64.0
"""A rough ratio beyond which a deviation is out: rough prices are not wrong by so much."""
CLOSE = 4.0
"""A rough ratio up to which a deviation deserves a price of its own beside one that matches."""
AT_MOST = 8
"""Deviations that are graded with prices of their own."""


@dataclass(frozen=True)
class Match:
    """How near a candidate is.

    Attributes:
        candidate: what was planted.
        distance: the worst error over its bound, of all tensors at all points.
        typical: the geometric mean of the same, each counted as 1 at least.
        agreeing: tensors within their bounds, counted at each point.
        compared: all tensors, counted at each point.
        exact: whether the deviation's own price was used; else the specification's.
    """

    candidate: Candidate
    distance: float
    typical: float
    agreeing: int
    compared: int
    exact: bool

    @property
    def matches(self) -> bool:
        """Whether the implementation equals it, up to rounding, everywhere."""
        return self.exact and self.distance <= 1

    @property
    def order(self) -> tuple[bool, float, float]:
        """What matches first, then what is nearest in most tensors."""
        return not self.matches, self.typical, self.distance


class Search:
    """The distances of candidates from an implementation, at its samples.

    Args:
        samples: where the implementation has been evaluated; the first decides most.
        seconds: of processor time, after which no more pairs are tried.
    """

    def __init__(self, samples: Sequence[Sample], seconds: float = 60.0) -> None:
        self.samples, self.deadline = samples, time.process_time() + seconds
        self.with_gradients = len(samples[0].tensors) > 1
        other_sizes = any(sample.is_interpolated for sample in samples)
        self.all = candidates(samples[0].family, self.with_gradients, other_sizes)
        self.out_of_time = False
        self._logits: dict[tuple[tuple[str, ...], int], float] = {}
        self._ratios: dict[tuple[Candidate, int], dict[str, float]] = {}
        self._changes: dict[Candidate, dict[str, float]] = {}

    # ---- one candidate ---------------------------------------------------------------------

    def logits_ratio(self, candidate: Candidate, i: int) -> float:
        """How far the logits are at sample i, image by image up to the first that is far."""
        key = tuple(sorted(candidate.in_the_forward)), i
        if key not in self._logits:
            self._logits[key] = self._logits_ratio(candidate, self.samples[i])
        return self._logits[key]

    def _logits_ratio(self, candidate: Candidate, sample: Sample) -> float:
        if not candidate.in_the_forward:
            return sample.rough_ratio("logits", sample.found["logits"], sample.truth["logits"])
        worst = 0.0
        try:
            with mistaken(candidate):
                model = sample.point.model(
                    {n: p.astype(np.float64) for n, p in sample.point.params.items()}
                )
                for image, found in zip(sample.point.images, sample.found["logits"], strict=True):
                    logits = model.trace(image.astype(np.float64), **sample.point.call).logits
                    worst = max(worst, sample.rough_ratio("logits", found, logits))
                    if worst > DROP:
                        break
        except Exception:  # a mistake, or two that exclude each other, need not give a model
            return np.inf
        return worst

    def ratios(self, candidate: Candidate, i: int) -> dict[str, float]:
        """How far every tensor is at sample i, roughly."""
        if (candidate, i) not in self._ratios:
            sample = self.samples[i]
            try:
                self._ratios[candidate, i] = self._rough_ratios(candidate, i)
            except Exception:  # as above
                self._ratios[candidate, i] = dict.fromkeys(sample.tensors, np.inf)
        return self._ratios[candidate, i]

    def _rough_ratios(self, candidate: Candidate, i: int) -> dict[str, float]:
        sample = self.samples[i]
        if candidate.automatic:
            logits = self.logits_ratio(candidate, i)
            if logits > DROP:
                return dict.fromkeys(sample.tensors, np.inf)
            with mistaken(candidate):
                return {"logits": logits} | derivatives.ratios(sample)
        with mistaken(candidate):
            deviating = evaluate_spec(sample.point)
        if i == 0:
            self._changes[candidate] = {
                n: sample.rough_ratio(n, deviating[n], sample.truth[n]) for n in sample.tensors
            }
        gain, found = sample.gain(deviating), sample.found
        return {n: sample.rough_ratio(n, found[n], deviating[n], gain) for n in sample.tensors}

    def rough(self, candidate: Candidate) -> Match:
        """The candidate by rough prices, at all samples."""
        ratios = [r for i in range(len(self.samples)) for r in self.ratios(candidate, i).values()]
        return _match(candidate, ratios, exact=False)

    def exact(self, candidate: Candidate) -> Match:
        """The candidate as the truth, judged as `vitspec check` judges an implementation."""
        ratios: list[float] = []
        for i, sample in enumerate(self.samples):
            names = ["logits"] if candidate.automatic else sample.tensors
            try:
                with mistaken(candidate):
                    grades = mistaken_trial(sample).grades
            except Exception:  # as above
                return _match(candidate, [np.inf], exact=True)
            judged = [grades[name] for name in names]
            ratios += [min(one.ratio, 1.0) if one.conforms else one.ratio for one in judged]
            if candidate.automatic:
                rough = self.ratios(candidate, i)
                ratios += [rough[name] for name in sample.tensors if name != "logits"]
        return _match(candidate, ratios, exact=True)

    # ---- all of them -----------------------------------------------------------------------

    def survivors(self, some: Iterable[Candidate]) -> list[Candidate]:
        """Those that are nowhere far from the implementation, the nearest first."""
        alive = [c for c in some if not self._late(c) and self._is_near(c)]
        return sorted(alive, key=lambda c: self.rough(c).order)

    def _is_near(self, candidate: Candidate) -> bool:
        for i in range(len(self.samples)):
            if self.logits_ratio(candidate, i) > DROP:
                return False
            if self.with_gradients and max(self.ratios(candidate, i).values()) > DROP:
                return False
        return True

    def matches(self, some: Iterable[Candidate]) -> list[Match]:
        """Those that equal the implementation up to rounding, the nearest first."""
        found: list[Match] = []
        for candidate in self.survivors(some)[:AT_MOST]:
            if not any(m.matches for m in found) or self.rough(candidate).distance <= CLOSE:
                found.append(self.exact(candidate))
        return sorted((m for m in found if m.matches), key=lambda m: m.order)

    def nearest(self, count: int, besides: Sequence[str] = ()) -> list[Match]:
        """The nearest single deviations, one for each name, whether they match or not."""
        rest = [c for c in self.all if c.names[0] not in besides and not c.automatic]
        logits = {c: self.logits_ratio(c, 0) for c in rest}
        rest.sort(key=lambda c: logits[c])
        near = [c for c in rest if logits[c] <= DROP] or rest[: 3 * count]
        near.sort(key=lambda c: _match(c, self.ratios(c, 0).values(), exact=False).order)
        by_name: dict[str, Match] = {}
        for match in sorted((self.rough(c) for c in near[: 2 * count]), key=lambda m: m.order):
            by_name.setdefault(match.candidate.names[0], match)
        return list(by_name.values())[:count]

    def forward_matches(self, some: Iterable[Candidate]) -> list[Candidate]:
        """Those whose logits are the implementation's, whatever the gradients."""
        places = range(len(self.samples))
        return [c for c in some if all(self.logits_ratio(c, i) <= CLOSE for i in places)]

    # ---- two at once -----------------------------------------------------------------------

    def pairs(self) -> list[Match]:
        """Pairs that equal the implementation up to rounding.

        The logits tell which mistakes the forward has: none, one, or two. Only what goes with these
        is evaluated with its gradients.
        """
        forward = [c for c in self.all if c.in_the_forward]
        backward = [c for c in self.all if not c.in_the_forward]
        if self.samples_have_right_logits():
            return self.matches(self.backward_pairs(backward))
        single = self.forward_matches(forward)
        found = self.matches(a.and_also(b) for a in single for b in backward)
        return found or self.matches(self.forward_pairs())

    @property
    def of_specification(self) -> Match:
        """How far the specification itself is."""
        return self.rough(Candidate(()))

    def samples_have_right_logits(self) -> bool:
        """Whether the implementation's forward is the specification's."""
        return all(sample.grades["logits"].conforms for sample in self.samples)

    def forward_pairs(self) -> list[Candidate]:
        """Pairs whose logits are the implementation's, by hand and by automatic derivatives."""
        styles: dict[str, list[Candidate]] = {}
        for candidate in self.all:
            if candidate.in_the_forward:
                styles.setdefault(candidate.names[0], []).append(candidate)
        fitting = []
        for a, b in itertools.combinations(styles.values(), 2):
            both = a[0].and_also(b[0])
            if not self._late(both) and self.logits_ratio(both, 0) <= DROP:
                fitting.append(both)
                if len(a) + len(b) > 2:
                    fitting += [a[-1].and_also(b[-1])]
        return fitting

    def backward_pairs(self, backward: Sequence[Candidate]) -> list[Candidate]:
        """Pairs that between them change what departs at the first sample, and nothing else."""
        first = self.samples[0]
        departs = {n: first.rough_ratio(n, first.found[n], first.truth[n]) for n in first.tensors}
        changes = {
            c: self._changes[c] for c in backward if self.ratios(c, 0) and c in self._changes
        }
        fitting = []
        for a, b in itertools.combinations(changes, 2):
            both = {n: max(changes[a][n], changes[b][n]) for n in departs}
            # What is near rounding may be seen in one and not in the other.
            if not any(
                min(departs[n], both[n]) < 1 / CLOSE and max(departs[n], both[n]) > DROP
                for n in departs
            ):
                fitting.append(a.and_also(b))
        return fitting

    def _late(self, candidate: Candidate) -> bool:
        """Whether it is too late to try a pair; single deviations always are tried."""
        if len(candidate.deviations) > 1 and time.process_time() > self.deadline:
            self.out_of_time = True
        return self.out_of_time and len(candidate.deviations) > 1


def _match(candidate: Candidate, ratios: Iterable[float], exact: bool) -> Match:
    values = np.array(list(ratios))
    typical = float(np.exp(np.mean(np.log(np.maximum(values, 1.0)))))
    return Match(
        candidate, float(values.max()), typical, int((values <= 1).sum()), len(values), exact
    )


def same_function(a: Candidate, b: Candidate, samples: Sequence[Sample]) -> bool:
    """Whether two candidates are one function at all samples, in float64, up to its rounding."""
    for sample in samples:
        with mistaken(a):
            of_a: dict[str, Any] = evaluate_spec(sample.point)
        with mistaken(b):
            of_b = evaluate_spec(sample.point)
        for name in ["logits"] if a.automatic or b.automatic else sample.tensors:
            size = max(float(np.linalg.norm(of_a[name])), float(np.linalg.norm(sample.truth[name])))
            if np.linalg.norm(of_a[name] - of_b[name]) > 1e-12 * size:
                return False
    return True
