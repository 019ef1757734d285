"""The feed-forward network, row by row: relu(x W1 + b1) W2 + b2.

Shapes: x (n, D), W1 (D, F), b1 (F,), W2 (F, D), b2 (D,), output (n, D).

Lean: `FeedForward`, `FeedForward.forward`, `FeedForward.backward`, `FeedForwardGrads`
(`Models/Transformer.lean`).
"""

from __future__ import annotations

from vitspec import scalars
from vitspec.layers.activation import relu, relu_backward, relu_jvp
from vitspec.records import Record, named, record
from vitspec.scalars import matmul
from vitspec.typing import Array, Scalar, typed


@record
class FeedForward(Record):
    """Two weights, stored (in, out), and their biases."""

    w1: Scalar[Array, "D F"]
    w2: Scalar[Array, "F D"]
    b1: Scalar[Array, "F"]
    b2: Scalar[Array, "D"]


@record
class FeedForwardGrads(Record):
    """Cotangents of the parameters of `FeedForward`."""

    d_w1: Scalar[Array, "D F"] = named("w1")
    d_w2: Scalar[Array, "F D"] = named("w2")
    d_b1: Scalar[Array, "F"] = named("b1")
    d_b2: Scalar[Array, "D"] = named("b2")


@record
class FeedForwardTrace(Record):
    """What the forward computed: its hidden layer before and after the ReLU, and its output."""

    hidden: Scalar[Array, "n F"]
    activated: Scalar[Array, "n F"]
    output: Scalar[Array, "n D"]


@typed
def feed_forward(ffn: FeedForward, x: Scalar[Array, "n D"]) -> Scalar[Array, "n D"]:
    """relu(x W1 + b1) W2 + b2."""
    return feed_forward_trace(ffn, x).output


@typed
def feed_forward_trace(ffn: FeedForward, x: Scalar[Array, "n D"]) -> FeedForwardTrace:
    """The forward, with its intermediate values."""
    hidden = matmul(x, ffn.w1)
    hidden += ffn.b1
    activated = relu(hidden)
    return FeedForwardTrace(hidden, activated, output=matmul(activated, ffn.w2) + ffn.b2)


@typed
def feed_forward_backward(
    ffn: FeedForward,
    x: Scalar[Array, "n D"],
    d_out: Scalar[Array, "n D"],
    trace: FeedForwardTrace | None = None,
) -> tuple[FeedForwardGrads, Scalar[Array, "n D"]]:
    """The cotangents of the parameters and of x.

    `trace` saves work where the caller has just run the forward at the same point.
    """
    trace = trace or feed_forward_trace(ffn, x)
    d_hidden = relu_backward(trace.hidden, matmul(d_out, ffn.w2.T))
    grads = FeedForwardGrads(
        d_w1=matmul(x.T, d_hidden),
        d_w2=matmul(trace.activated.T, d_out),
        d_b1=scalars.total(d_hidden, axis=0),
        d_b2=scalars.total(d_out, axis=0),
    )
    return grads, matmul(d_hidden, ffn.w1.T)


@typed
def feed_forward_jvp(
    ffn: FeedForward,
    x: Scalar[Array, "n D"],
    tangent: FeedForward,
    dx: Scalar[Array, "n D"],
    trace: FeedForwardTrace | None = None,
) -> Scalar[Array, "n D"]:
    """The tangent of the output along the parameters' `tangent` and dx."""
    trace = trace or feed_forward_trace(ffn, x)
    d_hidden = matmul(dx, ffn.w1) + matmul(x, tangent.w1) + tangent.b1
    d_activated = relu_jvp(trace.hidden, d_hidden)
    return matmul(d_activated, ffn.w2) + matmul(trace.activated, tangent.w2) + tangent.b2
