"""Scaled dot-product attention by Tokamax's implementations.

Tokamax (https://github.com/openxla/tokamax) offers several implementations of the function that
`vitfast.attention` describes; this is the only module that knows of it.

Lean: `flashAttention_eq_scaledDotProductAttention`, a theorem that each of them must obey.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import tokamax
from absl import flags
from jaxtyping import Bool, Float

from vitfast.attention import check_mask, second_feature
from vitfast.sharding import axes_of, on_mesh, place

# Tokamax up to 0.0.12 reads its options with absl, which on the first call parses the command line
# of whatever program is running and dies of the first option that it does not know (`pytest -q`).
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()

KNOWN_IMPLEMENTATIONS: tuple[str, ...] = (
    "mosaic",
    "triton",
    "cudnn",
    "mosaic_tpu",
    "xla_chunked",
    "xla",
)
"""Tokamax's names for its implementations; which of them run depends on the device."""

PREFERRED = {
    "gpu": ("mosaic", "triton", "xla"),
    "tpu": ("mosaic_tpu", "xla"),
    "cpu": ("xla",),
}
"""By platform, what `make_tokamax_attention()` tries, in this order."""


class NoWorkingAttention(ValueError):  # noqa: N818
    """No implementation that was asked for runs on this device, or takes these shapes."""


@dataclass(frozen=True)
class TokamaxAttention:
    """An `AttentionFn`. Two with the same implementations are equal, so programs are shared.

    Attributes:
        implementations: Tokamax's names, in the order in which to try them.
    """

    implementations: tuple[str, ...]

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
            NoWorkingAttention: none of the implementations runs here.
        """
        check_mask(mask)
        return self._first(query, key, value, mask)[1]

    def which(
        self,
        shape: Sequence[int],
        dtype: Any = jnp.float32,
        *,
        keys: int | None = None,
        masked: bool = False,
    ) -> str:
        """The implementation that runs for queries of this shape; nothing is computed.

        Args:
            shape: (batch, queries, heads, head_dim).
            dtype: scalar type of queries, keys and values.
            keys: how many keys; None is as many as queries.
            masked: whether there is a mask.

        Raises:
            NoWorkingAttention: none runs here.
        """
        batch, queries, heads, head_dim = shape
        keys = queries if keys is None else keys
        q = jax.ShapeDtypeStruct((batch, queries, heads, head_dim), dtype)
        k = jax.ShapeDtypeStruct((batch, keys, heads, head_dim), dtype)
        mask = jax.ShapeDtypeStruct((batch, 1, queries, keys), jnp.bool_) if masked else None
        names: list[str] = []

        def trace(*args: Any) -> jax.Array:
            name, out = self._first(*args)
            names.append(name)
            return out

        jax.eval_shape(trace, q, k, k, mask)
        return names[0]

    def _first(self, query: Any, key: Any, value: Any, mask: Any) -> tuple[str, jax.Array]:
        """The first implementation that takes the arguments, and its output."""
        # One by one, so as to know which ran: given several, Tokamax does not tell.
        refusals = []
        for name in self.implementations:
            try:
                return name, _tokamax(name, query, key, value, mask)
            except _REFUSALS as error:
                refusals.append(f"{name}: {(str(error).splitlines() or [''])[0]}")
        raise NoWorkingAttention(
            f"attention: none of {', '.join(self.implementations)} runs on this "
            f"{jax.default_backend()} for queries {query.shape} and keys {key.shape} of "
            f"{query.dtype} ({'; '.join(refusals)}); here run "
            f"{', '.join(working_implementations())}"
        )


_REFUSALS = (NotImplementedError, ExceptionGroup, ValueError)
"""What Tokamax raises, while tracing, for a device or shapes that it does not support."""


def make_tokamax_attention(
    implementation: str | Sequence[str] | None = None,
) -> TokamaxAttention:
    """An attention by the first of Tokamax's implementations that supports the device and shapes.

    Args:
        implementation: a name of `KNOWN_IMPLEMENTATIONS`, several in the order of preference, such
            as ["mosaic", "triton", "xla"], or None for what suits the platform (`PREFERRED`). "xla"
            runs everywhere; "xla_chunked" needs less memory for long sequences, but does not take
            float64 from 1024 keys on.

    Raises:
        ValueError: a name is not known, or there is none.

    >>> make_tokamax_attention(["triton", "xla"])
    TokamaxAttention(implementations=('triton', 'xla'))
    """
    if implementation is None:
        return TokamaxAttention(PREFERRED.get(jax.default_backend(), ("xla",)))
    names = (implementation,) if isinstance(implementation, str) else tuple(implementation)
    unknown = [name for name in names if name not in KNOWN_IMPLEMENTATIONS]
    if unknown or not names:
        given = f"unknown {', '.join(map(repr, unknown))}" if unknown else "an empty sequence"
        raise ValueError(
            f"implementation: got {given}; expected one or more of "
            f"{', '.join(map(repr, KNOWN_IMPLEMENTATIONS))}, or None; here run "
            f"{', '.join(map(repr, working_implementations()))}"
        )
    return TokamaxAttention(names)


@functools.cache
def working_implementations() -> tuple[str, ...]:
    """The implementations that run on this device, in bfloat16 or float32, with heads of 64."""
    return tuple(name for name in KNOWN_IMPLEMENTATIONS if refusal(name) is None)


def refusal(name: str) -> str | None:
    """Why an implementation does not run on this device, in Tokamax's words; None if it does."""
    problem = None
    for dtype in (jnp.bfloat16, jnp.float32):  # some know only the one
        x = jax.ShapeDtypeStruct((1, 128, 1, 64), dtype)
        try:
            jax.eval_shape(functools.partial(_tokamax, name, mask=None), x, x, x)
        except _REFUSALS as error:
            problem = str(error)
        else:
            return None
    return problem


