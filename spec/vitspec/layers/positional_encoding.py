"""Learned positions, added to the tokens: y = x + pos, all of shape (n, D).

Lean: `PositionalEncodingSpec`, `addPositionalEncodingSpec`, `addPositionalEncodingBackwardSpec`
(`Layers/PositionalEncoding.lean`).
"""

from __future__ import annotations

from vitspec.records import Record, record
from vitspec.typing import Array, Scalar, typed


@record
class PositionalEncodingSpec(Record):
    """One row for each token."""

    pos: Scalar[Array, "n D"]


@typed
def add_positional_encoding(
    spec: PositionalEncodingSpec, x: Scalar[Array, "n D"]
) -> Scalar[Array, "n D"]:
    """x + pos."""
    return x + spec.pos


@typed
def add_positional_encoding_backward(
    spec: PositionalEncodingSpec, d_out: Scalar[Array, "n D"]
) -> tuple[Scalar[Array, "n D"], Scalar[Array, "n D"]]:
    """The cotangents (d_pos, d_x): a sum passes its cotangent to both terms."""
    return d_out, d_out


@typed
def add_positional_encoding_jvp(
    spec: PositionalEncodingSpec, tangent: PositionalEncodingSpec, dx: Scalar[Array, "n D"]
) -> Scalar[Array, "n D"]:
    """The tangent dx + d_pos of the output."""
    return dx + tangent.pos
