"""What TorchLean's text literally says, in the places where this specification departs from it.

Each function is one piece of upstream's Lean source as it stands at a named revision, in the style
of the specification; whatever is the same there and here is reused. `docs/deviations.md` is the
ledger; its tables are computed in `vitspec.upstream.figures`. Nothing here is part of the
specification.

Revisions, as commits of TorchLean's history: *first release* is fd2c196 (2026-05-10), *latest* is
b2a2184 (2026-08-04). Lean itself was not run: these forms were written from the text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np

from vitspec import scalars
from vitspec.layers import multi_head_attention as heads_module
from vitspec.layers.activation import softmax
from vitspec.layers.attention import (
    scaled_dot_product_attention_backward,
    scaled_dot_product_attention_jvp,
)
from vitspec.layers.conv2d import Conv2DSpec, conv2d
from vitspec.layers.feed_forward import FeedForward
from vitspec.layers.multi_head_attention import (
    MultiHeadAttention,
    MultiHeadAttentionGrads,
    combine_heads,
    split_heads,
)
from vitspec.models.transformer import (
    TransformerEncoder,
    TransformerEncoderLayer,
    TransformerEncoderLayerGrads,
    encoder_layer_backward,
    encoder_trace,
)
from vitspec.scalars import matmul
from vitspec.typing import Array, Bool, Scalar, TupleOf, typed

# ---- DEV-1: the order of the encoder's gradients -------------------------------------------------


@typed
def literal_encoder_backward(
    spec: TransformerEncoder, x: Scalar[Array, "n D"], d_out: Scalar[Array, "n D"]
) -> tuple[TupleOf[TransformerEncoderLayerGrads], Scalar[Array, "n D"]]:
    """The encoder's backward with its list of gradients as published: last layer first.

    The walk goes from the last layer to the first and puts each gradient at the *front*, which is
    layer order already; the list is then reversed once more.

    Lean: `TransformerEncoder.backward`, `Models/Transformer.lean`, all revisions to b2a2184
    (lines 742-744 there).
    """
    grads: tuple[TransformerEncoderLayerGrads, ...] = ()
    for layer, trace in reversed([*zip(spec.layers, encoder_trace(spec, x), strict=True)]):
        layer_grads, d_out = encoder_layer_backward(layer, trace.input, d_out, trace)
        grads = (layer_grads, *grads)
    return grads[::-1], d_out


# ---- DEV-2, DEV-3: the first release's heads -----------------------------------------------------


@typed
def first_release_split_heads(x: Scalar[Array, "n I"], head_count: int) -> Scalar[Array, "H n d"]:
    """One reshape straight to (H, n, d): a token-major buffer read as head-major.

    Lean: `splitHeadsSpec`, `Layers/Attention.lean`, fd2c196 (lines 341-352) until c2be276.
    """
    n, I = x.shape  # noqa: E741 - Lean's letter for the width of all heads
    return x.reshape(head_count, n, I // head_count)


@typed
def first_release_split_heads_backward(d_heads: Scalar[Array, "H n d"]) -> Scalar[Array, "n I"]:
    """The adjoint of `first_release_split_heads`: the same buffer as (n, I). Not upstream's."""
    H, n, d = d_heads.shape
    return d_heads.reshape(n, H * d)


@contextmanager
def first_release_heads() -> Iterator[None]:
    """Run the whole specification with the first release's `split_heads`.

    The forward, backward and JVP of attention use `split_heads` in the same places as
    upstream's, so this one exchange gives all three as they were published (without a mask). Commit
    c2be276 is its inverse.
    """
    with mock.patch.object(heads_module, "split_heads", first_release_split_heads):
        yield


