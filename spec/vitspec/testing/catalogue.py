"""The catalogue of named deviations: mistakes that people make in a ViT, as patches of the spec.

A deviation names one function of the specification, a piece of its source, and what stands there
instead. `planted` runs the specification with that mistake; nothing on disk changes, and the
specification itself has no switches. A `both` deviation sits in a function that the forward and its
derivatives share, which need not match any more; a `forward` one leaves the hand-written
derivatives as they are.
"""

from __future__ import annotations
import __future__

import importlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Deviation:
    """One mistake.

    Attributes:
        name: permanent, in kebab case.
        kind: what it changes: `forward`, `backward`, `jvp`, or what these share (`both`).
        function: where, as "module:function" below `vitspec`.
        old: source text that occurs in that function exactly once.
        new: what replaces it.
        description: what is wrong, in words.
    """

    name: str
    kind: Literal["forward", "backward", "jvp", "both"]
    function: str
    old: str
    new: str
    description: str


@contextmanager
def planted(deviation: Deviation) -> Iterator[None]:
    """Run the specification with this mistake in it."""
    module_name, function_name = deviation.function.split(":")
    module = importlib.import_module(f"vitspec.{module_name}")
    original = getattr(module, function_name)
    replacement = _patched(original, deviation, module)
    # Modules hold functions by name, so the mistake must go wherever the original is held.
    holders = [
        (holder, name)
        for holder in [m for n, m in sys.modules.items() if n.startswith("vitspec")]
        for name, value in vars(holder).items()
        if value is original
    ]
    for holder, name in holders:
        setattr(holder, name, replacement)
    try:
        yield
    finally:
        for holder, name in holders:
            setattr(holder, name, original)


def _patched(original: object, deviation: Deviation, module: object) -> object:
    source = inspect.getsource(inspect.unwrap(original))  # type: ignore[arg-type]
    if source.count(deviation.old) != 1:
        raise LookupError(
            f"{deviation.name}: expected {deviation.old!r} once in {deviation.function}, found it "
            f"{source.count(deviation.old)} times; the catalogue is out of date"
        )
    text = source.replace(deviation.old, deviation.new)
    code = compile(
        text, f"<{deviation.name}>", "exec", __future__.annotations.compiler_flag, dont_inherit=True
    )
    scope: dict[str, object] = {}
    exec(code, vars(module), scope)
    return scope[deviation.function.split(":")[1]]


_SDPA_BACKWARD = "layers.attention:scaled_dot_product_attention_backward"
_MHA_BACKWARD = "layers.multi_head_attention:multi_head_attention_backward"
_MHA_JVP = "layers.multi_head_attention:multi_head_attention_jvp"
_LAYER_TRACE = "models.transformer:encoder_layer_trace"
_LAYER_BACKWARD = "models.transformer:encoder_layer_backward"

