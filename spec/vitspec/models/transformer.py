"""The post-norm Transformer encoder.

One layer, on x (n, D):

    r1 = x + MHA(x)      n1 = LN1(r1)      r2 = n1 + FFN(n1)      y = LN2(r2)

The encoder composes its layers; with no layers it is the identity. The backward pass runs the
forward, then walks back from the last layer to the first. Its gradients come in the order of the
layers: Lean's list is reversed once too often (`docs/deviations.md`, DEV-1).

Lean: `TransformerEncoderLayer`, `TransformerEncoder` and their `.forward`, `.backward`,
`TransformerEncoderLayerGrads` (`Models/Transformer.lean`).
"""

from __future__ import annotations

from vitspec.errors import InvalidParameters
from vitspec.layers.feed_forward import (
    FeedForward,
    FeedForwardGrads,
    FeedForwardTrace,
    feed_forward_backward,
    feed_forward_jvp,
    feed_forward_trace,
)
from vitspec.layers.multi_head_attention import (
    MultiHeadAttention,
    MultiHeadAttentionGrads,
    MultiHeadAttentionTrace,
    multi_head_attention_backward,
    multi_head_attention_jvp,
    multi_head_attention_trace,
)
from vitspec.layers.normalization import layer_norm, layer_norm_backward, layer_norm_jvp
from vitspec.records import Record, named, record
from vitspec.typing import Array, Scalar, TupleOf, typed


@record
class TransformerEncoderLayer(Record):
    """Attention, feed-forward and the two layer normalisations that follow them."""

    mha: MultiHeadAttention
    ffn: FeedForward
    norm1_gamma: Scalar[Array, "D"]
    norm1_beta: Scalar[Array, "D"]
    norm2_gamma: Scalar[Array, "D"]
    norm2_beta: Scalar[Array, "D"]


@record
class TransformerEncoderLayerGrads(Record):
    """Cotangents of the parameters of `TransformerEncoderLayer`."""

    mha: MultiHeadAttentionGrads
    ffn: FeedForwardGrads
    d_norm1_gamma: Scalar[Array, "D"] = named("norm1_gamma")
    d_norm1_beta: Scalar[Array, "D"] = named("norm1_beta")
    d_norm2_gamma: Scalar[Array, "D"] = named("norm2_gamma")
    d_norm2_beta: Scalar[Array, "D"] = named("norm2_beta")


@record
class EncoderLayerTrace(Record):
    """What one layer computed from its input."""

    input: Scalar[Array, "n D"]
    mha: MultiHeadAttentionTrace
    residual1: Scalar[Array, "n D"]
    normed1: Scalar[Array, "n D"]
    ffn: FeedForwardTrace
    residual2: Scalar[Array, "n D"]
    output: Scalar[Array, "n D"]


@typed
def encoder_layer(layer: TransformerEncoderLayer, x: Scalar[Array, "n D"]) -> Scalar[Array, "n D"]:
    """LN2(n1 + FFN(n1)) with n1 = LN1(x + MHA(x))."""
    return encoder_layer_trace(layer, x).output


@typed
def encoder_layer_trace(
    layer: TransformerEncoderLayer, x: Scalar[Array, "n D"]
) -> EncoderLayerTrace:
    """The forward, with its intermediate values."""
    mha = multi_head_attention_trace(layer.mha, x)
    residual1 = x + mha.output
    normed1 = layer_norm(residual1, layer.norm1_gamma, layer.norm1_beta)
    ffn = feed_forward_trace(layer.ffn, normed1)
    residual2 = normed1 + ffn.output
    output = layer_norm(residual2, layer.norm2_gamma, layer.norm2_beta)
    return EncoderLayerTrace(x, mha, residual1, normed1, ffn, residual2, output)