@typed
def first_release_hard_masked_softmax(
    x: Scalar[Array, "*rows n_q n_k"], mask: Bool[Array, "n_q n_k"]
) -> Scalar[Array, "*rows n_q n_k"]:
    """exp(x) where allowed, else 0, divided by its sum: no shift, and 0 / 0 in a blocked row.

    Lean: `hardMaskedSoftmaxVecSpec`, `Layers/Attention.lean`, fd2c196 (lines 150-157) until
    852c9c6. In floating point it overflows at scores above 709.78; over Lean's reals, where
    0 / 0 = 0, it differs from the latest form nowhere.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        weights = np.where(mask, np.exp(x), scalars.zeros((), x.dtype))
        return weights / scalars.total(weights, axis=-1, keepdims=True)


def first_release_attention_scale_denom(d: int) -> Any:
    """sqrt(d), also for d = 0: then every weight is NaN, and no column carries one anywhere.

    Lean: `scaledDotProductAttention`, `Layers/Attention.lean`, fd2c196 (line 210) until 852c9c6.
    """
    return np.sqrt(np.float64(d))


def _first_release_by_head(
    mha: MultiHeadAttention, x: Array, mask: Array | None
) -> tuple[Array, Array, Array, Array]:
    """Q, K, V and the weights by head."""
    q, k, v = (
        first_release_split_heads(matmul(x, w), mha.head_count) for w in (mha.wq, mha.wk, mha.wv)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 1 / first_release_attention_scale_denom(q.shape[-1])
        scores = matmul(q, k.swapaxes(-1, -2)) * scale
    weights = softmax(scores) if mask is None else first_release_hard_masked_softmax(scores, mask)
    return q, k, v, weights


@typed
def first_release_multi_head_attention(
    mha: MultiHeadAttention, x: Scalar[Array, "n D"], mask: Bool[Array, "n n"] | None = None
) -> Scalar[Array, "n D"]:
    """Attention between the heads of `first_release_split_heads`; combined as today.

    Lean: `MultiHeadAttention.forward`, `Layers/Attention.lean`, fd2c196 (lines 417-456).
    """
    _, _, v, weights = _first_release_by_head(mha, x, mask)
    return matmul(combine_heads(matmul(weights, v)), mha.wo)


@typed
def first_release_multi_head_attention_backward(
    mha: MultiHeadAttention,
    x: Scalar[Array, "n D"],
    d_out: Scalar[Array, "n D"],
    mask: Bool[Array, "n n"] | None = None,
) -> tuple[MultiHeadAttentionGrads, Scalar[Array, "n D"]]:
    """The backward as published: split as the adjoint of combine, combine as that of split.

    Each is the other's inverse, and so its adjoint, for one head or one token only.

    Lean: `MultiHeadAttentionBackward`, `Layers/Attention.lean`, fd2c196 (lines 463-560; the two
    steps are 506 and 545-550).
    """
    return _backward(mha, x, d_out, mask, first_release_split_heads, combine_heads)


@typed
def first_release_multi_head_attention_true_backward(
    mha: MultiHeadAttention,
    x: Scalar[Array, "n D"],
    d_out: Scalar[Array, "n D"],
    mask: Bool[Array, "n n"] | None = None,
) -> tuple[MultiHeadAttentionGrads, Scalar[Array, "n D"]]:
    """The derivative of the first release's forward, with the true adjoints. Not upstream's."""
    return _backward(mha, x, d_out, mask, split_heads, first_release_split_heads_backward)


def _backward(
    mha: MultiHeadAttention,
    x: Array,
    d_out: Array,
    mask: Array | None,
    combine_backward: Callable[[Array, int], Array],
    split_backward: Callable[[Array], Array],
) -> tuple[MultiHeadAttentionGrads, Array]:
    q, k, v, weights = _first_release_by_head(mha, x, mask)
    d_heads = combine_backward(matmul(d_out, mha.wo.T), mha.head_count)
    by_head = scaled_dot_product_attention_backward(q, k, v, d_heads, mask, weights)
    d_q, d_k, d_v = (split_backward(d) for d in by_head)
    concat = combine_heads(matmul(weights, v))
    grads = MultiHeadAttentionGrads(
        d_wq=matmul(x.T, d_q),
        d_wk=matmul(x.T, d_k),
        d_wv=matmul(x.T, d_v),
        d_wo=matmul(concat.T, d_out),
    )
    return grads, matmul(d_q, mha.wq.T) + matmul(d_k, mha.wk.T) + matmul(d_v, mha.wv.T)


@typed
def first_release_multi_head_attention_jvp(
    mha: MultiHeadAttention,
    x: Scalar[Array, "n D"],
    tangent: MultiHeadAttention,
    dx: Scalar[Array, "n D"],
    mask: Bool[Array, "n n"] | None = None,
) -> Scalar[Array, "n D"]:
    """The JVP as published. It splits tangents as it splits values, and so it is right.

    Lean: `MultiHeadAttentionJvp`, `Layers/Attention.lean`, fd2c196 (lines 575-629).
    """
    q, k, v, weights = _first_release_by_head(mha, x, mask)
    pairs = ((mha.wq, tangent.wq), (mha.wk, tangent.wk), (mha.wv, tangent.wv))
    dq, dk, dv = (
        first_release_split_heads(matmul(dx, w) + matmul(x, dw), mha.head_count) for w, dw in pairs
    )
    d_heads = scaled_dot_product_attention_jvp(q, k, v, dq, dk, dv, mask=mask, weights=weights)
    concat = combine_heads(matmul(weights, v))
    return matmul(combine_heads(d_heads), mha.wo) + matmul(concat, tangent.wo)


# ---- DEV-4: the graph of the proofs --------------------------------------------------------------

proved_multi_head_attention = first_release_multi_head_attention
"""The map of `mhaDGraph` (c = 1 / sqrt(d)): Q, K and V are reshaped straight to (H, n, d).

