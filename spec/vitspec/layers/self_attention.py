"""Attention with several heads, as in pretrained ViTs: biases, a mask, factors on the weights.

x (n, D), Wq, Wk, Wv, Wo (D, D), biases (D,) or none, H heads of width d = D / H:

    Q = x Wq + bq, K = x Wk + bk, V = x Wv + bv;   column h d + e of row i is entry e in head h
    A = softmax(Q K^T / sqrt(d)), hard-masked      out = (the heads' (F * A) V side by side) Wo + bo

F multiplies the weights, after the softmax: 0 for a head that is masked away, 0 or 1 / (1 - p) for
each weight under dropout. Its shape is (H, n, n), or 1 in the place of an axis.

The gradient of bk is 0: a shift of all scores of a query changes no weight.

Source: Vaswani et al., 1706.03762; Hugging Face's `ViTSelfAttention`.
"""

from __future__ import annotations

from vitspec.layers.activation import softmax_backward_from_weights
from vitspec.layers.affine import affine, affine_jvp, bias_backward, times
from vitspec.layers.attention import attention_scale_denom, attention_weights
from vitspec.layers.multi_head_attention import check_heads, combine_heads, split_heads
from vitspec.records import Record, named, record
from vitspec.scalars import matmul
from vitspec.typing import Array, Bool, Scalar, typed


@record
class SelfAttention(Record):
    """Four weights, stored (in, out), their biases, and the static number of heads."""

    head_count: int
    wq: Scalar[Array, "D D"]
    wk: Scalar[Array, "D D"]
    wv: Scalar[Array, "D D"]
    wo: Scalar[Array, "D D"]
    bq: Scalar[Array, "D"] | None = None
    bk: Scalar[Array, "D"] | None = None
    bv: Scalar[Array, "D"] | None = None
    bo: Scalar[Array, "D"] | None = None

    def __post_init__(self) -> None:
        """Check that the heads divide D."""
        super().__post_init__()
        check_heads(self.head_count, self.wq.shape[1])


@record
class SelfAttentionGrads(Record):
    """Cotangents of the parameters of `SelfAttention`, None where there is no bias."""

    d_wq: Scalar[Array, "D D"] = named("wq")
    d_wk: Scalar[Array, "D D"] = named("wk")
    d_wv: Scalar[Array, "D D"] = named("wv")
    d_wo: Scalar[Array, "D D"] = named("wo")
    d_bq: Scalar[Array, "D"] | None = named("bq")
    d_bk: Scalar[Array, "D"] | None = named("bk")
    d_bv: Scalar[Array, "D"] | None = named("bv")
    d_bo: Scalar[Array, "D"] | None = named("bo")


@record
class SelfAttentionTrace(Record):
    """What the forward computed: Q, K, V and weights A by head, heads side by side, output."""

    q: Scalar[Array, "H n d"]
    k: Scalar[Array, "H n d"]
    v: Scalar[Array, "H n d"]
    weights: Scalar[Array, "H n n"]
    concat: Scalar[Array, "n D"]
    output: Scalar[Array, "n D"]


@typed
def self_attention_trace(
    mha: SelfAttention,
    x: Scalar[Array, "n D"],
    mask: Bool[Array, "n n"] | None = None,
    factors: Scalar[Array, "#H #n #n"] | None = None,
) -> SelfAttentionTrace:
    """The forward, with its intermediate values.

    Args:
        mha: the parameters.
        x: one row for each token.
        mask: which keys each query may attend to (True); None is all.
        factors: F; None is 1.
    """
    q = split_heads(affine(x, mha.wq, mha.bq), mha.head_count)
    k = split_heads(affine(x, mha.wk, mha.bk), mha.head_count)
    v = split_heads(affine(x, mha.wv, mha.bv), mha.head_count)
    weights = attention_weights(q, k, mask)
    concat = combine_heads(matmul(times(weights, factors), v))
    return SelfAttentionTrace(q, k, v, weights, concat, output=affine(concat, mha.wo, mha.bo))


@typed
def self_attention_backward(
    mha: SelfAttention,
    x: Scalar[Array, "n D"],
    d_out: Scalar[Array, "n D"],
    trace: SelfAttentionTrace,
    factors: Scalar[Array, "#H #n #n"] | None = None,
) -> tuple[SelfAttentionGrads, Scalar[Array, "n D"]]:
    """The cotangents of the parameters and of x.

    With g the cotangent of a head's output: dV = (F * A)^T g, dA = F * (g V^T), and from there as
    in `vitspec.layers.attention`. Where the mask blocks a weight, A is 0, and so is what follows.
    """
    t, scale = trace, 1 / attention_scale_denom(trace.q.shape[-1], x.dtype)
    d_heads = split_heads(matmul(d_out, mha.wo.T), mha.head_count)
    d_weights = times(matmul(d_heads, t.v.swapaxes(-1, -2)), factors)
    d_scores = softmax_backward_from_weights(t.weights, d_weights) * scale
    d_q = combine_heads(matmul(d_scores, t.k))
    d_k = combine_heads(matmul(d_scores.swapaxes(-1, -2), t.q))
    d_v = combine_heads(matmul(times(t.weights, factors).swapaxes(-1, -2), d_heads))
    grads = SelfAttentionGrads(
        d_wq=matmul(x.T, d_q),
        d_wk=matmul(x.T, d_k),
        d_wv=matmul(x.T, d_v),
        d_wo=matmul(t.concat.T, d_out),
        d_bq=bias_backward(mha.bq, d_q),
        d_bk=bias_backward(mha.bk, d_k),
        d_bv=bias_backward(mha.bv, d_v),
        d_bo=bias_backward(mha.bo, d_out),
    )
    return grads, matmul(d_q, mha.wq.T) + matmul(d_k, mha.wk.T) + matmul(d_v, mha.wv.T)


@typed
def self_attention_jvp(
    mha: SelfAttention,
    x: Scalar[Array, "n D"],
    tangent: SelfAttention,
    dx: Scalar[Array, "n D"],
    trace: SelfAttentionTrace,
    factors: Scalar[Array, "#H #n #n"] | None = None,
) -> Scalar[Array, "n D"]:
    """The tangent of the output along the parameters' `tangent` and dx."""
    t, scale = trace, 1 / attention_scale_denom(trace.q.shape[-1], x.dtype)
    dq = split_heads(affine_jvp(x, mha.wq, dx, tangent.wq, tangent.bq), mha.head_count)
    dk = split_heads(affine_jvp(x, mha.wk, dx, tangent.wk, tangent.bk), mha.head_count)
    dv = split_heads(affine_jvp(x, mha.wv, dx, tangent.wv, tangent.bv), mha.head_count)
    d_scores = (matmul(dq, t.k.swapaxes(-1, -2)) + matmul(t.q, dk.swapaxes(-1, -2))) * scale
    d_weights = times(softmax_backward_from_weights(t.weights, d_scores), factors)
    d_heads = matmul(d_weights, t.v) + matmul(times(t.weights, factors), dv)
    return affine_jvp(t.concat, mha.wo, combine_heads(d_heads), tangent.wo, tangent.bo)
