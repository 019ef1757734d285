"""The linear layer that ends the model: y = W x + b on one vector.

Shapes: x (D,), W (K, D), b (K,), y (K,). This is the one weight that is stored (out, in).

Lean: `LinearSpec`, `linearSpec`, `linearBackwardSpec` (`Layers/Linear.lean`).
"""

from __future__ import annotations

from vitspec.records import Record, named, record
from vitspec.scalars import matmul
from vitspec.typing import Array, Scalar, typed


@record
class LinearSpec(Record):
    """Weights W and bias b."""

    weights: Scalar[Array, "K D"]
    bias: Scalar[Array, "K"]


@record
class LinearGrads(Record):
    """Cotangents of the parameters of `LinearSpec`."""

    d_weights: Scalar[Array, "K D"] = named("weights")
    d_bias: Scalar[Array, "K"] = named("bias")


@typed
def linear(spec: LinearSpec, x: Scalar[Array, "D"]) -> Scalar[Array, "K"]:
    """W x + b."""
    return matmul(spec.weights, x) + spec.bias


@typed
def linear_backward(
    spec: LinearSpec, x: Scalar[Array, "D"], d_out: Scalar[Array, "K"]
) -> tuple[LinearGrads, Scalar[Array, "D"]]:
    """The cotangents (d_out x^T, d_out) of the parameters and W^T d_out of x."""
    grads = LinearGrads(d_weights=d_out[:, None] * x[None, :], d_bias=d_out.copy())
    return grads, matmul(spec.weights.T, d_out)


@typed
def linear_jvp(
    spec: LinearSpec, x: Scalar[Array, "D"], tangent: LinearSpec, dx: Scalar[Array, "D"]
) -> Scalar[Array, "K"]:
    """The tangent W dx + dW x + db of the output."""
    return matmul(spec.weights, dx) + matmul(tangent.weights, x) + tangent.bias
