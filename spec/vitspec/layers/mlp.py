"""The feed-forward network of pretrained ViTs, row by row: (F * act(x W1 + b1)) W2 + b2.

Shapes: x (n, D), W1 (D, F), b1 (F,), W2 (F, D), b2 (D,), output (n, D); act is one of
`vitspec.layers.gelu.ACTIVATIONS`. The factors are those of dropout on the hidden layer, of shape
(n, F), or 1 in the place of an axis, or none. The cotangents and the intermediate values are those
of the Lean mirror's `FeedForward`; the activated layer is the one with factors.

Source: Dosovitskiy et al., 2010.11929; Hugging Face's `ViTIntermediate` and `ViTOutput`.
"""

from __future__ import annotations

from vitspec import scalars
from vitspec.layers.affine import affine, affine_jvp, times
from vitspec.layers.feed_forward import FeedForwardGrads, FeedForwardTrace
from vitspec.layers.gelu import ACTIVATIONS
from vitspec.records import Record, record
from vitspec.scalars import matmul
from vitspec.typing import Array, Scalar, typed


@record
class Mlp(Record):
    """Two weights, stored (in, out), their biases, and the static name of the activation."""

    activation: str
    w1: Scalar[Array, "D F"]
    w2: Scalar[Array, "F D"]
    b1: Scalar[Array, "F"]
    b2: Scalar[Array, "D"]


@typed
def mlp_trace(
    mlp: Mlp, x: Scalar[Array, "n D"], factors: Scalar[Array, "#n #F"] | None = None
) -> FeedForwardTrace:
    """The forward, with its intermediate values."""
    hidden = affine(x, mlp.w1, mlp.b1)
    activated = times(ACTIVATIONS[mlp.activation].function(hidden), factors)
    return FeedForwardTrace(hidden, activated, output=affine(activated, mlp.w2, mlp.b2))


@typed
def mlp_backward(
    mlp: Mlp,
    x: Scalar[Array, "n D"],
    d_out: Scalar[Array, "n D"],
    trace: FeedForwardTrace,
    factors: Scalar[Array, "#n #F"] | None = None,
) -> tuple[FeedForwardGrads, Scalar[Array, "n D"]]:
    """The cotangents of the parameters and of x."""
    d_activated = times(matmul(d_out, mlp.w2.T), factors)
    d_hidden = d_activated * ACTIVATIONS[mlp.activation].deriv(trace.hidden)
    grads = FeedForwardGrads(
        d_w1=matmul(x.T, d_hidden),
        d_w2=matmul(trace.activated.T, d_out),
        d_b1=scalars.total(d_hidden, axis=0),
        d_b2=scalars.total(d_out, axis=0),
    )
    return grads, matmul(d_hidden, mlp.w1.T)


@typed
def mlp_jvp(
    mlp: Mlp,
    x: Scalar[Array, "n D"],
    tangent: Mlp,
    dx: Scalar[Array, "n D"],
    trace: FeedForwardTrace,
    factors: Scalar[Array, "#n #F"] | None = None,
) -> Scalar[Array, "n D"]:
    """The tangent of the output along the parameters' `tangent` and dx."""
    d_hidden = affine_jvp(x, mlp.w1, dx, tangent.w1, tangent.b1)
    d_activated = times(d_hidden * ACTIVATIONS[mlp.activation].deriv(trace.hidden), factors)
    return affine_jvp(trace.activated, mlp.w2, d_activated, tangent.w2, tangent.b2)
