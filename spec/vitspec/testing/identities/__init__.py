"""Identities that need no oracle: what must hold of a model whatever function it computes.

Two groups. The first needs nothing but a differentiable model: its gradients are compared with
difference quotients of its own forward, and with each other. The second needs to know which
parameter plays which role in a Vision Transformer, which the parameters' names tell, and no more:
its identities follow from symmetries of the architecture, tie gradients together exactly, and see a
mistake in any precision that the forward's difference quotients are too coarse for.

`docs/identities.md` derives each identity, and has the measurements behind the constants.

An implementation is an object as in `vitspec.testing.implementations`. One whose function we do not
know has `spec = "other"`; its parameters may have any names, and it supplies its own point by a
method `example(rng)`, as `SelfContained` says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from vitspec.testing.identities.differentiable import directional_derivatives, laws
from vitspec.testing.identities.evaluation import Evaluation, exact, precision_of
from vitspec.testing.identities.naming import Naming, Stored, recognise
from vitspec.testing.identities.results import (
    IdentityResult,
    Verdict,
    identities_table,
    skipped,
)
from vitspec.testing.identities.schemes import NAMINGS, torch_naming
from vitspec.testing.identities.structural import structural
from vitspec.testing.implementations import AdapterError
from vitspec.typing import Array

__all__ = [
    "NAMINGS",
    "IdentityResult",
    "Naming",
    "SelfContained",
    "Stored",
    "Verdict",
    "example_point",
    "identities",
    "identities_table",
    "torch_naming",
]

HEAD_COUNTS = ("head_count", "num_attention_heads", "num_heads", "n_heads", "heads")
"""What configurations call the number of heads."""


class SelfContained(Protocol):
    """An implementation of a function that vitspec has no specification of.

    Beside what is listed here it may have `naming`, a `Naming` of its own, where its parameters'
    names follow none of the known schemes.
    """

    name: str
    version: str
    spec: str
    """"other"."""
    dtype: str | tuple[str, ...]

    def example(self, rng: np.random.Generator) -> tuple[Any, Mapping[str, Array], Array]:
        """A configuration, parameters by name, and images with the batch as their first axis.

        The configuration is handed back to `forward` and `vjp` and may be anything, even None. The
        numbers are float64; they are rounded to the precision under test. Small sizes serve best,
        and nothing should be zero or one: a bias that is zero hides what is wrong with it.
        """

    def forward(self, config: Any, params: Mapping[str, Array], images: Array) -> Array:
        """The output, with the batch as its first axis."""

    def vjp(
        self, config: Any, params: Mapping[str, Array], images: Array, cotangent: Array
    ) -> tuple[Mapping[str, Array], Array]:
        """The gradients by parameter, summed over the batch, and the images' gradient."""


def example_point(
    implementation: Any, rng: np.random.Generator, *, dtype: str = "float64"
) -> tuple[Any, dict[str, Array], Array, Array]:
    """The point of an implementation that has `example`, with a cotangent of normal numbers.

    Args:
        implementation: as `SelfContained`.
        rng: handed to `example`; draws the cotangent.
        dtype: the precision that the numbers are rounded to.

    Raises:
        AdapterError: `example` or `forward` raised, or gave something else.
        ValueError: the precision is not known.
    """
    precision = precision_of(dtype)
    try:
        config, given, given_images = implementation.example(rng)
        params = {name: exact(leaf, precision) for name, leaf in given.items()}
        images = exact(given_images, precision)
        output = implementation.forward(config, params, images)
        logits = np.asarray(output["logits"] if isinstance(output, Mapping) else output)
    except Exception as error:
        raise AdapterError(
            f"{implementation.name}: no point could be made with example(rng) and forward: "
            f"{type(error).__name__}: {error}"
        ) from error
    return config, params, images, exact(rng.standard_normal(logits.shape), precision)


def identities(
    implementation: Any,
    config: Any,
    params: Mapping[str, Array],
    images: Array,
    cotangent: Array,
    *,
    dtype: str,
    rng: np.random.Generator,
) -> list[IdentityResult]:
    """Every identity that an implementation can be held to at a point.

    Args:
        implementation: has `name`, `forward` and `vjp`.
        config: what these want; its number of heads and its stride and padding are used if it has
            them.
        params: by name.
        images: the batch is the first axis; two or more images let the batch be split.
        cotangent: of the output.
        dtype: the precision that the implementation computes in. All numbers are rounded to it.
        rng: draws directions and neighbours of the point.

    Returns:
        The results: laws, then structure, then difference quotients.

    Raises:
        AdapterError: the implementation raised, or returned other names or shapes.
        ValueError: the precision is not known.
    """
    e = Evaluation(implementation, config, params, images, cotangent, precision_of(dtype), rng)
    return list(_all(e, implementation, config, rng))


def _all(
    e: Evaluation, implementation: Any, config: Any, rng: np.random.Generator
) -> Iterator[IdentityResult]:
    wrong = tuple(name for name, leaf in e.values.items() if not np.isfinite(leaf).all())
    formula = "no output and no gradient is infinite or NaN"
    if wrong:
        reason = "not finite; nothing else was looked at"
        yield IdentityResult("finite", wrong, np.inf, 0.0, "failed", reason, formula)
        return
    yield IdentityResult("finite", tuple(e.values), 0.0, 0.0, "passed", "", formula)
    yield from laws(e, rng)
    own = getattr(implementation, "naming", None)
    model = recognise(e.params, (own,) if own else NAMINGS)
    if isinstance(model, str):
        yield skipped("structure", (), model, "identities of a Vision Transformer's gradients")
    else:
        yield from structural(e, model, _head_count(config))
    yield from directional_derivatives(e, rng)


def _head_count(config: Any) -> int | None:
    for name in HEAD_COUNTS:
        value = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
        if isinstance(value, int):
            return value
    return None