CATALOGUE: tuple[Deviation, ...] = (
    # ---- attention
    Deviation(
        "attention-scale-missing", "both", "layers.attention:attention_scale_denom",
        "np.sqrt(scalars.scalar(max(d, 1), dtype))", "scalars.scalar(1, dtype)",
        "scores are not divided by sqrt(head_dim)",
    ),
    Deviation(
        "attention-scale-by-head-dim", "both", "layers.attention:attention_scale_denom",
        "np.sqrt(scalars.scalar(max(d, 1), dtype))", "scalars.scalar(max(d, 1), dtype)",
        "scores are divided by head_dim instead of its square root",
    ),
    Deviation(
        "softmax-over-queries", "forward", "layers.attention:attention_weights",
        "return softmax(scores)", "return softmax(scores.swapaxes(-1, -2)).swapaxes(-1, -2)",
        "the softmax normalises over queries instead of keys",
    ),
    Deviation(
        "mask-sense-inverted", "both", "layers.attention:attention_weights",
        "hard_masked_softmax(scores, mask)", "hard_masked_softmax(scores, ~mask)",
        "True is read as blocked",
    ),
    Deviation(
        "blocked-row-uniform", "both", "layers.attention:attention_weights",
        "hard_masked_softmax(scores, mask)",
        "hard_masked_softmax(np.where(mask.any(-1, keepdims=True), scores, 0),"
        " mask | ~mask.any(-1, keepdims=True))",
        "a fully blocked query attends to every key alike instead of to none",
    ),
    Deviation(
        "heads-split-by-raw-reshape", "both", "layers.multi_head_attention:split_heads",
        "x.reshape(n, head_count, I // head_count).transpose(1, 0, 2)",
        "x.reshape(head_count, n, I // head_count)",
        "heads cut the flat buffer, so they mix tokens (TorchLean's first release)",
    ),
    Deviation(
        "heads-interleaved", "both", "layers.multi_head_attention:split_heads",
        "x.reshape(n, head_count, I // head_count).transpose(1, 0, 2)",
        "x.reshape(n, I // head_count, head_count).transpose(2, 0, 1)",
        "neighbouring columns go to different heads",
    ),
    Deviation(
        "heads-combined-by-raw-reshape", "both", "layers.multi_head_attention:combine_heads",
        "x.transpose(1, 0, 2).reshape(n, H * d)", "x.reshape(n, H * d)",
        "the heads' outputs are not brought back to their tokens",
    ),
    # ---- normalisation
    Deviation(
        "layer-norm-eps-1e-5", "both", "layers.normalization:normalize",
        "scalars.scalar(EPSILON, x.dtype)", 'scalars.scalar("1e-5", x.dtype)',
        "epsilon is PyTorch's default 1e-5 instead of 1e-6",
    ),
    Deviation(
        "layer-norm-eps-1e-12", "both", "layers.normalization:normalize",
        "scalars.scalar(EPSILON, x.dtype)", 'scalars.scalar("1e-12", x.dtype)',
        "epsilon is Hugging Face's default 1e-12 instead of 1e-6",
    ),
    Deviation(
        "layer-norm-eps-outside-root", "both", "layers.normalization:normalize",
        "std = np.sqrt(scalars.maximum_with_zero(clamped))",
        "std = np.sqrt(variance) + scalars.scalar(EPSILON, x.dtype)",
        "epsilon is added to the standard deviation instead of the variance",
    ),
    Deviation(
        "layer-norm-sample-variance", "both", "layers.normalization:normalize",
        "variance = mean(twice_centred * twice_centred, axis=-1, keepdims=True)",
        "variance = mean(twice_centred * twice_centred, axis=-1, keepdims=True)"
        " * x.shape[-1] / (x.shape[-1] - 1)",
        "the variance divides by D - 1",
    ),
    Deviation(
        "layer-norm-over-tokens", "forward", "layers.normalization:layer_norm",
        "xhat, _ = normalize(x)", "xhat = normalize(x.T)[0].T",
        "the statistics run over the tokens instead of the features",
    ),
    Deviation(
        "layer-norm-without-shift", "forward", "layers.normalization:layer_norm",
        "xhat * gamma + beta", "xhat * gamma + 0 * beta",
        "beta is not added",
    ),
    # ---- encoder and feed-forward
    Deviation(
        "attention-residual-missing", "forward", _LAYER_TRACE,
        "residual1 = x + mha.output", "residual1 = mha.output",
        "the input is not added to the attention's output",
    ),
    Deviation(
        "feed-forward-residual-missing", "forward", _LAYER_TRACE,
        "residual2 = normed1 + ffn.output", "residual2 = ffn.output",
        "the feed-forward's input is not added to its output",
    ),
    Deviation(
        "feed-forward-residual-before-norm", "forward", _LAYER_TRACE,
        "residual2 = normed1 + ffn.output", "residual2 = residual1 + ffn.output",
        "the second residual branches off before the first normalisation",
    ),
    Deviation(
        "feed-forward-bias-missing", "forward", "layers.feed_forward:feed_forward_trace",
        "hidden += ffn.b1", "pass",
        "the hidden layer has no bias",
    ),
    Deviation(
        "layers-in-reverse", "forward", "models.transformer:encoder_trace",
        "for layer in spec.layers:", "for layer in reversed(spec.layers):",
        "the layers run last to first",
    ),
    # ---- patches, tokens, pooling
    Deviation(
        "kernel-flipped", "both", "layers.conv2d:kernel_as_matrix",
        "return kernel.reshape(", "return kernel[:, :, ::-1, ::-1].reshape(",
        "a true convolution: the kernel is flipped",
    ),
    Deviation(
        "window-channels-last", "both", "layers.conv2d:window_rows",
        "view.transpose(1, 2, 0, 3, 4)", "view.transpose(1, 2, 3, 4, 0)",
        "a patch is flattened channels last, the kernel channels first",
    ),
    Deviation(
        "padding-shifted", "forward", "geometry:pad",
        "padded[:, padding : padding + H, padding : padding + W] = x",
        "low = max(padding - 1, 0); padded[:, low : low + H, low : low + W] = x",
        "the padding is off by one: more below and to the right than above and to the left",
    ),
    Deviation(
        "patches-column-major", "forward", "models.tokens:grid_to_tokens",
        "patches.reshape(D, out_h * out_w).T",
        "patches.transpose(0, 2, 1).reshape(D, out_h * out_w).T",
        "tokens are numbered down the columns of the grid",
    ),
    Deviation(
        "positions-skip-first-row", "forward", "layers.positional_encoding:add_positional_encoding",
        "return x + spec.pos", "pos = spec.pos.copy(); pos[0] = 0; return x + pos",
        "no position is added to row 0 (the CLS token's)",
    ),
    Deviation(
        "cls-token-last", "forward", "models.tokens:prepend_cls",
        "np.concatenate([cls_token[None, :], tokens])",
        "np.concatenate([tokens, cls_token[None, :]])",
        "the CLS token stands below the tokens",
    ),
    Deviation(
        "cls-pools-last-row", "forward", "models.tokens:cls_pool",
        "return encoded[0]", "return encoded[-1]",
        "the last row is taken for the CLS token",
    ),
    Deviation(
        "mean-pool-sums", "forward", "models.tokens:mean_pool",
        "scalars.mean(encoded, axis=0)", "scalars.total(encoded, axis=0)",
        "the tokens are summed, not averaged",
    ),
    # ---- gradients
    Deviation(
        "mean-pool-gradient-not-divided", "backward", "models.tokens:mean_pool_backward",
        "d_pooled * (scalars.scalar(1, d_pooled.dtype) / n)", "d_pooled",
        "the factor 1/T is missing",
    ),
    Deviation(
        "cls-pool-gradient-to-all-rows", "backward", "models.tokens:cls_pool_backward",
        "d_encoded[0] = d_pooled", "d_encoded[:] = d_pooled",
        "every token gets the CLS token's gradient",
    ),
    Deviation(
        "softmax-gradient-without-row-dot", "backward",
        "layers.activation:softmax_backward_from_weights",
        "d_scores = d_weights - row_dots", "d_scores = d_weights + 0 * row_dots",
        "the softmax is differentiated entry by entry",
    ),
    Deviation(
        "softmax-gradient-over-queries", "backward",
        "layers.activation:softmax_backward_from_weights",
        "axis=-1", "axis=-2 if weights.ndim > 1 else -1",
        "the softmax gradient's sum runs over queries",
    ),
    Deviation(
        "attention-gradient-scale-missing", "backward", _SDPA_BACKWARD,
        "d_scores *= scale", "pass",
        "the scores' gradient is not scaled by 1 / sqrt(head_dim)",
    ),
    Deviation(
        "attention-gradient-scale-twice", "backward", _SDPA_BACKWARD,
        "d_scores *= scale", "d_scores *= scale * scale",
        "the scores' gradient is scaled twice",
    ),
    Deviation(
        "attention-gradient-scores-transposed", "backward", _SDPA_BACKWARD,
        "return matmul(d_scores, k), matmul(d_scores.swapaxes(-1, -2), q), d_v",
        "return matmul(d_scores.swapaxes(-1, -2), k), matmul(d_scores, q), d_v",
        "queries and keys get each other's rows",
    ),
    Deviation(
        "attention-weights-constant", "backward", _SDPA_BACKWARD,
        "d_scores *= scale", "d_scores *= 0",
        "the gradient stops at the attention weights",
    ),
    Deviation(
        "value-weight-gets-key-gradient", "backward", _MHA_BACKWARD,
        "d_wv=matmul(x.T, d_v)", "d_wv=matmul(x.T, d_k)",
        "the value weight's gradient is the key's",
    ),
    Deviation(
        "attention-gradient-without-value-path", "backward", _MHA_BACKWARD,
        " + matmul(d_v, mha.wv.T)", "",
        "the input's gradient leaves out the values",
    ),
    Deviation(
        "layer-norm-gradient-without-projection", "backward",
        "layers.normalization:normalize_derivative",
        "(centred - xhat * mean(w * xhat, axis=-1, keepdims=True)) / std", "centred / std",
        "the variance is treated as a constant",
    ),
    Deviation(
        "layer-norm-gradient-without-mean", "backward", "layers.normalization:normalize_derivative",
        "centred = w - mean(w, axis=-1, keepdims=True)", "centred = w",
        "the mean is treated as a constant",
    ),
    Deviation(
        "layer-norm-gradient-without-gamma", "backward", "layers.normalization:layer_norm_backward",
        "normalize_derivative(xhat, std, d_out * gamma)", "normalize_derivative(xhat, std, d_out)",
        "the gradient of x is not scaled by gamma",
    ),
    Deviation(
        "gamma-gradient-not-normalised", "backward", "layers.normalization:layer_norm_backward",
        "scalars.total(d_out * xhat, axis=0)", "scalars.total(d_out * x, axis=0)",
        "gamma's gradient uses the rows before normalisation",
    ),
    Deviation(
        "attention-residual-gradient-dropped", "backward", _LAYER_BACKWARD,
        "return grads, d_residual1 + d_from_mha", "return grads, d_from_mha",
        "the gradient does not pass the first residual",
    ),
    Deviation(
        "feed-forward-residual-gradient-dropped", "backward", _LAYER_BACKWARD,
        "d_normed1 = d_residual2 + d_from_ffn", "d_normed1 = d_from_ffn",
        "the gradient does not pass the second residual",
    ),
    Deviation(
        "relu-gradient-of-the-identity", "backward", "layers.activation:relu_backward",
        "return d_out * relu_deriv(z)", "return d_out",
        "the gradient passes where the ReLU was closed",
    ),
    Deviation(
        "bias-gradient-averaged", "backward", "layers.feed_forward:feed_forward_backward",
        "d_b1=scalars.total(d_hidden, axis=0)", "d_b1=scalars.mean(d_hidden, axis=0)",
        "a bias's gradient is the mean over the tokens instead of the sum",
    ),
    Deviation(
        "weight-gradient-of-the-pre-activation", "backward",
        "layers.feed_forward:feed_forward_backward",
        "d_w2=matmul(trace.activated.T, d_out)", "d_w2=matmul(trace.hidden.T, d_out)",
        "the second weight's gradient uses the hidden layer before the ReLU",
    ),
    Deviation(
        "encoder-gradients-reversed", "backward", "models.transformer:encoder_backward",
        "return tuple(reversed(last_first)), d_out", "return tuple(last_first), d_out",
        "the layers' gradients come last layer first (TorchLean's list)",
    ),
    Deviation(
        "layer-backward-at-its-output", "backward", "models.transformer:encoder_backward",
        "encoder_layer_backward(layer, trace.input, d_out, trace)",
        "encoder_layer_backward(layer, trace.output, d_out, trace)",
        "a layer is differentiated at its output instead of its input",
    ),
    Deviation(
        "image-gradient-overwritten", "backward", "layers.conv2d:conv2d_input_deriv",
        "np.add.at(d_x_pad.reshape(-1), window_rows(spec, pixels), d_rows)",
        "d_x_pad.reshape(-1)[window_rows(spec, pixels)] = d_rows",
        "where windows overlap, the last one wins instead of adding up",
    ),
    Deviation(
        "patch-bias-gradient-averaged", "backward", "layers.conv2d:conv2d_bias_deriv",
        "scalars.total(", "scalars.mean(",
        "the patch bias's gradient is the mean over the grid instead of the sum",
    ),
    # ---- forward mode
    Deviation(
        "jvp-without-key-tangent", "jvp", "layers.attention:scaled_dot_product_attention_jvp",
        " + matmul(q, dk.swapaxes(-1, -2))", "",
        "the keys' tangent is left out",
    ),
    Deviation(
        "jvp-without-query-weight-tangent", "jvp", _MHA_JVP,
        "matmul(dx, mha.wq) + matmul(x, tangent.wq)", "matmul(dx, mha.wq)",
        "the query weight's tangent is left out",
    ),
    Deviation(
        "jvp-without-gamma", "jvp", "layers.normalization:layer_norm_jvp",
        "normalize_derivative(xhat, std, dx) * gamma", "normalize_derivative(xhat, std, dx)",
        "the normalised tangent is not scaled by gamma",
    ),
    Deviation(
        "jvp-without-image-tangent", "jvp", "layers.conv2d:conv2d_jvp",
        "y = y + matmul(kernel_as_matrix(spec.kernel), d_rows.T)", "del d_rows",
        "the patch embedding ignores the image's tangent",
    ),
)  # fmt: skip
"""Every known deviation, by layer."""


def deviation(name: str) -> Deviation:
    """The deviation of this name.

    Raises:
        KeyError: there is none; the message lists the names.
    """
    by_name = {d.name: d for d in CATALOGUE}
    if name not in by_name:
        raise KeyError(f"no deviation is named {name!r}; known: {', '.join(by_name)}")
    return by_name[name]