@typed
def encoder_layer_backward(
    layer: TransformerEncoderLayer,
    x: Scalar[Array, "n D"],
    d_out: Scalar[Array, "n D"],
    trace: EncoderLayerTrace | None = None,
) -> tuple[TransformerEncoderLayerGrads, Scalar[Array, "n D"]]:
    """The cotangents of the parameters and of x.

    `trace` saves work where the caller has just run the forward at the same point.
    """
    t = trace or encoder_layer_trace(layer, x)
    d_residual2, d_gamma2, d_beta2 = layer_norm_backward(t.residual2, layer.norm2_gamma, d_out)
    ffn_grads, d_from_ffn = feed_forward_backward(layer.ffn, t.normed1, d_residual2, t.ffn)
    d_normed1 = d_residual2 + d_from_ffn
    d_residual1, d_gamma1, d_beta1 = layer_norm_backward(t.residual1, layer.norm1_gamma, d_normed1)
    mha_grads, d_from_mha = multi_head_attention_backward(layer.mha, x, d_residual1, trace=t.mha)
    grads = TransformerEncoderLayerGrads(
        mha=mha_grads,
        ffn=ffn_grads,
        d_norm1_gamma=d_gamma1,
        d_norm1_beta=d_beta1,
        d_norm2_gamma=d_gamma2,
        d_norm2_beta=d_beta2,
    )
    return grads, d_residual1 + d_from_mha


@typed
def encoder_layer_jvp(
    layer: TransformerEncoderLayer,
    x: Scalar[Array, "n D"],
    tangent: TransformerEncoderLayer,
    dx: Scalar[Array, "n D"],
    trace: EncoderLayerTrace | None = None,
) -> Scalar[Array, "n D"]:
    """The tangent of the output along the parameters' `tangent` and dx."""
    t = trace or encoder_layer_trace(layer, x)
    d_residual1 = dx + multi_head_attention_jvp(layer.mha, x, tangent.mha, dx, trace=t.mha)
    d_normed1 = layer_norm_jvp(
        t.residual1, layer.norm1_gamma, d_residual1, tangent.norm1_gamma, tangent.norm1_beta
    )
    d_from_ffn = feed_forward_jvp(layer.ffn, t.normed1, tangent.ffn, d_normed1, t.ffn)
    return layer_norm_jvp(
        t.residual2,
        layer.norm2_gamma,
        d_normed1 + d_from_ffn,
        tangent.norm2_gamma,
        tangent.norm2_beta,
    )


@record
class TransformerEncoder(Record):
    """Layers, first to last."""

    layers: TupleOf[TransformerEncoderLayer]


@typed
def encoder(spec: TransformerEncoder, x: Scalar[Array, "n D"]) -> Scalar[Array, "n D"]:
    """The layers, one after the other."""
    for layer in spec.layers:
        x = encoder_layer(layer, x)
    return x


@typed
def encoder_trace(spec: TransformerEncoder, x: Scalar[Array, "n D"]) -> TupleOf[EncoderLayerTrace]:
    """What each layer computed, first to last."""
    traces = []
    for layer in spec.layers:
        traces.append(encoder_layer_trace(layer, x))
        x = traces[-1].output
    return tuple(traces)


@typed
def encoder_backward(
    spec: TransformerEncoder,
    x: Scalar[Array, "n D"],
    d_out: Scalar[Array, "n D"],
    traces: TupleOf[EncoderLayerTrace] | None = None,
) -> tuple[TupleOf[TransformerEncoderLayerGrads], Scalar[Array, "n D"]]:
    """The cotangents of the layers' parameters, first layer first, and of x.

    `traces` saves work where the caller has just run the forward at the same point.
    """
    traces = encoder_trace(spec, x) if traces is None else traces
    last_first = []
    for layer, trace in zip(reversed(spec.layers), reversed(traces), strict=True):
        grads, d_out = encoder_layer_backward(layer, trace.input, d_out, trace)
        last_first.append(grads)
    return tuple(reversed(last_first)), d_out


@typed
def encoder_jvp(
    spec: TransformerEncoder,
    x: Scalar[Array, "n D"],
    tangent: TransformerEncoder,
    dx: Scalar[Array, "n D"],
    traces: TupleOf[EncoderLayerTrace] | None = None,
) -> Scalar[Array, "n D"]:
    """The tangent of the output along the layers' `tangent` and dx."""
    if len(tangent.layers) != len(spec.layers):
        problem = f"expected {len(spec.layers)} layers, got {len(tangent.layers)}"
        raise InvalidParameters("The tangent's parameters", [problem])
    traces = encoder_trace(spec, x) if traces is None else traces
    for layer, layer_tangent, trace in zip(spec.layers, tangent.layers, traces, strict=True):
        dx = encoder_layer_jvp(layer, trace.input, layer_tangent, dx, trace)
    return dx
