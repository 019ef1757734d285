"""The first look: how far each entry of a tensor stands out of what its precision explains.

The *noise* of a tensor is how far several noisy runs of the specification end from the truth
(`vitspec.testing.precision`), by each of the usual algorithms. It gives every linear functional of
the tensor a standard deviation: with w the functional and d the distance of a run,

    sigma(w)^2 = max over the algorithms of the mean over runs of <w, d>^2
    s(w)       = max(sigma(w), u |w * y| / 2)          y: the truth, u: the unit roundoff
    z(w)       = |<w, e>| / s(w)                       e: the implementation's error

and likewise for norms. The first look takes z of every entry, of every row's norm, of the tensor's
norm, and of its scale (w = y). Where one exceeds `SUSPICION`, that is no verdict but a *suspicion*:
a direction w in which the error stands out. `vitspec.testing.confirmation` asks at new points
whether it still points that way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vitspec.testing.precision import Precision
from vitspec.testing.tolerance import Grade, Price, sizes, worst
from vitspec.typing import Array

SUSPICION = 4.0
"""A z that correct code reaches rarely."""
LARGE = 1e100
"""Truths beyond this are taken in another unit."""
DIRECTIONS = 8
"""Entries of one tensor that are suspected, the furthest off first."""


@dataclass(frozen=True, eq=False)
class Noise:
    """What a precision costs one tensor, run by run.

    Attributes:
        runs: the distances of the runs from the truth, shape (algorithms, runs, entries).
        truth: the truth, flat, float64, in units of `unit`.
        rows: how many rows it has; a row is an entry of the first axis, if there are several axes.
        precision: what the runs err like.
        unit: a power of two, other than 1 where squares would overflow.
    """

    runs: Array
    truth: Array
    rows: int
    precision: Precision
    unit: float = 1.0

    @classmethod
    def of(
        cls, truth: Array, runs: Sequence[Array], algorithms: int, precision: Precision
    ) -> Noise:
        """The noise of runs that take the algorithms in turns."""
        largest = float(np.abs(truth).max(initial=0.0))
        unit = 2.0 ** np.floor(np.log2(largest)) if largest > LARGE else 1.0
        flat = np.asarray(truth, np.float64).reshape(-1) / unit
        distances = np.stack([run.reshape(-1).astype(np.float64) / unit - flat for run in runs])
        by_algorithm = np.stack([distances[i::algorithms] for i in range(algorithms)])
        rows = truth.shape[0] if truth.ndim > 1 and truth.size else 1
        return cls(by_algorithm, flat, rows, precision, unit)

    def and_more(self, other: Noise) -> Noise:
        """The noise of these runs and of others at the same point."""
        runs = np.concatenate([self.runs, other.runs], axis=1)
        return replace(self, runs=runs)

    def at(self, truth: Array) -> Noise:
        """The same noise at a neighbouring point."""
        return replace(self, truth=np.asarray(truth, np.float64).reshape(-1) / self.unit)

    def error(self, value: Array) -> Array:
        """How far a value is from the truth, flat, in units of `unit`."""
        with np.errstate(invalid="ignore", over="ignore"):
            return np.asarray(value.reshape(-1).astype(np.float64) / self.unit - self.truth)

    def price(self) -> Price:
        """The price by all runs, as `vitspec.testing.tolerance` has it."""
        truth = self.truth.reshape(self.rows, -1)
        runs = [sizes(run.reshape(truth.shape)) for one in self.runs for run in one]
        return Price.of(sizes(truth), runs, self.precision.u).scaled(self.unit)

    def of_entries(self) -> Array:
        """s of every entry."""
        own = self.precision.u / 2 * np.abs(self.truth)
        return np.maximum(np.maximum(_largest(self.runs**2), own), self.precision.least)

    def of_rows(self) -> Array:
        """What corresponds to s for the norm of every row."""
        squares = (self.runs**2).reshape(*self.runs.shape[:2], self.rows, -1).sum(axis=-1)
        truth = self.truth.reshape(self.rows, -1)
        own = self.precision.u / 2 * np.linalg.norm(truth, axis=1)
        least = self.precision.least * truth.shape[1] ** 0.5
        return np.maximum(np.maximum(_largest(squares), own), least)

    def along(self, direction: Array) -> float:
        """s of one linear functional, of as many numbers as the tensor has entries."""
        terms = direction * self.truth
        own = self.precision.u / 2 * float(np.linalg.norm(terms))
        least = self.precision.least * float(np.linalg.norm(direction))
        return max(float(_largest((self.runs @ direction) ** 2)), own, least)


def _largest(squares: Array) -> Array:
    """The root of the mean over runs, of the algorithm where it is largest; infinite if unknown."""
    root = np.asarray(np.sqrt(squares.mean(axis=1).max(axis=0)))
    return np.where(np.isfinite(root), root, np.inf)


@dataclass(frozen=True, eq=False)
class Suspicion:
    """A direction in which a tensor's error stands out.

    Attributes:
        grade: the first look's.
        direction: w, flat; None where the error is not finite: then there is nothing to ask.
    """

    grade: Grade
    direction: Array | None = None


def first_look(tensor: str, value: Array, noise: Noise) -> tuple[Grade, tuple[Suspicion, ...]]:
    """What stands out furthest, and every suspicion.

    Args:
        tensor: its name.
        value: what the implementation computed.
        noise: of this tensor at this point.
    """
    truth, error = noise.truth, noise.error(value)
    if not error.size:
        return Grade(tensor, "entry", 0.0, 0.0, 0.0), ()
    if not np.isfinite(error).all():
        grade = _grade(tensor, "entry", np.inf, float(noise.of_entries().max()), noise)
        return grade, (Suspicion(grade),)
    with np.errstate(over="ignore"):  # a mistake may be any number of deviations away
        looks = [*_entries(tensor, error, noise), _row(tensor, error, noise)]
        for metric, direction in (("norm", error), ("scale", truth)):
            if (length := float(np.linalg.norm(direction))) > 0:
                looks.append(_linear(tensor, metric, direction / length, error, noise))
    suspicions = tuple(look for look in looks if not look.grade.conforms)
    return worst([look.grade for look in looks]), suspicions


def _entries(tensor: str, error: Array, noise: Noise) -> list[Suspicion]:
    """The entries that are furthest off."""
    s = noise.of_entries()
    z = np.abs(error) / s
    last = min(DIRECTIONS, z.size)
    furthest = np.argpartition(z, -last)[-last:]
    looks = []
    for i in furthest[np.argsort(-z[furthest])]:
        direction = np.zeros_like(error)
        direction[i] = 1
        grade = _grade(tensor, "entry", float(abs(error[i])), float(s[i]), noise)
        looks.append(Suspicion(grade, direction))
    return looks


def _row(tensor: str, error: Array, noise: Noise) -> Suspicion:
    """The row that is furthest off, along its own error."""
    rows = error.reshape(noise.rows, -1)
    norms, s = np.linalg.norm(rows, axis=1), noise.of_rows()
    i = int(np.argmax(norms / s))
    direction = np.zeros_like(rows)
    direction[i] = rows[i] / norms[i] if norms[i] else 0
    grade = _grade(tensor, "row", float(norms[i]), float(s[i]), noise)
    return Suspicion(grade, direction.reshape(-1))


def _linear(tensor: str, metric: str, direction: Array, error: Array, noise: Noise) -> Suspicion:
    """One functional of the whole tensor; the norm is its error along itself."""
    if metric == "norm":  # calibrated by the norms of the runs, not by what they have along it
        squares = (noise.runs**2).sum(axis=-1)
        own = noise.precision.u / 2 * float(np.linalg.norm(noise.truth))
        s = max(float(_largest(squares)), own, noise.precision.least * error.size**0.5)
    else:
        s = noise.along(direction)
    grade = _grade(tensor, metric, float(abs(error @ direction)), s, noise)
    return Suspicion(grade, direction)


def _grade(tensor: str, metric: str, error: float, s: float, noise: Noise) -> Grade:
    """An error and its bound, relative to the tensor, or to what cancelled if it has no size."""
    size = float(np.linalg.norm(noise.truth))
    noise_norm = float(np.sqrt((noise.runs**2).sum(axis=-1).max(initial=0.0)))
    cancelled = size <= SUSPICION * noise_norm
    if metric == "entry":
        size = float(np.abs(noise.truth).max())
    scale = (noise_norm / noise.precision.u if cancelled else size) or 1.0
    return Grade(tensor, metric, error / scale, s / scale, SUSPICION * s / scale, cancelled)
