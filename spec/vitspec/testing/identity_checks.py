"""Identities as checks: `vitspec check --identities`, for any model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from vitspec.testing import implementations
from vitspec.testing.checks import kink_margin
from vitspec.testing.identities import IdentityResult, example_point, identities
from vitspec.testing.identities.results import FACTOR
from vitspec.testing.implementations import AdapterError
from vitspec.testing.kinds import KINDS, Config
from vitspec.testing.precision import Precision
from vitspec.testing.reference import Point
from vitspec.testing.results import Result, Status
from vitspec.testing.tolerance import Grade


def check_identities(
    implementation: Any, precision: Precision, seed: int, index: int, config: Config | None
) -> Iterator[Result]:
    """Every identity that holds whatever function the implementation computes, at one point.

    Args:
        implementation: of a specified function, or with `spec = "other"` and an `example` method.
        precision: what it computes in.
        seed: with `index`, what the point is drawn from.
        index: which point.
        config: the one configuration to check on, instead of a random one.
    """
    place = f"identities {index}"
    if not implementations.has_vjp(implementation):
        yield Result("identity", place, "skipped", reason="it has no vjp")
        return
    rng = np.random.default_rng([seed, index, 2])
    if implementation.spec == "other":
        if not callable(getattr(implementation, "example", None)):
            raise AdapterError(
                f"{implementation.name}: an implementation of another function needs a method "
                "example(rng) -> (config, params, images); see docs/identities.md"
            )
        with implementations.guarded(implementation, "example", f"seed {seed}"):
            point = example_point(implementation, rng, dtype=precision.name)
    else:
        drawn = _supported_point(implementation, precision, seed, index, config)
        if drawn is None:
            yield Result("identity", place, "skipped", reason="no supported configuration drawn")
            return
        point = (drawn.config, drawn.params, drawn.images, drawn.cotangent)
    with implementations.guarded(implementation, "vjp", repr(point[0])):
        found = identities(implementation, *point, dtype=precision.name, rng=rng)
    yield from (_result(one, place, repr(point[0])) for one in found)


DRAWS = 50
"""Configurations that are drawn until the implementation supports one."""


def _supported_point(
    implementation: Any, precision: Precision, seed: int, index: int, config: Config | None
) -> Point | None:
    rng = np.random.default_rng([seed, index, 1])
    kind = KINDS[implementation.spec]
    for _ in range(DRAWS):
        case = kind.tiled_case(rng)
        case = case if config is None else kind.with_config(case, config)
        if implementations.why_unsupported(implementation, case.config) is None:
            margin = kink_margin(precision)
            return Point.of(case).away_from_kinks(margin).rounded(precision)
    return None


def _result(one: IdentityResult, place: str, point: str) -> Result:
    status: Status = "skipped" if one.verdict == "undecided" else one.verdict
    grades: tuple[Grade, ...] = ()
    if one.verdict in ("passed", "failed"):
        tensors = ", ".join(one.tensors[:3]) + (", ..." if len(one.tensors) > 3 else "")
        grades = (Grade(tensors, "residual", one.residual, one.bound / FACTOR, one.bound),)
    reason = "; ".join(part for part in (one.reason, one.formula) if part)
    name = one.name.replace("'", "").replace(" ", "-")
    return Result(f"identity.{name}", place, status, grades, reason, point)
