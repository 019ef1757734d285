"""Correct variants: other ways to compute the same function, which the bound must let pass.

Each is a patch of the specification, like the deviations of the catalogue, but one that changes
only roundings: what compilers, kernels and other frameworks really do differently.
"""

from __future__ import annotations

from dataclasses import dataclass

from vitspec.testing.catalogue import Patch


@dataclass(frozen=True)
class Variant:
    """A way of computing the specification.

    Attributes:
        name: permanent, in kebab case.
        description: what is computed differently.
        patches: of the specification's source.
    """

    name: str
    description: str
    patches: tuple[Patch, ...]


_MATMUL = ("scalars:matmul", "return np.matmul(a, b)")
_WEIGHTS = "layers.attention:attention_weights"
_SCORES = "scores = matmul(q, k.swapaxes(-1, -2))"
_NORMALIZE = "layers.normalization:normalize"
_NORM_DERIVATIVE = "layers.normalization:normalize_derivative"
_MHA = "layers.multi_head_attention:multi_head_attention_trace"
_SOFTMAX = "layers.activation:softmax"

FUSED = Variant(
    "fused-attention",
    "attention as fused kernels have it: A = exp(S - logsumexp S), and the backward's row sums from"
    " the output, sum dO * O",
    (
        Patch(
            _WEIGHTS,
            "return softmax(scores) if mask is None",
            "if mask is None and scores.shape[-1]:\n"
            "        top = scalars.row_max(scores)\n"
            "        sums = scalars.total(np.exp(scores - top), axis=-1, keepdims=True)\n"
            "        return np.exp(scores - (top + np.log(sums)))\n"
            "    return softmax(scores) if mask is None",
        ),
        Patch(
            "layers.attention:scaled_dot_product_attention_backward",
            "d_scores = softmax_backward_from_weights(weights, d_weights)",
            "row_dots = scalars.total(d_out * matmul(weights, v), axis=-1, keepdims=True)\n"
            "    d_scores = (d_weights - row_dots) * weights",
        ),
        Patch(
            "layers.self_attention:self_attention_backward",
            "d_scores = softmax_backward_from_weights(t.weights, d_weights) * scale",
            "out = matmul(times(t.weights, factors), t.v)\n"
            "    row_dots = (d_heads * out).sum(axis=-1, keepdims=True)\n"
            "    d_scores = (d_weights - row_dots) * t.weights * scale",
        ),
    ),
)

