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

from vitspec.testing.adapter_errors import AdapterError, ProcessEndedError
from vitspec.testing.identities.differentiable import directional_derivatives, laws
from vitspec.testing.identities.evaluation import Evaluation
from vitspec.testing.identities.naming import Naming, Stored, recognise
from vitspec.testing.identities.results import told
from vitspec.testing.identities.schemes import NAMINGS, torch_naming
from vitspec.testing.identities.structural import structural
from vitspec.testing.implementations import Subject
from vitspec.testing.reference import Point
from vitspec.testing.results import Result
from vitspec.typing import Array

__all__ = [
    "NAMINGS",
    "Naming",
    "SelfContained",
    "Stored",
    "example_point",
    "identities",
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


def example_point(subject: Subject, rng: np.random.Generator) -> Point:
    """The point of an implementation that has `example`, with a cotangent of normal numbers.

    Args:
        subject: of an implementation as `SelfContained`, in the precision to round the numbers to.
        rng: handed to `example`; draws the cotangent.

    Raises:
        AdapterError: there is no `example`, or it or `forward` raised, or gave something else.
    """
    if "example" not in subject.description.methods:
        raise AdapterError(
            f"{subject.name}: an implementation of another function needs a method "
            "example(rng) -> (config, params, images); see docs/identities.md"
        )
    try:
        config, params, images, shape = subject.example(rng)
    except ProcessEndedError:
        raise
    except AdapterError as error:
        raise AdapterError(
            f"{subject.name}: no point could be made with example(rng) and forward: {error}"
        ) from error
    cotangent = rng.standard_normal(shape)
    return Point(subject.spec, config, params, images, cotangent).rounded(subject.precision)


def identities(subject: Subject, point: Point, rng: np.random.Generator) -> list[Result]:
    """Every identity that an implementation can be held to at a point.

    Args:
        subject: an implementation that has `vjp`, and the precision that it computes in.
        point: where; all numbers are rounded to the precision. Of the configuration the number of
            heads, the stride and the padding are used if it has them. Two or more images let the
            batch be split.
        rng: draws directions and neighbours of the point.

    Returns:
        The results: laws, then structure, then difference quotients. Where rounding hides too much
        for a verdict, a result is "undecided" and has what was compared as `undecided`.

    Raises:
        AdapterError: the implementation raised, or returned other names or shapes.
    """
    return list(_all(Evaluation(subject, point, rng), rng))


def _all(e: Evaluation, rng: np.random.Generator) -> Iterator[Result]:
    wrong = tuple(name for name, leaf in e.values.items() if not np.isfinite(leaf).all())
    formula = "no output and no gradient is infinite or NaN"
    if wrong:
        reason = "not finite; nothing else was looked at"
        yield told("finite", formula, wrong, np.inf, 0.0, "failed", reason)
        return
    yield told("finite", formula, tuple(e.values))
    yield from laws(e, rng)
    own = e.subject.naming
    model = recognise(e.point.params, (own,) if own else NAMINGS)
    if isinstance(model, str):
        formula = "identities of a Vision Transformer's gradients"
        yield told("structure", formula, status="skipped", reason=model)
    else:
        yield from structural(e, model, _head_count(e.point.config))
    yield from directional_derivatives(e, rng)


def _head_count(config: Any) -> int | None:
    for name in HEAD_COUNTS:
        value = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
        if isinstance(value, int):
            return value
    return None
