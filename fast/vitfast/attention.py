"""Scaled dot-product attention: Tokamax's implementations, a plain one, and anybody's.

For each batch entry and head, with Q (T, h), K (S, h), V (S, h):

    S = Q K^T / sqrt(h)      A = softmax(S), or hard-masked (True = may attend)      out = A V

A query that may attend to nothing has output 0, and passes on cotangent 0.

Any other attention fits in their place: the model calls a function of the type `AttentionFn`, which
needs only to compute the above.

Tokamax (https://github.com/openxla/tokamax) offers several implementations of this function; this
is the only module that knows of it. Lean: `scaledDotProductAttention`, and the theorem
`flashAttention_eq_scaledDotProductAttention`, which every implementation here must obey.
"""

from __future__ import annotations

import functools
import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import tokamax
from absl import flags
from jaxtyping import Bool, Float

from vitfast.ops import accumulate
from vitfast.sharding import axes_of, on_mesh, place
from vitspec.errors import InvalidArray

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


class NoWorkingAttention(ValueError):  # noqa: N818
    """No implementation that was asked for runs on this device, or takes these shapes."""


# ---- Tokamax -------------------------------------------------------------------------------------


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
        _check_mask(mask)
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
        query, key, value = map(_second_feature, (query, key, value))
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


def _second_feature(x: jax.Array) -> jax.Array:
    """Heads of width 1 with a second feature that is 0, which changes no number.

    On products over an axis of size 1, XLA's compiler for the CPU (jaxlib 0.10.2, 0.12.0) aborts
    from some forty tokens on.
    """
    return jnp.pad(x, [(0, 0)] * 3 + [(0, 1)])


def _check_mask(mask: jax.Array | None) -> None:
    if mask is not None and mask.dtype != bool:
        raise InvalidArray(
            f"mask: expected booleans, True = may attend, got {mask.dtype}; an additive mask "
            "becomes one by `mask == 0`"
        )


# ---- plain ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlainAttention:
    """An `AttentionFn` that writes the formula down, and on a CPU is the fastest.

    It keeps the exponentials of all scores, (batch, heads, queries, keys), for the backward.

    It has the weights, so it can multiply them: by `factors` F, out = (F * A) V, which are 0 or
    1 / (1 - p) under dropout. Factors have no derivative.

    Attributes:
        custom_vjp: whether the backward is the one written by hand; without it, forward mode works.
    """

    custom_vjp: bool = True

    takes_factors: typing.ClassVar[bool] = True
    """Whether it can be called with `factors`, which any attention may say of itself."""

    def __call__(
        self,
        query: Float[jax.Array, "batch queries heads head_dim"],
        key: Float[jax.Array, "batch keys heads head_dim"],
        value: Float[jax.Array, "batch keys heads head_dim"],
        mask: Bool[jax.Array, "#batch #heads #queries #keys"] | None = None,
        factors: Float[jax.Array, "#batch #heads #queries #keys"] | None = None,
    ) -> Float[jax.Array, "batch queries heads head_dim"]:
        """The attention of each query over all keys that the mask allows.

        Raises:
            InvalidArray: the mask is not Boolean.
        """
        _check_mask(mask)
        width = value.shape[-1]
        scale = 1 / math.sqrt(query.shape[-1])
        if query.shape[-1] == 1:
            query, key, value = map(_second_feature, (query, key, value))
        # Heads before rows: each head's product is then one of plain matrices, in place.
        q, k, v = map(_swap_heads_and_rows, (query * scale, key, value))
        attend = _attend_by_hand if self.custom_vjp else _attend
        if factors is not None:
            factors = jax.lax.stop_gradient(factors)
        return _swap_heads_and_rows(attend(q, k, v, mask, factors))[..., :width]


def attention_weights(
    query: Float[jax.Array, "batch queries heads head_dim"],
    key: Float[jax.Array, "batch keys heads head_dim"],
    mask: Bool[jax.Array, "#batch #heads #queries #keys"] | None = None,
) -> Float[jax.Array, "batch heads queries keys"]:
    """The weights A, which no fused attention ever has as a whole."""
    _check_mask(mask)
    q, k = map(_swap_heads_and_rows, (query / math.sqrt(query.shape[-1]), key))
    exponentials, total = _exponentials(q, k, mask)
    return (exponentials / total).astype(query.dtype)


def _attend(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, factors: jax.Array | None
) -> jax.Array:
    return _attend_and_keep(q, k, v, mask, factors)[0]


_attend_by_hand = jax.custom_vjp(_attend)


def _attend_and_keep(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, factors: jax.Array | None
) -> Any:
    """The output (B, H, T, h), and what the backward needs."""
    exponentials, total = _exponentials(q, k, mask)
    exponentials = exponentials.astype(q.dtype)
    # Divided after the product: T h quotients for each head, not T S.
    out = (_matmul(_times(exponentials, factors), v) / total).astype(q.dtype)
    return out, (q, k, v, exponentials, total, out, factors)


def _attend_backward(saved: Any, d_out: jax.Array) -> Any:
    """The cotangents of Q, K and V.

    With E = exp(S - max), z its row sums, O = (F * E) V / z, and d = d_O / z:

    d_V = (F * E)^T d,    d_S = E (F * d V^T - sum(d O)),    d_Q = d_S K,    d_K = d_S^T Q
    """
    q, k, v, exponentials, total, out, factors = saved
    d = (d_out / total).astype(q.dtype)
    d_v = _matmul(_times(exponentials, factors).swapaxes(-1, -2), d)
    shift = (d.astype(total.dtype) * out).sum(axis=-1, keepdims=True)
    d_weights = _times(_matmul(d, v.swapaxes(-1, -2)), factors)
    d_scores = (exponentials * (d_weights - shift)).astype(q.dtype)
    d_q, d_k = _matmul(d_scores, k), _matmul(d_scores.swapaxes(-1, -2), q)
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None, None


def _times(x: jax.Array, factors: jax.Array | None) -> jax.Array:
    return x if factors is None else x * factors.astype(x.dtype)


_attend_by_hand.defvjp(_attend_and_keep, _attend_backward)


def _exponentials(
    q: jax.Array, k: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """exp(S - max of its row), 0 where masked, and its row sums, 1 where all of a row is masked."""
    scores = _matmul(q, k.swapaxes(-1, -2))
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    # A softmax ignores a shift of its row, hence so does its derivative.
    shifted = scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    exponentials = jnp.exp(shifted)
    if mask is None:
        return exponentials, exponentials.sum(axis=-1, keepdims=True)
    exponentials = jnp.where(mask, exponentials, 0)
    total = exponentials.sum(axis=-1, keepdims=True)
    return exponentials, jnp.where(total == 0, 1, total)


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """Products over the last two dimensions, in full precision, in float32 at least."""
    return accumulate(
        lambda a, b, dtype: jnp.matmul(a, b, precision="highest", preferred_element_type=dtype),
        a,
        b,
        jnp.promote_types(a.dtype, jnp.float32),
    )


def _swap_heads_and_rows(x: jax.Array) -> jax.Array:
    return x.transpose(0, 2, 1, 3)