VARIANTS: tuple[Variant, ...] = (
    Variant("as-written", "the specification as it stands", ()),
    FUSED,
    Variant(
        "sequential-products",
        "matrix-vector products summed one term after the other, as XLA compiles them",
        (
            Patch(
                *_MATMUL,
                "return np.matmul(a, b) if b.ndim > 1 else np.cumsum(a * b, axis=-1)[..., -1]"
                " if b.size else np.matmul(a, b)",
            ),
        ),
    ),
    Variant(
        "naive-loops",
        "every product as plain loops, without BLAS",
        (
            Patch(
                *_MATMUL,
                'return np.einsum("...ik,...kj->...ij", a, b) if b.ndim > 1'
                ' else np.einsum("...k,k->...", a, b)',
            ),
        ),
    ),
    Variant(
        "products-in-two-halves",
        "products whose inner axis is split in two, as tiled kernels do",
        (
            Patch(
                *_MATMUL,
                "h = a.shape[-1] // 2; return np.matmul(a[..., :h], b[..., :h, :])"
                " + np.matmul(a[..., h:], b[..., h:, :]) if b.ndim > 1 else np.matmul(a, b)",
            ),
        ),
    ),
    Variant(
        "products-in-float64",
        "products accumulated in float64, then rounded",
        (
            Patch(
                *_MATMUL,
                "return np.matmul(a.astype(np.float64), b.astype(np.float64)).astype(a.dtype)",
            ),
        ),
    ),
    Variant(
        "sums-backwards",
        "every sum from the last term to the first",
        (
            Patch(
                "scalars:total",
                "result = np.sum(x, axis=axis, keepdims=keepdims)",
                "result = np.cumsum(np.flip(x, axis), axis).take([-1], axis) if x.shape[axis]"
                " else np.sum(x, axis=axis, keepdims=True); result = result if keepdims"
                " else result.squeeze(axis)",
            ),
        ),
    ),
    Variant(
        "mean-by-reciprocal",
        "means multiplied by 1/n instead of divided by n",
        (Patch("scalars:mean", "/ x.shape[axis]", "* x.dtype.type(1 / x.shape[axis])"),),
    ),
    Variant(
        "scale-on-queries",
        "queries are scaled before the product, instead of the scores after it",
        (Patch(_WEIGHTS, _SCORES, "scores = matmul(q * scale, k.swapaxes(-1, -2)); scale = 1"),),
    ),
    Variant(
        "scale-on-keys",
        "keys are scaled before the product, instead of the scores after it",
        (Patch(_WEIGHTS, _SCORES, "scores = matmul(q, (k * scale).swapaxes(-1, -2)); scale = 1"),),
    ),
    Variant(
        "fused-qkv",
        "queries, keys and values from one product with the three weights side by side",
        (
            Patch(
                _MHA,
                "q = split_heads(matmul(x, mha.wq), mha.head_count)\n"
                "    k = split_heads(matmul(x, mha.wk), mha.head_count)\n"
                "    v = split_heads(matmul(x, mha.wv), mha.head_count)",
                "import numpy as np\n"
                "    qkv = matmul(x, np.concatenate([mha.wq, mha.wk, mha.wv], axis=1))\n"
                "    q, k, v = (split_heads(np.ascontiguousarray(p), mha.head_count)"
                " for p in np.split(qkv, 3, axis=1))",
            ),
        ),
    ),
    Variant(
        "chunked-softmax",
        "the softmax in two chunks of keys, rescaled to a common maximum, as in flash attention",
        (
            Patch(
                _SOFTMAX,
                "weights /= scalars.total(weights, axis=-1, keepdims=True)",
                "h = (x.shape[-1] + 1) // 2\n"
                "    maxima = [scalars.row_max(p) for p in (x[..., :h], x[..., h:] if h <"
                " x.shape[-1] else x[..., :h])]\n"
                "    top = np.maximum(*maxima)\n"
                "    parts = [np.exp(x[..., :h] - maxima[0]), np.exp(x[..., h:] - maxima[1])]\n"
                "    sums = [scalars.total(p, axis=-1, keepdims=True) for p in parts]\n"
                "    norm = sums[0] * np.exp(maxima[0] - top) + sums[1] * np.exp(maxima[1] - top)\n"
                "    weights = np.concatenate([p * (np.exp(m - top) / norm)"
                " for p, m in zip(parts, maxima, strict=True)], axis=-1)",
            ),
        ),
    ),
    Variant(
        "softmax-by-reciprocal",
        "the softmax multiplies by the reciprocal of its sum",
        (
            Patch(
                _SOFTMAX,
                "weights /= scalars.total(weights, axis=-1, keepdims=True)",
                "weights *= 1 / scalars.total(weights, axis=-1, keepdims=True)",
            ),
        ),
    ),
    Variant(
        "norm-by-reciprocal-root",
        "layer normalisation multiplies by 1 / std, as Lean does",
        (
            Patch(_NORMALIZE, "return centred / std, std", "return centred * (1 / std), std"),
            Patch(
                _NORM_DERIVATIVE,
                "(centred - xhat * mean(w * xhat, axis=-1, keepdims=True)) / std",
                "(centred - xhat * mean(w * xhat, axis=-1, keepdims=True)) * (1 / std)",
            ),
        ),
    ),
    Variant(
        "norm-centred-once",
        "the variance of rows that are centred once",
        (
            Patch(
                _NORMALIZE,
                "twice_centred = centred - mean(centred, axis=-1, keepdims=True)",
                "twice_centred = centred",
            ),
        ),
    ),
    Variant(
        "norm-gradient-in-three-terms",
        "the gradient of layer normalisation as (D w - sum w - xhat sum(w xhat)) / (D std)",
        (
            Patch(
                _NORM_DERIVATIVE,
                "return (centred - xhat * mean(w * xhat, axis=-1, keepdims=True)) / std",
                "n = w.shape[-1]\n    return (n * w - scalars.total(w, axis=-1, keepdims=True)"
                " - xhat * scalars.total(w * xhat, axis=-1, keepdims=True)) / (n * std)",
            ),
        ),
    ),
    Variant(
        "paths-added-in-another-order",
        "the gradients through queries, keys and values are added last to first",
        (
            Patch(
                "layers.multi_head_attention:multi_head_attention_backward",
                "matmul(d_q, mha.wq.T) + matmul(d_k, mha.wk.T) + matmul(d_v, mha.wv.T)",
                "matmul(d_q, mha.wq.T) + (matmul(d_k, mha.wk.T) + matmul(d_v, mha.wv.T))",
            ),
        ),
    ),
)
"""Every correct variant."""
