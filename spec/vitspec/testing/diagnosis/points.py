"""Where an implementation is looked at, and what it and the specification say there.

That is the place where a check saw it depart, if one is named. Else it is a few small models of
each family (`Family.telling_cases`), chosen so that every mistake of the catalogue shows in one of
them and no two look alike in all. What an implementation does not support is replaced by the
nearest thing that it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from vitspec.testing.confirmation import SURE
from vitspec.testing.families import AnyCase, Config
from vitspec.testing.implementations import AdapterError, Subject
from vitspec.testing.noise import SUSPICION, Suspicion, first_look
from vitspec.testing.precision import Precision
from vitspec.testing.reference import CASE_RUNS, Flat, Point, Reference
from vitspec.testing.tolerance import Confirmation, Grade, Price
from vitspec.testing.trial import Trial, kink_margin
from vitspec.typing import Array

LARGE_COTANGENT = 2.0**10
"""How much larger the cotangent is where the parameters are large."""


def cases(
    subject: Subject, seed: int = 0, config: Config | None = None
) -> tuple[list[AnyCase], list[str]]:
    """The cases that the implementation supports, and in words what had to be replaced."""
    chosen: list[AnyCase] = []
    notes, family = [], subject.family
    for i, telling in enumerate(family.telling_cases):
        case = replace(telling, seed=len(family.telling_cases) * seed + i)
        wishes = [family.with_config(case, config)] if config else [*family.friendlier(case)]
        near = subject.closest(case.config)
        if not config and near != case.config:
            wishes.insert(1, family.with_config(case, near))
        for wish in wishes:
            reason = subject.why_unsupported(wish.config)
            if reason is None:
                chosen.append(wish)
                break
            if wish is wishes[0]:
                notes.append(f"{subject.name} does not support {wish.config!r}: {reason}")
    if other := _interpolated(subject, seed, config):
        chosen.insert(1, other)
    if not chosen:
        raise AdapterError(
            f"{subject.name} supports none of the configurations that were tried; "
            "name one that it does: --config"
        )
    return chosen, notes


def _interpolated(subject: Subject, seed: int, config: Config | None) -> AnyCase | None:
    """The case with images of another size, if the implementation takes it."""
    if not subject.takes_other_sizes:
        return None
    case = replace(subject.family.telling_interpolated_case(), seed=seed)
    wish = config or subject.closest(case.config)
    near = case if wish == case.config else subject.family.with_config(case, wish)
    reason = subject.why_unsupported(near.config)
    reason = reason or subject.why_size_unsupported(near.config, near.image_shape[1:])
    return None if reason else near


@lru_cache(maxsize=16)
def _point(case: AnyCase, precision: Precision) -> Point:
    point = Point.of(case)
    if getattr(case, "values", "") == "large":
        point = replace(point, cotangent=LARGE_COTANGENT * point.cotangent)
    return point.away_from_kinks(kink_margin(precision)).rounded(precision)


@lru_cache(maxsize=16)
def _reference(case: AnyCase, precision: Precision, taps: bool) -> Reference:
    rng = np.random.default_rng([case.seed, 3])
    return Reference(_point(case, precision), precision, rng, CASE_RUNS, taps)


class Sample:
    """An implementation and the specification at one point.

    Args:
        trial: the point, as a check would judge it.
        case: the small case that it is of, if it is of one.
    """

    def __init__(self, trial: Trial, case: AnyCase | None = None) -> None:
        self.trial, self.case, self.point = trial, case, trial.point
        self.family, self.precision = trial.subject.family, trial.precision
        found = trial.found
        taps = found.keys() - {"logits", "image", *self.point.params}
        old = trial.reference
        # A check may draw the same case at other numbers: only this very point is shared.
        if case is not None and old.small and self.point is _point(case, self.precision):
            trial.reference = _reference(case, self.precision, bool(taps))
        elif taps:
            trial.reference = Reference(
                self.point, self.precision, trial.stream("taps"), old.runs, taps=True
            )
        self.truth: Flat = trial.truth
        fitting = {n for n in taps & self.truth.keys() if found[n].shape == self.truth[n].shape}
        self.strange_taps = sorted(taps - fitting)
        self.taps = [name for name in self.truth if name in fitting]
        known = {n: value for n, value in found.items() if n not in self.strange_taps}
        self.found = {name: np.asarray(value, np.float64) for name, value in known.items()}
        trial.found = known
        self.tensors = [name for name in self.truth if name in found and name not in taps]

    @classmethod
    def of(cls, subject: Subject, case: AnyCase) -> Sample:
        """A small case."""
        point, rng = _point(case, subject.precision), np.random.default_rng([case.seed, 4])
        return cls(Trial(subject, point, rng, description=repr(case)), case)

    @property
    def prices(self) -> dict[str, Price]:
        """What the precision costs each tensor."""
        return self.trial.prices

    @cached_property
    def _looks(self) -> dict[str, tuple[Grade, tuple[Suspicion, ...]]]:
        """The first look at every tap and tensor."""
        return self.trial.looks(self.trial.found)

    @cached_property
    def grades(self) -> dict[str, Grade]:
        """The verdicts on all taps and tensors, as `vitspec check` would have them.

        Where something is beyond doubt, nobody asks new points about what was only suspected: that
        is said to depart if it stands out by far, and not to be decided otherwise. But what is
        computed before all that is certain is asked about, since the first to depart is where the
        mistake is.
        """
        order = (*self.taps, *self.tensors)
        if not self.trial.reference.small:
            return {name: self.trial.grades[name] for name in order}
        z = {name: look.ratio * SUSPICION for name, (look, _) in self._looks.items()}
        if any(z[name] > SURE for name in order):
            z = {name: value / self._ill_posed(name) for name, value in z.items()}
        certain = [name for name in order if not z[name] <= SURE]
        if not certain:
            return {name: self.trial.grades[name] for name in order}
        grades = {name: self._looks[name][0] for name in order}
        earlier = order[: order.index(certain[0])]
        asked = [one for name in earlier for one in self._looks[name][1]]
        grades |= self.trial.asked(asked) if asked else {}
        for name in order:
            if not grades[name].conforms and grades[name].confirmation is None:
                outcome: Any = "cleared" if z[name] <= SURE else "confirmed"
                grades[name] = replace(grades[name], confirmation=Confirmation(outcome, z[name], 0))
        return grades

    def _ill_posed(self, name: str) -> float:
        """How many suspicions the specification itself stands out by, rounded; 1 at least."""
        there = self.trial.reference
        look, _ = first_look(name, there.rounded[name], there.noises[name])
        return max(1.0, look.ratio) if np.isfinite(look.ratio) else 1.0

    @property
    def departs(self) -> bool:
        """Whether anything does but taps."""
        return not all(self.grades[name].conforms for name in self.tensors)

    @property
    def departs_at_once(self) -> bool | None:
        """Whether anything does, as far as a first look can tell; None if it cannot."""
        there = self.trial.reference
        if not there.small:
            return self.departs
        looks = {n: first_look(n, self.found[n], there.noises[n])[0].ratio for n in self.tensors}
        if max(looks.values()) <= 1:
            return False
        sure = any(r * SUSPICION > SURE * self._ill_posed(n) for n, r in looks.items())
        return True if sure else None

    @cached_property
    def relative_prices(self) -> dict[str, float]:
        """What the precision costs each tensor, relative to its size.

        A tensor that only noise is left of has no size; it gets the largest of the others' prices.
        """
        sizes = {name: float(np.linalg.norm(self.truth[name])) for name in self.tensors}
        own = {
            name: self.prices[name].norm / sizes[name]
            for name in self.tensors
            if sizes[name] > 4 * self.prices[name].norm
        }
        general = max(own.values(), default=self.precision.u)
        return {name: own.get(name, general) for name in self.tensors}

    def gain(self, deviating: Mapping[str, Array]) -> float:
        """How many times larger than the truth's all gradients together are; 1 at least."""
        names = [name for name in self.tensors if name != "logits"]
        truth, other = (
            sum(float(np.vdot(one[n], one[n])) for n in names) for one in (self.truth, deviating)
        )
        gain = (other / truth) ** 0.5 if truth else 1.0
        return max(1.0, gain) if np.isfinite(gain) else 1.0

    def rough_ratio(self, name: str, found: Array, deviating: Array, gain: float = 1.0) -> float:
        """About what the grade's ratio would be if `deviating` were the truth.

        Its price is taken from the truth's, which costs nothing. It may be wrong by some factor,
        so what comes near is graded by a price of its own.

        Args:
            name: the tensor.
            found: what the implementation computed.
            deviating: what the deviation computes.
            gain: `gain` of that, which what cancels has as well.
        """
        difference = found - deviating
        if not np.isfinite(difference).all():
            return np.inf
        size, error = float(np.linalg.norm(deviating)), float(np.linalg.norm(difference))
        noise = max(gain * self.prices[name].norm, self.relative_prices[name] * size)
        if error == 0:
            return 0.0
        bound = 4 * noise + 4 * self.precision.u * size
        return error / bound if bound else np.inf

    @property
    def is_interpolated(self) -> bool:
        """Whether the images have another size than the configuration's."""
        return getattr(self.case, "image_size", None) is not None

    @property
    def quantities(self) -> dict[str, float]:
        """What a stray factor may be, by name."""
        c, (B, _, H, W) = self.point.config, self.point.images.shape
        rows, columns = self.family.grid(c, H, W)
        patches, cls = rows * columns, self.family.cls_rows(c)
        tokens = patches + cls
        return {
            "the number of tokens": tokens,
            **({"the number of patches": patches} if cls else {}),
            "the batch size": B,
            "the number of tokens of the batch": B * tokens,
            "head_dim": c.head_dim,
            "sqrt(head_dim)": c.head_dim**0.5,
            "head_count": c.head_count,
            "sqrt(head_count)": c.head_count**0.5,
            "embed_dim": c.embed_dim,
            "sqrt(embed_dim)": c.embed_dim**0.5,
            "num_layers": c.num_layers,
            "num_classes": c.num_classes,
        }