Lean: `NN/Proofs/Autograd/Tape/Ops/Attention/MultiHeadSelfAttention.lean`, b2a2184: `mhaDGraph`
(line 550), its reshape nodes at 226, 273 and 392, its combination at 566-606.
"""

proved_multi_head_attention_backward = first_release_multi_head_attention_true_backward
"""The VJP that `mha_backpropVec_eq_adjoint_fderiv` proves (the same file, line 666)."""


@typed
def proved_feed_forward(ffn: FeedForward, x: Scalar[Array, "n D"]) -> Scalar[Array, "n D"]:
    """The feed-forward of the proved encoder block: tanh-GELU in place of ReLU.

    Lean: `encoderFfnResidualGraph` (`NN/Proofs/Autograd/Tape/Ops/Transformer/EncoderBlock.lean`,
    b2a2184, the node at 229-236), `Activation.Math.geluSpec` (`Layers/Activation.lean`, 173-178).
    """
    z = matmul(x, ffn.w1) + ffn.b1
    gelu = z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z * z * z))) / 2
    return matmul(gelu, ffn.w2) + ffn.b2


# ---- DEV-5: weights that travel to PyTorch and back ----------------------------------------------

_PYTORCH_MATRICES = {
    "mha.wq": "mha.q_proj.weight",
    "mha.wk": "mha.k_proj.weight",
    "mha.wv": "mha.v_proj.weight",
    "mha.wo": "mha.out_proj.weight",
    "ffn.w1": "ffn.fc1.weight",
    "ffn.w2": "ffn.fc2.weight",
}
_PYTORCH_VECTORS = {
    "ffn.b1": "ffn.fc1.bias",
    "ffn.b2": "ffn.fc2.bias",
    "norm1_gamma": "norm1.weight",
    "norm1_beta": "norm1.bias",
    "norm2_gamma": "norm2.weight",
    "norm2_beta": "norm2.bias",
}
_PYTORCH_NAMES = _PYTORCH_MATRICES | _PYTORCH_VECTORS


def pytorch_state(layer: TransformerEncoderLayer) -> dict[str, Array]:
    """The layer as a PyTorch state: matrices (out, in), that is, transposed.

    Lean: `generateTransformerEncoderWithWeights`,
    `NN/Examples/Interop/PyTorch/Transformer/Export.lean`, b2a2184 (lines 152-163).
    """
    flat = layer.to_flat()
    matrices = {f"layers.0.{theirs}": flat[ours].T for ours, theirs in _PYTORCH_MATRICES.items()}
    vectors = {f"layers.0.{theirs}": flat[ours] for ours, theirs in _PYTORCH_VECTORS.items()}
    return matrices | vectors


def literal_import(
    state: Mapping[str, Array], like: TransformerEncoderLayer
) -> TransformerEncoderLayer | None:
    """Read a PyTorch state as upstream does: checked for shape, not transposed.

    Lean: `loadTransformerEncoderStateDict`,
    `NN/Examples/Interop/PyTorch/Transformer/Import.lean`, b2a2184 (lines 87-119).

    Args:
        state: arrays by PyTorch name, such as `layers.0.mha.q_proj.weight`.
        like: a layer of the expected shapes.

    Returns:
        The layer; None where upstream's `Option` is `none`: a name is missing or a shape wrong.
    """
    expected = like.to_flat()
    by_identity: dict[int, Array] = {}
    for name, leaf in expected.items():
        found = state.get(f"layers.0.{_PYTORCH_NAMES[name]}")
        if found is None or found.shape != leaf.shape:
            return None
        by_identity[id(leaf)] = found
    return like.map(lambda leaf: by_identity[id(leaf)])


# ---- DEV-6: the patch grid -----------------------------------------------------------------------


def first_release_sliding_window_out_dim(
    in_dim: int, kernel: int, stride: int, padding: int
) -> int:
    """(n + 2p - k) / s + 1 in natural numbers, where a - b stops at 0 and a / 0 = 0.

    Lean: `ViTPatchOutH`, `ViTPatchOutW`, `Models/Vit.lean`, fd2c196 (lines 48-53), and
    `conv2dSpec`, `Layers/Conv.lean` (587-588), until 852c9c6. It is never below 1.
    """
    slack = max(in_dim + 2 * padding - kernel, 0)
    return (slack // stride if stride else 0) + 1


@typed
def first_release_conv2d(
    spec: Conv2DSpec, x: Scalar[Array, "C H W"]
) -> Scalar[Array, "D out_h out_w"]:
    """The cross-correlation on the first release's grid; a tap beyond the image reads 0.

    Lean: `conv2dSpec`, `Layers/Conv.lean`, fd2c196 (lines 587-610).
    """
    (C, H, W), (ph, pw) = x.shape, spec.kernel.shape[2:]
    grid = [
        first_release_sliding_window_out_dim(n, k, spec.stride, spec.padding)
        for n, k in ((H, ph), (W, pw))
    ]
    # Zeros below and to the right until one window fits; with stride 0 only that one is kept.
    shape = (C, max(H, ph - 2 * spec.padding), max(W, pw - 2 * spec.padding))
    extended = scalars.zeros(shape, x.dtype)
    extended[:, :H, :W] = x
    y = conv2d(replace(spec, stride=spec.stride or 1), extended)
    return y[:, : grid[0], : grid[1]]


# ---- DEV-9: the variance -------------------------------------------------------------------------


@typed
def first_release_variance(x: Scalar[Array, "n D"]) -> Scalar[Array, "n 1"]:
    """E[x^2] - E[x]^2 of each row.

    Lean: `reduceVar`, `NN/Spec/Core/TensorReductionShape.lean`, fd2c196 (lines 902-941) until
    14bc499. `layerNorm` gives it rows that are already centred, so it never cancels there.
    """
    mean_of_squares = scalars.mean(x * x, axis=-1, keepdims=True)
    mean = scalars.mean(x, axis=-1, keepdims=True)
    return mean_of_squares - mean * mean
