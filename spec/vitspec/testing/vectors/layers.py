"""The layers of the specification by name: flat inputs in, output and cotangents out.

Arguments have the specification's names; `d_out` is the cotangent of the output, and the results
are `out` and `d_<argument>` for each argument but `mask`, which is 1 where a query may attend to a
key and 0 where it may not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vitspec.layers.activation import (
    hard_masked_softmax,
    relu,
    relu_backward,
    softmax,
    softmax_backward_from_weights,
)
from vitspec.layers.attention import (
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
)
from vitspec.layers.conv2d import Conv2DSpec, conv2d, conv2d_backward
from vitspec.layers.feed_forward import FeedForward, feed_forward, feed_forward_backward
from vitspec.layers.linear import LinearSpec, linear, linear_backward
from vitspec.layers.multi_head_attention import (
    MultiHeadAttention,
    multi_head_attention,
    multi_head_attention_backward,
)
from vitspec.layers.normalization import layer_norm, layer_norm_backward
from vitspec.layers.positional_encoding import (
    PositionalEncodingSpec,
    add_positional_encoding,
    add_positional_encoding_backward,
)
from vitspec.models.tokens import mean_pool, mean_pool_backward
from vitspec.models.transformer import (
    TransformerEncoder,
    TransformerEncoderLayer,
    encoder,
    encoder_backward,
    encoder_layer,
    encoder_layer_backward,
)
from vitspec.typing import Array

Flat = dict[str, Array]

MASK = "mask"
"""The one argument that has no cotangent."""


def _layer_norm(x: Array, gamma: Array, beta: Array, d_out: Array) -> Flat:
    d_x, d_gamma, d_beta = layer_norm_backward(x, gamma, d_out)
    out = layer_norm(x, gamma, beta)
    return {"out": out, "d_x": d_x, "d_gamma": d_gamma, "d_beta": d_beta}


def _softmax(x: Array, d_out: Array, mask: Array | None = None) -> Flat:
    out = softmax(x) if mask is None else hard_masked_softmax(x, mask)
    return {"out": out, "d_x": softmax_backward_from_weights(out, d_out)}


def _attention(q: Array, k: Array, v: Array, d_out: Array, mask: Array | None = None) -> Flat:
    d_q, d_k, d_v = scaled_dot_product_attention_backward(q, k, v, d_out, mask)
    out = scaled_dot_product_attention(q, k, v, mask)
    return {"out": out, "d_q": d_q, "d_k": d_k, "d_v": d_v}


def _multi_head_attention(
    x: Array, d_out: Array, head_count: int, mask: Array | None = None, **weights: Array
) -> Flat:
    mha = MultiHeadAttention(head_count, **weights)
    grads, d_x = multi_head_attention_backward(mha, x, d_out, mask)
    return {"out": multi_head_attention(mha, x, mask), "d_x": d_x} | _d(grads)


def _feed_forward(x: Array, d_out: Array, **parameters: Array) -> Flat:
    ffn = FeedForward(**parameters)
    grads, d_x = feed_forward_backward(ffn, x, d_out)
    return {"out": feed_forward(ffn, x), "d_x": d_x} | _d(grads)


def _conv2d(x: Array, d_out: Array, kernel: Array, bias: Array, stride: int, padding: int) -> Flat:
    conv = Conv2DSpec(stride, padding, kernel, bias)
    grads, d_x = conv2d_backward(conv, x, d_out)
    return {"out": conv2d(conv, x), "d_x": d_x} | _d(grads)


def _linear(x: Array, d_out: Array, weights: Array, bias: Array) -> Flat:
    spec = LinearSpec(weights, bias)
    grads, d_x = linear_backward(spec, x, d_out)
    return {"out": linear(spec, x), "d_x": d_x} | _d(grads)


def _relu(z: Array, d_out: Array) -> Flat:
    return {"out": relu(z), "d_z": relu_backward(z, d_out)}


def _positional_encoding(x: Array, pos: Array, d_out: Array) -> Flat:
    spec = PositionalEncodingSpec(pos)
    d_pos, d_x = add_positional_encoding_backward(spec, d_out)
    return {"out": add_positional_encoding(spec, x), "d_x": d_x, "d_pos": d_pos}


def _mean_pool(encoded: Array, d_out: Array) -> Flat:
    d_encoded = mean_pool_backward(d_out, encoded.shape[0])
    return {"out": mean_pool(encoded), "d_encoded": d_encoded}


def _encoder_layer(x: Array, d_out: Array, head_count: int, **flat: Array) -> Flat:
    (layer,) = build_layers("encoder_layer", flat, {"head_count": head_count})
    grads, d_x = encoder_layer_backward(layer, x, d_out)
    return {"out": encoder_layer(layer, x), "d_x": d_x} | _d(grads)


def _encoder(x: Array, d_out: Array, head_count: int, num_layers: int, **flat: Array) -> Flat:
    settings = {"head_count": head_count, "num_layers": num_layers}
    spec = TransformerEncoder(build_layers("encoder", flat, settings))
    grads, d_x = encoder_backward(spec, x, d_out)
    found = {"out": encoder(spec, x), "d_x": d_x}
    for i, layer_grads in enumerate(grads):
        found |= {f"d_layers.{i}.{name}": leaf for name, leaf in layer_grads.to_flat().items()}
    return found


def build_layers(
    layer: str, flat: Mapping[str, Array], settings: Mapping[str, int]
) -> tuple[TransformerEncoderLayer, ...]:
    """The encoder layers of these arguments: one of "encoder_layer", or those of "encoder"."""

    def part(prefix: str) -> Flat:
        return {n.removeprefix(prefix): a for n, a in flat.items() if n.startswith(prefix)}

    prefixes = [f"layers.{i}." for i in range(settings.get("num_layers", 0))]
    return tuple(
        TransformerEncoderLayer(
            MultiHeadAttention(settings["head_count"], **part(f"{prefix}mha.")),
            FeedForward(**part(f"{prefix}ffn.")),
            **{f"norm{n}": a for n, a in part(f"{prefix}norm").items()},
        )
        for prefix in (prefixes if layer == "encoder" else [""])
    )


def _d(grads: Any) -> Flat:
    return {f"d_{name}": leaf for name, leaf in grads.to_flat().items()}


LAYERS: dict[str, Callable[..., Flat]] = {
    "layer_norm": _layer_norm,
    "softmax": _softmax,
    "attention": _attention,
    "multi_head_attention": _multi_head_attention,
    "feed_forward": _feed_forward,
    "conv2d": _conv2d,
    "linear": _linear,
    "relu": _relu,
    "positional_encoding": _positional_encoding,
    "mean_pool": _mean_pool,
    "encoder_layer": _encoder_layer,
    "encoder": _encoder,
}
"""What evaluates a layer: inputs and settings by name -> outputs by name."""


def evaluate_layer(
    layer: str,
    inputs: Mapping[str, Array],
    settings: Mapping[str, int],
    convert: Callable[[Array], Any] = lambda x: x,
) -> Flat:
    """The output of a layer and the cotangents of its arguments.

    Args:
        layer: a key of `LAYERS`.
        inputs: its arguments and `d_out`.
        settings: its static arguments.
        convert: into the arithmetic to compute in; a mask is no number and stays as it is.
    """
    arguments = {n: x > 0 if n == MASK else convert(x) for n, x in inputs.items()}
    return LAYERS[layer](**arguments, **settings)
