"""What an implementation may have: one mistake or two, and how a sample is judged with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from vitspec.testing.catalogue import Deviation, nothing_planted, planted
from vitspec.testing.diagnosis.points import Sample
from vitspec.testing.families import Family
from vitspec.testing.reference import Flat, Point
from vitspec.testing.tolerance import Grade
from vitspec.testing.trial import Trial
from vitspec.typing import shapes_unchecked


@dataclass(frozen=True)
class Candidate:
    """Deviations that the implementation may have: one, or two at once.

    Attributes:
        deviations: what is planted.
        automatic: whether the derivatives are those of the mistaken forward, and nobody has written
            them down.
    """

    deviations: tuple[Deviation, ...]
    automatic: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(d.name for d in self.deviations)

    @property
    def in_the_forward(self) -> tuple[str, ...]:
        """Those of them that can change the logits."""
        return tuple(d.name for d in self.deviations if changes_logits(d))

    def and_also(self, other: Candidate) -> Candidate:
        """Both at once."""
        automatic = self.automatic or other.automatic
        return Candidate(self.deviations + other.deviations, automatic)


def changes_logits(deviation: Deviation) -> bool:
    """Whether it sits in the forward."""
    return deviation.kind in ("forward", "both")


def candidates(
    family: Family, with_gradients: bool = True, other_sizes: bool = False
) -> list[Candidate]:
    """Every deviation that can show in a model.

    A mistaken forward may come with the derivatives of the right one, written by hand, or with its
    own, by automatic differentiation: these are two candidates of one name.
    """
    found = []
    for deviation in family.mistakes(other_sizes):
        if not deviation.visible_in_model:
            continue
        if with_gradients or changes_logits(deviation):
            found.append(Candidate((deviation,)))
        if with_gradients and deviation.derivatives:
            own = deviation.differentiated()
            assert own is not None
            found.append(Candidate((own,)))
        elif with_gradients and deviation.derivatives is None and changes_logits(deviation):
            found.append(Candidate((deviation,), automatic=True))
    return found


@contextmanager
def mistaken(candidate: Candidate) -> Iterator[None]:
    """The specification with the candidate's deviations; shapes are not checked, and 1/0 is inf."""
    with shapes_unchecked(), planted(*candidate.deviations), np.errstate(all="ignore"):
        yield


class MistakenTrial(Trial):
    """A trial whose truth has mistakes in it, while the implementation is what it is."""

    def evaluate(self, point: Point) -> Flat:
        """The implementation's results, which what is planted must not reach."""
        with nothing_planted():
            return super().evaluate(point)

    def _explained(self, grades: dict[str, Grade]) -> dict[str, Grade]:
        return grades


def mistaken_trial(sample: Sample) -> MistakenTrial:
    """The sample's trial, with what is planted now as the truth."""
    own = sample.trial
    trial = MistakenTrial(
        own.subject, own.point, own.stream("mistaken"), own.reference.runs, own.place,
        structured=own.structured, margin=own.margin,
    )  # fmt: skip
    trial.found = {name: sample.found[name] for name in sample.tensors}
    return trial
