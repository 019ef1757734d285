"""What a departing gradient looks like: the catalogue's deviations, tried at the same point.

Each is planted in the specification, which is evaluated on the same images, and compared with what
the step computed by the prices that are known already. A large model takes too long for all of
them; there, and where nothing fits, the advice is to run `vitspec diagnose`, which looks at several
small models of the same configuration.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from vitfast.training.gradient_check.reference import Exact, Reference
from vitspec.testing.diagnosis.candidates import Candidate, candidates, mistaken
from vitspec.testing.families import FAMILIES
from vitspec.typing import Array

SECONDS = 60.0
"""How long deviations are tried for."""

FITS = 4.0
"""How many bounds away what is named may be: its own price may be some times the truth's."""


def nearest(reference: Reference, found: Mapping[str, Array]) -> tuple[str, ...]:
    """The names of the deviations whose gradient this is up to rounding, nearest first."""
    deadline, fitting = time.monotonic() + SECONDS, dict[str, float]()
    for candidate in candidates(FAMILIES["vision-transformer"]):
        if time.monotonic() > deadline:
            break
        distance = _distance(reference, found, candidate)
        if distance <= FITS:
            name = candidate.names[0]
            fitting[name] = min(distance, fitting.get(name, np.inf))
    return tuple(sorted(fitting, key=lambda name: fitting[name]))


def _distance(reference: Reference, found: Mapping[str, Array], candidate: Candidate) -> float:
    """The largest error in rough bounds; infinite where the deviation cannot be evaluated."""
    try:
        _, mistakes = reference.gradients(Exact(), lambda: mistaken(candidate))
    except Exception:  # a mistake may break anything, as shapes
        return float(np.inf)
    u, worst = reference.precision.u, 0.0
    for name, value in mistakes.items():
        size, price = float(np.linalg.norm(value)), reference.price(name).norm
        error, own = float(np.linalg.norm(found[name] - value)), reference.sizes[name].norm
        relative = price / own if own > 4 * price else 0.0
        bound = 4 * max(price, relative * size) + 4 * u * size
        if not np.isfinite(error):
            return float(np.inf)
        worst = max(worst, error / bound if bound else (np.inf if error else 0.0))
    return worst


def advice(precision: str) -> str:
    """What to run next."""
    name = "vision_transformer" + (f"_{precision}" if precision in ("bfloat16", "float16") else "")
    return (
        f"Next: vitspec diagnose vitfast.implementation:{name}, with the model's configuration "
        "(--config), names what is wrong with the model; docs/checked-training.md has the rest."
    )
