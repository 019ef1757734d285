"""Scaled dot-product attention by Tokamax, with the specification's masks.

For each batch entry and head, with Q (T, h), K (S, h), V (S, h):

    S = Q K^T / sqrt(h)      A = softmax(S), or hard-masked (True = may attend)      out = A V

A query that may attend to nothing has output 0, and passes on cotangent 0.

Any other attention fits in its place: the model calls a function of the type `AttentionFn`, and
should one day get it from elsewhere, that function needs only to compute the above.

Tokamax (https://github.com/openxla/tokamax) offers several implementations of this function; this
is the only module that knows of it. Lean: `scaledDotProductAttention`, and the theorem
`flashAttention_eq_scaledDotProductAttention`, which every implementation here must obey.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import tokamax
from absl import flags
from jaxtyping import Bool, Float

from vitspec.errors import InvalidArray

# Tokamax up to 0.0.12 reads its options with absl, which on the first call parses the command line
# of whatever program is running and dies of the first option that it does not know (`pytest -q`).
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()

KNOWN_IMPLEMENTATIONS: tuple[str, ...] = typing.get_args(
    # From Python 3.12 on, Tokamax declares this with `type`, and the literal is its value.
    getattr(
        tokamax.DotProductAttentionImplementation,
        "__value__",
        tokamax.DotProductAttentionImplementation,
    )
)
"""The names that Tokamax knows; which of them run depends on the device."""


@typing.runtime_checkable
class AttentionFn(typing.Protocol):
    """A scaled dot-product attention. It must be hashable: it is a static part of a model."""

    def __call__(
        self,
        query: Float[jax.Array, "batch queries heads head_dim"],
        key: Float[jax.Array, "batch keys heads head_dim"],
        value: Float[jax.Array, "batch keys heads head_dim"],
        mask: Bool[jax.Array, "#batch #heads #queries #keys"] | None = None,
    ) -> Float[jax.Array, "batch queries heads head_dim"]:
        """The formula at the top of this module, with scale 1 / sqrt(head_dim)."""


@dataclass(frozen=True)
class TokamaxAttention:
    """An `AttentionFn`. Two with the same implementations are equal, so programs are shared.

    Attributes:
        implementations: Tokamax's names, in the order in which to try them; None is its own choice.
    """

    implementations: tuple[str, ...] | None = None

    def __call__(
        self,
        query: Float[jax.Array, "batch queries heads head_dim"],
        key: Float[jax.Array, "batch keys heads head_dim"],
        value: Float[jax.Array, "batch keys heads head_dim"],
        mask: Bool[jax.Array, "#batch #heads #queries #keys"] | None = None,
    ) -> Float[jax.Array, "batch queries heads head_dim"]:
        """The attention of each query over all keys that the mask allows.

        Raises:
            InvalidArray: the mask is not Boolean.
        """
        if mask is not None and mask.dtype != bool:
            raise InvalidArray(
                f"mask: expected booleans, True = may attend, got {mask.dtype}; an additive mask "
                "becomes one by `mask == 0`"
            )
        head_dim, width = query.shape[-1], value.shape[-1]
        if head_dim == 1:
            # On products over an axis of size 1, XLA's compiler for the CPU (jaxlib 0.10.2, 0.12.0)
            # aborts from some forty tokens on. A second feature that is 0 changes no number.
            query, key, value = (jnp.pad(x, [(0, 0)] * 3 + [(0, 1)]) for x in (query, key, value))
        out = tokamax.dot_product_attention(
            query,
            key,
            value,
            mask=mask,
            scale=1 / math.sqrt(head_dim),
            precision="highest",
            implementation=self.implementations,
        )[..., :width]
        return out if mask is None else _zero_blocked_queries(out, mask)


def make_tokamax_attention(
    implementation: str | Sequence[str] | None = None,
) -> TokamaxAttention:
    """An attention by the first of Tokamax's implementations that supports the device and shapes.

    Args:
        implementation: a name of `KNOWN_IMPLEMENTATIONS`, several in the order of preference, such
            as ["mosaic", "triton", "xla"], or None for Tokamax's own choice. "xla" runs everywhere;
            "xla_chunked" needs less memory for long sequences, but does not take float64 from 1024
            keys on.

    Raises:
        ValueError: a name is not known, or there is none.

    >>> make_tokamax_attention(["triton", "xla"])
    TokamaxAttention(implementations=('triton', 'xla'))
    """
    if implementation is None:
        return TokamaxAttention()
    names = (implementation,) if isinstance(implementation, str) else tuple(implementation)
    unknown = [name for name in names if name not in KNOWN_IMPLEMENTATIONS]
    if unknown or not names:
        given = f"unknown {', '.join(map(repr, unknown))}" if unknown else "an empty sequence"
        raise ValueError(
            f"implementation: got {given}; expected one or more of "
            f"{', '.join(map(repr, KNOWN_IMPLEMENTATIONS))}, or None"
        )
    return TokamaxAttention(names)


def _zero_blocked_queries(
    out: Float[jax.Array, "batch queries heads head_dim"],
    mask: Bool[jax.Array, "#batch #heads #queries #keys"],
) -> Float[jax.Array, "batch queries heads head_dim"]:
    """Set the rows of queries without any allowed key to 0, where Tokamax returns the mean of V."""
    may_attend = mask.any(axis=-1, keepdims=True).transpose(0, 2, 1, 3)
    return jnp.where(may_attend, out, 0)
