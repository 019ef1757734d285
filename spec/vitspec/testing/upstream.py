"""What TorchLean's text literally says, in the places where this specification departs from it.

Each function is one piece of upstream's Lean source as it stands at a named revision, in the style
of the specification; whatever is the same there and here is reused. `docs/deviations.md` is the
ledger, and

    python -m vitspec.testing.upstream

prints every table on that page. Nothing here is part of the specification.

Revisions, as commits of TorchLean's history: *first release* is fd2c196 (2026-05-10), *latest* is
b2a2184 (2026-08-04). Lean itself was not run: these forms were written from the text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import numpy as np

from vitspec import scalars
from vitspec.config import ViTConfig
from vitspec.geometry import sliding_window_out_dim
from vitspec.layers import multi_head_attention as heads_module
from vitspec.layers.activation import hard_masked_softmax, softmax
from vitspec.layers.attention import (
    attention_scale_denom,
    causal_mask,
    scaled_dot_product_attention_backward,
    scaled_dot_product_attention_jvp,
)
from vitspec.layers.conv2d import Conv2DSpec, conv2d
from vitspec.layers.feed_forward import FeedForward, feed_forward
from vitspec.layers.multi_head_attention import (
    MultiHeadAttention,
    MultiHeadAttentionGrads,
    combine_heads,
    multi_head_attention,
    multi_head_attention_backward,
    split_heads,
)
from vitspec.models.transformer import (
    TransformerEncoder,
    TransformerEncoderLayer,
    TransformerEncoderLayerGrads,
    encoder_backward,
    encoder_layer,
    encoder_layer_backward,
    encoder_trace,
)
from vitspec.models.vit import ViTClsSpec, ViTSpec
from vitspec.reals import complex_step_derivative
from vitspec.records import Record
from vitspec.scalars import matmul
from vitspec.typing import Array, Bool, Scalar, typed

# ---- DEV-1: the order of the encoder's gradients -------------------------------------------------


@typed
def literal_encoder_backward(
    spec: TransformerEncoder, x: Scalar[Array, "n D"], d_out: Scalar[Array, "n D"]
) -> tuple[tuple[TransformerEncoderLayerGrads, ...], Scalar[Array, "n D"]]:
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


# ---- the figures of docs/deviations.md -----------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """One table of the page: which entry it belongs to, what it shows, and its cells."""

    entry: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def render(self) -> str:
        """The table as aligned plain text."""
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]

        def line(cells: Sequence[str]) -> str:
            padded = [cell.ljust(w) for cell, w in zip(cells, widths, strict=True)]
            return "  ".join(padded).rstrip()

        rule = "  ".join("-" * w for w in widths)
        body = [line(self.columns), rule, *map(line, self.rows)]
        return "\n".join([f"{self.entry}. {self.title}", "", *body])


def deviation_tables() -> tuple[Table, ...]:
    """Every table of `docs/deviations.md`, computed afresh from fixed seeds."""
    return (
        _order_table(),
        _training_table(),
        _gradient_table(),
        _gradient_seeds_table(),
        _leaves_table(),
        _upstream_test_table(),
        _mixing_table(),
        _proved_table(),
        _interop_table(),
        _grid_table(),
        _softmax_table(),
        _smaller_table(),
    )


def deviation_report() -> str:
    """All tables as plain text: what `python -m vitspec.testing.upstream` prints."""
    return "\n\n".join(table.render() for table in deviation_tables())


def difference(value: Array, truth: Array) -> float:
    """Largest difference over the largest entry of either; 0 where all is zero or empty."""
    scale = max((np.abs(a).max() for a in (value, truth) if a.size), default=0.0)
    return float(np.abs(value - truth).max() / scale) if scale else 0.0


def show(error: float) -> str:
    """An error to two digits; what is only rounding is shown as a bound, the same everywhere."""
    return "< 1e-12" if error < 1e-12 else f"{error:.2g}"


def show_exact(error: float) -> str:
    """As `show`, where the same operations make the error exactly 0."""
    return "0" if error == 0 else show(error)


def random_attention(
    head_count: int, head_dim: int, embed_dim: int, rng: np.random.Generator
) -> MultiHeadAttention:
    """Attention with normal weights."""
    inner = head_count * head_dim
    wq, wk, wv = (rng.standard_normal((embed_dim, inner)) for _ in range(3))
    return MultiHeadAttention(head_count, wq, wk, wv, rng.standard_normal((inner, embed_dim)))


def complex_step_gradients(f: Callable[[Any], Any], x: Any) -> dict[str, Array]:
    """The gradient of a scalar function, entry by entry, by the complex step.

    Args:
        f: from a record, or an array, to a number.
        x: where: a record, or an array.

    Returns:
        The gradient of each leaf by flat name; that of an array by the empty name.
    """
    leaves = x.to_flat() if isinstance(x, Record) else {"": x}
    return {name: _leaf_gradient(f, x, leaf) for name, leaf in leaves.items()}


def _leaf_gradient(f: Callable[[Any], Any], x: Any, leaf: Array) -> Array:
    gradient = np.zeros(leaf.shape)
    for index in np.ndindex(leaf.shape):
        unit = np.zeros(leaf.shape)
        unit[index] = 1.0
        direction: Any = unit
        if isinstance(x, Record):
            direction = x.map(lambda a, unit=unit: unit if a is leaf else np.zeros(a.shape))
        gradient[index] = complex_step_derivative(f, x, direction)
    return gradient


def attention_truth(
    forward: Callable[..., Array],
    mha: MultiHeadAttention,
    x: Array,
    d_out: Array,
    mask: Array | None = None,
) -> dict[str, Array]:
    """The gradients of sum(forward(mha, x) * d_out) by the complex step; that of x under "x"."""

    def of_parameters(m: MultiHeadAttention) -> Any:
        return np.sum(forward(m, x.astype(m.wq.dtype), mask) * d_out)

    def of_input(z: Array) -> Any:
        return np.sum(forward(mha.astype(z.dtype), z, mask) * d_out)

    x_gradient = complex_step_gradients(of_input, x)[""]
    return {"x": x_gradient, **complex_step_gradients(of_parameters, mha)}


def _attention_flat(result: tuple[MultiHeadAttentionGrads, Array]) -> dict[str, Array]:
    grads, d_x = result
    return {"x": d_x, **grads.to_flat()}


_ENCODER_CONFIG = ViTConfig(
    patch_h=2, patch_w=2, stride=2, embed_dim=6, hidden_dim=8, head_count=2, num_classes=3
)
_IMAGE = {"in_channels": 3, "height": 4, "width": 6}


def _vit(num_layers: int, seed: int) -> tuple[ViTSpec, Array, Array]:
    """A small model of several layers, an image and a cotangent."""
    rng = np.random.default_rng(seed)
    model = ViTSpec.init(replace(_ENCODER_CONFIG, num_layers=num_layers), **_IMAGE, rng=rng)
    return model, rng.standard_normal((3, 4, 6)), rng.standard_normal(3)


def _order_table() -> Table:
    rows = []
    for num_layers in range(5):
        model, _, _ = _vit(num_layers, seed=num_layers)
        rng = np.random.default_rng(10 + num_layers)
        x, d_out = rng.standard_normal((2, 6, 6))
        right, d_x = encoder_backward(model.encoder, x, d_out)
        literal, literal_d_x = literal_encoder_backward(model.encoder, x, d_out)
        order = [next(i for i, r in enumerate(right) if _same(g, r)) for g in literal]
        rows.append((str(num_layers), str(order), show_exact(difference(literal_d_x, d_x))))
    columns = ("layers", "layer whose gradient stands at 0, 1, ...", "d_x differs by")
    return Table("DEV-1", "The list of layer gradients as published", columns, tuple(rows))


def _same(a: Record, b: Record) -> bool:
    pairs = zip(a.to_flat().values(), b.to_flat().values(), strict=True)
    return all(np.array_equal(p, q) for p, q in pairs)


def descend(
    model: ViTSpec, images: Sequence[Array], targets: Sequence[Array], steps: int, literal: bool
) -> tuple[float, float]:
    """The loss before and after plain gradient descent (rate 0.05) on squared error.

    Args:
        model: where to start.
        images: the inputs.
        targets: the wanted logits.
        steps: the number of steps.
        literal: whether layer i is updated with entry i of upstream's list, or of ours.
    """
    start = _loss(model, images, targets)
    for _ in range(steps):
        total = model.map(np.zeros_like).to_flat()
        for image, target in zip(images, targets, strict=True):
            grads, _ = model.backward(image, (model.forward(image) - target) / len(images))
            if literal:
                grads = replace(grads, d_encoder=grads.d_encoder[::-1])
            total = {name: total[name] + g for name, g in grads.to_flat().items()}
        flat = {name: leaf - 0.05 * total[name] for name, leaf in model.to_flat().items()}
        model = ViTSpec.from_flat(model.config, flat, **_IMAGE)
    return start, _loss(model, images, targets)


def _loss(model: ViTSpec, images: Sequence[Array], targets: Sequence[Array]) -> float:
    errors = [model.forward(x) - t for x, t in zip(images, targets, strict=True)]
    return float(np.mean([np.sum(e * e) / 2 for e in errors]))


def _training_table() -> Table:
    rows = []
    for num_layers in (1, 2, 3):
        model, _, _ = _vit(num_layers, seed=20 + num_layers)
        rng = np.random.default_rng(30 + num_layers)
        images = [*rng.standard_normal((2, 3, 4, 6))]
        targets = [*rng.standard_normal((2, 3))]
        start, right = descend(model, images, targets, 20, literal=False)
        _, wrong = descend(model, images, targets, 20, literal=True)
        rows.append((str(num_layers), *(f"{loss:.2g}" for loss in (start, right, wrong))))
    columns = ("layers", "loss at the start", "after 20 steps", "with the published order")
    return Table("DEV-1", "Gradient descent with either order", columns, tuple(rows))


_SHAPES = ((1, 2, 2, 4), (3, 1, 4, 4), (2, 2, 1, 2), (2, 2, 2, 4), (3, 2, 2, 4), (4, 4, 1, 4),
           (5, 2, 3, 7))  # fmt: skip
_SHAPE_COLUMNS = ("tokens, heads, head_dim, D",)
_GRADIENTS = ("x", "wq", "wk", "wv", "wo")


def _attention_case(
    shape: tuple[int, int, int, int], seed: int
) -> tuple[MultiHeadAttention, Array, Array]:
    n, head_count, head_dim, embed_dim = shape
    rng = np.random.default_rng([seed, *shape])
    mha = random_attention(head_count, head_dim, embed_dim, rng)
    x, d_out = rng.standard_normal((2, n, embed_dim))
    return mha, x, d_out


def _gradient_table() -> Table:
    rows = []
    for shape in _SHAPES:
        mha, x, d_out = _attention_case(shape, seed=0)
        truth = attention_truth(first_release_multi_head_attention, mha, x, d_out)
        published = _attention_flat(first_release_multi_head_attention_backward(mha, x, d_out))
        true = _attention_flat(first_release_multi_head_attention_true_backward(mha, x, d_out))
        ours = _attention_flat(multi_head_attention_backward(mha, x, d_out))
        our_truth = attention_truth(multi_head_attention, mha, x, d_out)
        cells = [show(difference(published[name], truth[name])) for name in _GRADIENTS]
        cells.append(show(max(difference(true[name], truth[name]) for name in _GRADIENTS)))
        cells.append(show(max(difference(ours[name], our_truth[name]) for name in _GRADIENTS)))
        rows.append((", ".join(map(str, shape)), *cells))
    columns = (*_SHAPE_COLUMNS, *(f"d_{name}" for name in _GRADIENTS), "true adjoints", "ours")
    title = "First release: the published backward against the complex step of its own forward"
    return Table("DEV-2", title, columns, tuple(rows))


def _gradient_seeds_table() -> Table:
    shape, rows = (3, 2, 2, 4), []
    errors: dict[str, list[float]] = {name: [] for name in _GRADIENTS}
    jvp_errors, dot_errors = [], []
    for seed in range(30):
        mha, x, d_out = _attention_case(shape, seed=100 + seed)
        published = _attention_flat(first_release_multi_head_attention_backward(mha, x, d_out))
        true = _attention_flat(first_release_multi_head_attention_true_backward(mha, x, d_out))
        for name in _GRADIENTS:
            errors[name].append(difference(published[name], true[name]))
        tangent, dx, _ = _attention_case(shape, seed=200 + seed)
        jvp = np.sum(first_release_multi_head_attention_jvp(mha, x, tangent, dx) * d_out)
        v = {"x": dx, **tangent.to_flat()}
        by_true, by_published = (sum(np.sum(v[k] * g[k]) for k in v) for g in (true, published))
        jvp_errors.append(difference(np.array(jvp), np.array(by_true)))
        dot_errors.append(difference(np.array(jvp), np.array(by_published)))
    named = {f"d_{name}, published": errors[name] for name in _GRADIENTS}
    named["published JVP against the true adjoints"] = jvp_errors
    named["published JVP against the published backward"] = dot_errors
    for name, found in named.items():
        rows.append((name, show(min(found)), show(float(np.median(found))), show(max(found))))
    title = "First release: 30 seeds at 3 tokens, 2 heads, head_dim 2, D 4"
    return Table("DEV-2", title, ("what", "least", "median", "greatest"), tuple(rows))


def leaf_errors(
    spec: type[ViTSpec] | type[ViTClsSpec], head_count: int, num_layers: int = 1
) -> dict[str, float]:
    """The error of each cotangent of a whole first-release model against the complex step.

    Args:
        spec: `ViTSpec` or `ViTClsSpec`, of width 4 with a 2 x 2 grid of patches.
        head_count: the number of heads.
        num_layers: the number of layers.
    """
    config = ViTConfig(
        patch_h=2, patch_w=2, stride=2, embed_dim=4, hidden_dim=5, head_count=head_count,
        num_layers=num_layers, num_classes=3,
    )  # fmt: skip
    rng = np.random.default_rng(40)
    model = spec.init(config, in_channels=2, height=4, width=4, rng=rng)
    image, d_logits = rng.standard_normal((2, 4, 4)), rng.standard_normal(3)
    with first_release_heads():
        grads, d_image = model.backward(image, d_logits)
        truth = complex_step_gradients(
            lambda m: np.sum(m.forward(image.astype(m.dtype)) * d_logits), model
        )
        of_image = complex_step_gradients(
            lambda z: np.sum(model.astype(z.dtype).forward(z) * d_logits), image
        )
    found = {name: difference(g, truth[name]) for name, g in grads.to_flat().items()}
    return {**found, "image": difference(d_image, of_image[""])}


def _leaves_table() -> Table:
    mean, cls = leaf_errors(ViTSpec, 2), leaf_errors(ViTClsSpec, 2)
    rows = tuple((name, show(mean[name]) if name in mean else "", show(cls[name])) for name in cls)
    columns = ("cotangent of", "ViTSpec", "ViTClsSpec")
    title = "First release: whole models, one layer, 2 heads, against the complex step"
    return Table("DEV-2", title, columns, rows)


def upstream_attention_test() -> tuple[MultiHeadAttention, Array, Array, Array]:
    """The inputs of upstream's comparison of CPU and CUDA attention: weights, x, d_out, mask.

    Lean: `NN/Tests/Runtime/Cuda/Attention.lean`, fd2c196 (lines 33-84 and 103).
    """
    wq = np.arange(1, 17).reshape(4, 4) / 100
    wk = wq[:, [1, 0, 3, 2]]
    wv = np.array([[3, 0, 1, 2], [0, 3, 2, 1], [1, 2, 3, 0], [2, 1, 0, 3]]) / 100
    wo = np.array([[5, 0, 1, 2], [0, 5, 2, 1], [1, 2, 5, 0], [2, 1, 0, 5]]) / 100
    x = np.array([[10, -20, 5, 30], [-5, 25, -10, 15]]) / 100
    mask = np.array([[True, True], [False, True]])
    return MultiHeadAttention(2, wq, wk, wv, wo), x, np.ones((2, 4)), mask


def _upstream_test_table() -> Table:
    mha, x, d_out, mask = upstream_attention_test()
    cpu = {
        "forward": first_release_multi_head_attention(mha, x, mask),
        **_attention_flat(first_release_multi_head_attention_backward(mha, x, d_out, mask)),
    }
    cuda = {
        "forward": multi_head_attention(mha, x, mask),
        **_attention_flat(multi_head_attention_backward(mha, x, d_out, mask)),
    }
    rows = []
    for name, value in cpu.items():
        absolute = float(np.abs(value - cuda[name]).max())
        label = name if name == "forward" else f"d_{name}"
        size = float(np.abs(cuda[name]).max())
        relative = show(absolute / size) if size > 1e-12 else ""
        rows.append((label, show(absolute), "0.02", show(size), relative))
    columns = ("what", "largest difference", "tolerance", "largest entry", "relative")
    title = "First release: its CPU and CUDA definitions on the inputs of its own comparison"
    return Table("DEV-2", title, columns, tuple(rows))


def mixing(
    attention: Callable[..., Array], shape: tuple[int, int, int, int]
) -> tuple[float, float]:
    """How far `attention` is from commuting with a permutation, and how far it sees ahead.

    Returns:
        The difference between attention of permuted tokens and permuted attention; and the
        difference that exchanging all tokens but the first makes to row 0 under a causal mask.
    """
    mha, x, other = _attention_case(shape, seed=2)
    n = x.shape[0]
    order = np.roll(np.arange(n), 1)
    permuted = difference(attention(mha, x[order]), attention(mha, x)[order])
    later = np.concatenate([x[:1], other[1:]])
    rows = [attention(mha, tokens, causal_mask(n))[0] for tokens in (x, later)]
    return permuted, difference(*rows)


def _mixing_table() -> Table:
    rows = []
    for shape in ((4, 1, 4, 4), (4, 2, 2, 4), (4, 4, 1, 4), (5, 2, 3, 7), (9, 3, 4, 12)):
        early, ours = (
            mixing(f, shape) for f in (first_release_multi_head_attention, multi_head_attention)
        )
        cells = [show(early[0]), show(ours[0]), show_exact(early[1]), show_exact(ours[1])]
        rows.append((", ".join(map(str, shape)), *cells))
    columns = (*_SHAPE_COLUMNS, "permutation, first release", "ours",
               "causal leak, first release", "ours")  # fmt: skip
    return Table("DEV-3", "Permuted tokens, and tokens of the future", columns, tuple(rows))


def _proved_table() -> Table:
    rows = []
    for shape in _SHAPES:
        mha, x, _ = _attention_case(shape, seed=3)
        embed_dim = shape[-1]
        rng = np.random.default_rng([4, *shape])
        ffn = FeedForward(
            w1=rng.standard_normal((embed_dim, 6)), w2=rng.standard_normal((6, embed_dim)),
            b1=rng.standard_normal(6), b2=rng.standard_normal(embed_dim),
        )  # fmt: skip
        attention = difference(proved_multi_head_attention(mha, x), multi_head_attention(mha, x))
        hidden = difference(proved_feed_forward(ffn, x), feed_forward(ffn, x))
        rows.append((", ".join(map(str, shape)), show(attention), show(hidden)))
    columns = (*_SHAPE_COLUMNS, "attention", "feed-forward")
    title = "Latest: the proved maps against the specification's"
    return Table("DEV-4", title, columns, tuple(rows))


def round_trip(embed_dim: int, hidden_dim: int, seed: int) -> float | None:
    """The change of a layer's output after export and upstream's import; None if refused."""
    config = replace(_ENCODER_CONFIG, embed_dim=embed_dim, hidden_dim=hidden_dim, num_layers=1)
    rng = np.random.default_rng([seed, embed_dim, hidden_dim])
    layer = ViTSpec.init(config, **_IMAGE, rng=rng).encoder.layers[0]
    imported = literal_import(pytorch_state(layer), like=layer)
    x = rng.standard_normal((5, embed_dim))
    if imported is None:
        return None
    return difference(encoder_layer(imported, x), encoder_layer(layer, x))


def _interop_table() -> Table:
    rows = []
    for embed_dim, hidden_dim in ((4, 8), (4, 4), (8, 8), (16, 16)):
        change = round_trip(embed_dim, hidden_dim, seed=50)
        cells = ("refused", "") if change is None else ("accepted", show(change))
        rows.append((f"{embed_dim}, {hidden_dim}", *cells))
    columns = ("D, F", "import", "output differs by")
    title = "Latest: a layer exported to PyTorch names and imported again"
    return Table("DEV-5", title, columns, tuple(rows))


def _grid_table() -> Table:
    rows = []
    for image, patch, stride, padding in (
        (224, 16, 16, 0), (7, 2, 3, 1), (3, 5, 1, 0), (3, 5, 1, 1), (15, 16, 16, 0), (8, 2, 0, 0),
        (0, 3, 1, 0), (0, 3, 1, 2),
    ):  # fmt: skip
        early = first_release_sliding_window_out_dim(image, patch, stride, padding)
        ours = sliding_window_out_dim(image, patch, stride, padding)
        rows.append(tuple(map(str, (image, patch, stride, padding, early, ours))))
    columns = ("extent", "patch", "stride", "padding", "first release", "latest and ours")
    return Table("DEV-6", "Positions along one axis", columns, tuple(rows))


def _softmax_table() -> Table:
    rows = []
    for name, scores, allowed in (
        ("moderate scores", [1.0, -2.0, 3.0], [True, True, False]),
        ("a blocked score of 1000", [1.0, -2.0, 1000.0], [True, True, False]),
        ("an allowed score of 1000", [1000.0, 999.0, 3.0], [True, True, False]),
        ("allowed scores of -1000", [-1000.0, -1001.0, 3.0], [True, True, False]),
        ("nothing allowed", [1.0, -2.0, 3.0], [False, False, False]),
    ):
        row, mask = np.array([scores]), np.array([allowed])
        early = first_release_hard_masked_softmax(row, mask)[0]
        cells = [
            " ".join(f"{w:.4g}" for w in a) for a in (early, hard_masked_softmax(row, mask)[0])
        ]
        rows.append((name, *cells))
    columns = ("row", "first release", "latest and ours")
    return Table("DEV-7", "Hard-masked softmax in float64", columns, tuple(rows))


def _smaller_table() -> Table:
    x = 1e6 + np.random.default_rng(60).standard_normal((50, 16))
    centred = x - x.mean(axis=-1, keepdims=True)
    denominators = first_release_attention_scale_denom(0), attention_scale_denom(0, x.dtype)
    rows = [("DEV-8", "denominator at head_dim 0", *(f"{d:g}" for d in denominators))]
    for name, values in (("centred, as layerNorm's are", centred), ("about 1e6", x)):
        truth = values.astype(np.longdouble).var(axis=-1, keepdims=True).astype(np.float64)
        found = first_release_variance(values), values.var(axis=-1, keepdims=True)
        errors = [difference(v, truth) for v in found]
        # How badly it cancels depends on the order of summation; that it does, does not.
        cells = ["> 1e-6" if error > 1e-6 else show(error) for error in errors]
        rows.append(("DEV-9", f"error of the variance of rows {name}", *cells))
    columns = ("entry", "what", "first release", "latest and ours")
    return Table("DEV-8, DEV-9", "The smaller ones", columns, tuple(rows))


if __name__ == "__main__":
    print(deviation_report())