def _tokamax(name: str, query: Any, key: Any, value: Any, mask: Any) -> jax.Array:
    """One implementation, with its peculiarities mended."""
    if query.dtype == jnp.float64 and key.shape[1] >= FLOAT64_UP_TO.get(name, math.inf):
        # Left to itself, it raises a TypeError from inside a loop, and no other would be tried.
        raise NotImplementedError("float32 is all that it carries through its loops.")
    head_dim, width = query.shape[-1], value.shape[-1]
    if head_dim == 1:
        query, key, value = map(second_feature, (query, key, value))
    sharding = None
    if on_mesh():
        # Triton and the chunked implementation cannot do without; all split batch and heads then.
        sharding = jax.typeof(query).sharding
        if mask is not None:
            batch, _, heads, _ = axes_of(query)
            mask = place(
                mask,
                batch if mask.shape[0] > 1 else None,
                heads if mask.shape[1] > 1 else None,
            )
    out = tokamax.dot_product_attention(
        query,
        key,
        value,
        mask=mask,
        scale=1 / math.sqrt(head_dim),
        precision=_precision(query.dtype),
        implementation=name,
        q_sharding=sharding,
    )[..., :width]
    return out if mask is None else _zero_blocked_queries(out, mask)


FLOAT64_UP_TO = {"xla_chunked": 1024, "triton": 0, "mosaic": 0, "mosaic_tpu": 0, "cudnn": 0}
"""The number of keys from which on an implementation does not take float64."""


def _precision(dtype: Any) -> str:
    """Full precision, in words that Tokamax takes.

    Of "highest" it makes, for float16, a product that XLA has not got for the CPU.
    """
    float16_on_a_cpu = dtype == jnp.float16 and jax.default_backend() == "cpu"
    return "F32_F32_F32" if float16_on_a_cpu else "highest"


def _zero_blocked_queries(
    out: Float[jax.Array, "batch queries heads head_dim"],
    mask: Bool[jax.Array, "#batch #heads #queries #keys"],
) -> Float[jax.Array, "batch queries heads head_dim"]:
    """Set the rows of queries without any allowed key to 0, where Tokamax returns the mean of V."""
    may_attend = mask.any(axis=-1, keepdims=True).transpose(0, 2, 1, 3)
    return jnp.where(may_attend, out, 0)
