"""Attention with several heads, without biases.

x (n, D), Wq, Wk, Wv (D, I), Wo (I, D), I = H d:

    Q = x Wq, K = x Wk, V = x Wv;   column h d + e of row i is entry e of token i in head h
    out = (the heads' outputs side by side) Wo

If the heads do not divide D, attention is narrower (I < D), and nothing else changes. With more
heads than D, d = I = 0 and attention is exactly zero.

Lean: `MultiHeadAttention`, `splitHeadsSpec`, `combineHeadsSpec`, `MultiHeadAttentionBackward`,
`MultiHeadAttentionJvp` (`Layers/Attention.lean`), `MultiHeadAttentionGrads`
(`Models/Transformer.lean`).
"""

from __future__ import annotations

from vitspec.errors import InvalidArray
from vitspec.layers.attention import (
    attention_weights,
    scaled_dot_product_attention_backward,
    scaled_dot_product_attention_jvp,
)
from vitspec.records import Record, named, record
from vitspec.scalars import matmul
from vitspec.typing import Array, Bool, Scalar, typed


@record
class MultiHeadAttention(Record):
    """Four weights, stored (in, out), and the static number of heads, which divides I."""

    head_count: int
    wq: Scalar[Array, "D I"]
    wk: Scalar[Array, "D I"]
    wv: Scalar[Array, "D I"]
    wo: Scalar[Array, "I D"]

    def __post_init__(self) -> None:
        """Check that the heads divide I."""
        super().__post_init__()
        check_heads(self.head_count, self.wq.shape[1])


@record
class MultiHeadAttentionGrads(Record):
    """Cotangents of the parameters of `MultiHeadAttention`."""

    d_wq: Scalar[Array, "D I"] = named("wq")
    d_wk: Scalar[Array, "D I"] = named("wk")
    d_wv: Scalar[Array, "D I"] = named("wv")
    d_wo: Scalar[Array, "I D"] = named("wo")


@record
class MultiHeadAttentionTrace(Record):
    """What the forward computed: Q, K, V and weights A by head, heads side by side, output."""

    q: Scalar[Array, "H n d"]
    k: Scalar[Array, "H n d"]
    v: Scalar[Array, "H n d"]
    weights: Scalar[Array, "H n n"]
    concat: Scalar[Array, "n I"]
    output: Scalar[Array, "n D"]


def check_heads(head_count: int, I: int) -> None:  # noqa: E741 - Lean's letter
    """Raise `InvalidArray` unless I columns can be shared out evenly over the heads."""
    if head_count < 1 or I % head_count:
        raise InvalidArray(
            f"head_count must be positive and divide the heads' width I, got {head_count} and {I}"
        )


@typed
def split_heads(x: Scalar[Array, "n I"], head_count: int) -> Scalar[Array, "H n d"]:
    """Column h * d + e of row i becomes entry [h, i, e]."""
    n, I = x.shape  # noqa: E741 - Lean's letter for the width of all heads
    check_heads(head_count, I)
    return x.reshape(n, head_count, I // head_count).transpose(1, 0, 2)


@typed
def combine_heads(x: Scalar[Array, "H n d"]) -> Scalar[Array, "n I"]:
    """The inverse of `split_heads`, and its adjoint."""
    H, n, d = x.shape
    return x.transpose(1, 0, 2).reshape(n, H * d)


@typed
def multi_head_attention(
    mha: MultiHeadAttention, x: Scalar[Array, "n D"], mask: Bool[Array, "n n"] | None = None
) -> Scalar[Array, "n D"]:
    """Attention of the rows of x to each other; every head has the same mask."""
    return multi_head_attention_trace(mha, x, mask).output


@typed
def multi_head_attention_trace(
    mha: MultiHeadAttention, x: Scalar[Array, "n D"], mask: Bool[Array, "n n"] | None = None
) -> MultiHeadAttentionTrace:
    """The forward, with its intermediate values."""
    q = split_heads(matmul(x, mha.wq), mha.head_count)
    k = split_heads(matmul(x, mha.wk), mha.head_count)
    v = split_heads(matmul(x, mha.wv), mha.head_count)
    weights = attention_weights(q, k, mask)
    concat = combine_heads(matmul(weights, v))
    return MultiHeadAttentionTrace(q, k, v, weights, concat, output=matmul(concat, mha.wo))


@typed
def multi_head_attention_backward(
    mha: MultiHeadAttention,
    x: Scalar[Array, "n D"],
    d_out: Scalar[Array, "n D"],
    mask: Bool[Array, "n n"] | None = None,
    trace: MultiHeadAttentionTrace | None = None,
) -> tuple[MultiHeadAttentionGrads, Scalar[Array, "n D"]]:
    """The cotangents of the parameters and of x.

    `trace` saves work where the caller has just run the forward at the same point.
    """
    t = trace or multi_head_attention_trace(mha, x, mask)
    d_heads = split_heads(matmul(d_out, mha.wo.T), mha.head_count)
    by_head = scaled_dot_product_attention_backward(t.q, t.k, t.v, d_heads, mask, t.weights)
    d_q, d_k, d_v = (combine_heads(d) for d in by_head)
    grads = MultiHeadAttentionGrads(
        d_wq=matmul(x.T, d_q),
        d_wk=matmul(x.T, d_k),
        d_wv=matmul(x.T, d_v),
        d_wo=matmul(t.concat.T, d_out),
    )
    return grads, matmul(d_q, mha.wq.T) + matmul(d_k, mha.wk.T) + matmul(d_v, mha.wv.T)


@typed
def multi_head_attention_jvp(
    mha: MultiHeadAttention,
    x: Scalar[Array, "n D"],
    tangent: MultiHeadAttention,
    dx: Scalar[Array, "n D"],
    mask: Bool[Array, "n n"] | None = None,
    trace: MultiHeadAttentionTrace | None = None,
) -> Scalar[Array, "n D"]:
    """The tangent of the output along the parameters' `tangent` and dx."""
    t = trace or multi_head_attention_trace(mha, x, mask)
    dq = split_heads(matmul(dx, mha.wq) + matmul(x, tangent.wq), mha.head_count)
    dk = split_heads(matmul(dx, mha.wk) + matmul(x, tangent.wk), mha.head_count)
    dv = split_heads(matmul(dx, mha.wv) + matmul(x, tangent.wv), mha.head_count)
    d_heads = scaled_dot_product_attention_jvp(
        t.q, t.k, t.v, dq, dk, dv, mask=mask, weights=t.weights
    )
    return matmul(combine_heads(d_heads), mha.wo) + matmul(t.concat, tangent.wo)
