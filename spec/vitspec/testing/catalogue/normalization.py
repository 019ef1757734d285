"""Mistakes in the layer normalisation's forward."""

from __future__ import annotations

from vitspec.testing.catalogue import functions as at
from vitspec.testing.catalogue.deviation import Deviation, Form, Patch

_EPS = "scalars.scalar(epsilon, x.dtype)"
_VARIANCE = "variance = mean(twice_centred * twice_centred, axis=-1, keepdims=True)"
_PROJECTION = "xhat * mean(w * xhat, axis=-1, keepdims=True)"
_BACKWARD_LINES = (
    "xhat, std = normalize(x, epsilon)\n    d_x = normalize_derivative(xhat, std, d_out * gamma)"
)
_JVP_LINES = (
    "xhat, std = normalize(x, epsilon)\n    return normalize_derivative(xhat, std, dx) * gamma"
)

NORMALIZATION = (
    Deviation(
        "layer-norm-eps-1e-5", "both", at.NORMALIZE, _EPS, 'scalars.scalar("1e-5", x.dtype)',
        "epsilon is PyTorch's default 1e-5 instead of 1e-6",
        "A normalised row is too small by 4.5e-6 / variance, so about 1e-5 of everything after it;"
        " more where the variance is small. Not to be seen in bfloat16 on ordinary inputs.",
        ("`torch.nn.LayerNorm` has the default 1e-5: pytorch/pytorch#81090", "karpathy/makemore#1",
         "keras-team/keras-hub#642"),
        derivatives=(),
    ),
    Deviation(
        "layer-norm-eps-1e-12", "both", at.NORMALIZE, _EPS, 'scalars.scalar("1e-12", x.dtype)',
        "epsilon is Hugging Face's default 1e-12 instead of 1e-6",
        "A normalised row is too large by 5e-7 / variance: at variance 1 hardly above float32's"
        " rounding. Rows of small variance show it.",
        ("`ViTConfig` of Hugging Face has the default 1e-12: huggingface/transformers#18137",),
        derivatives=(),
    ),
    Deviation(
        "layer-norm-eps-outside-root", "both", at.NORMALIZE,
        "std = np.sqrt(scalars.maximum_with_zero(clamped))",
        f"std = np.sqrt(variance) + {_EPS}",
        "epsilon is added to the standard deviation instead of the variance",
        "A relative error of 1e-6 / std instead of 5e-7 / variance: at variance 1 hardly above"
        " float32's rounding. A row of equal entries divides by 1e-6 instead of 1e-3.",
        ("codertimo/BERT-pytorch#30, from the Annotated Transformer",
         "pytorch/pytorch#1959: `(x - mean) / (std + self.eps)`"),
        derivatives=(Patch(at.NORMALIZE_DERIV, _PROJECTION,
                           f"{_PROJECTION} * std / (std - scalars.scalar(EPSILON, w.dtype))"),),
        practical=Form(),
    ),
    Deviation(
        "layer-norm-sample-variance", "both", at.NORMALIZE, _VARIANCE,
        f"{_VARIANCE} * x.shape[-1] / (x.shape[-1] - 1)",
        "the variance divides by D - 1",
        "Every normalised row is too small by the factor sqrt((D - 1) / D): 7e-4 at D = 768. NaN if"
        " embed_dim is 1.",
        ("harvardnlp/annotated-transformer#122: `Tensor.std` is the unbiased one",
         "harvardnlp/annotated-transformer#119", "LBANN/lbann#2024"),
        derivatives=(
            Patch(at.NORMALIZE_DERIV, _PROJECTION,
                  f"{_PROJECTION} * w.shape[-1] / (w.shape[-1] - 1)"),
        ),
    ),
    Deviation(
        "layer-norm-not-centred", "both", at.NORMALIZE,
        "centred = x - mean(x, axis=-1, keepdims=True)\n"
        "    twice_centred = centred - mean(centred, axis=-1, keepdims=True)",
        "centred = twice_centred = x",
        "the mean is not subtracted, and the variance is the mean square (RMSNorm)",
        "Wrong by the size of the rows' means over their standard deviations. Invisible for rows of"
        " mean 0.",
        ("huggingface/pytorch-image-models#2380: the two norms confused the other way round",
         "InternLM/xtuner#1257: the RMS norm of a ViT"),
        derivatives=(
            Patch(at.NORMALIZE_DERIV, "centred = w - mean(w, axis=-1, keepdims=True)",
                  "centred = w"),
        ),
    ),
    Deviation(
        "layer-norm-over-tokens", "forward", at.LAYER_NORM, "xhat, _ = normalize(x, epsilon)",
        "xhat = normalize(x.T, epsilon)[0].T",
        "the statistics run over the tokens instead of the features",
        "All logits are wrong at their own size; an image's tokens lose what they have in common.",
        ("jadore801120/attention-is-all-you-need-pytorch#17", "OpenNMT/OpenNMT-tf#6"),
        derivatives=(Patch(at.LAYER_NORM_BACKWARD, _BACKWARD_LINES,
                           "xhat_t, std_t = normalize(x.T, epsilon)\n    xhat = xhat_t.T\n"
                           "    d_x = normalize_derivative(xhat_t, std_t, (d_out * gamma).T).T"),
                     Patch(at.LAYER_NORM_JVP, _JVP_LINES,
                           "xhat_t, std_t = normalize(x.T, epsilon)\n    xhat = xhat_t.T\n"
                           "    return normalize_derivative(xhat_t, std_t, dx.T).T * gamma")),
    ),
    Deviation(
        "layer-norm-over-everything", "forward", at.LAYER_NORM, "xhat, _ = normalize(x, epsilon)",
        "xhat = normalize(x.reshape(1, -1), epsilon)[0].reshape(x.shape)",
        "one mean and one variance for all tokens together",
        "Rows keep their differences in mean and size; wrong by tens of per cent. Invisible with"
        " one token.",
        ("reczoo/FuxiCTR#23: `nn.LayerNorm([num_fields, embedding_dim])`",
         "Qualcomm-AI-research/geometric-algebra-transformer#8"),
        derivatives=(
            Patch(
                at.LAYER_NORM_BACKWARD, _BACKWARD_LINES,
                "row, std = normalize(x.reshape(1, -1), epsilon)\n    xhat = row.reshape(x.shape)\n"
                "    d_x = normalize_derivative(row, std, (d_out * gamma).reshape(1, -1))"
                ".reshape(x.shape)",
            ),
            Patch(
                at.LAYER_NORM_JVP, _JVP_LINES,
                "row, std = normalize(x.reshape(1, -1), epsilon)\n    xhat = row.reshape(x.shape)\n"
                "    return normalize_derivative(row, std, dx.reshape(1, -1)).reshape(x.shape)"
                " * gamma",
            ),
        ),
    ),
    Deviation(
        "layer-norm-without-shift", "forward", at.LAYER_NORM,
        "xhat * gamma + beta", "xhat * gamma + 0 * beta",
        "beta is not added",
        "Logits are wrong by the size of beta, and beta's gradient, if automatic, is 0. Invisible"
        " at initialisation, where beta is 0.",
        ("`bias=False` of `torch.nn.LayerNorm`, as in candle's `layer_norm_no_bias`:"
         " huggingface/candle#3993",),
        derivatives=(Patch(at.LAYER_NORM_BACKWARD, ", scalars.total(d_out, axis=0)",
                           ", 0 * scalars.total(d_out, axis=0)"),
                     Patch(at.LAYER_NORM_JVP, " + d_beta", "")),
    ),
    Deviation(
        "layer-norm-gamma-plus-one", "forward", at.LAYER_NORM,
        "xhat * gamma + beta", "xhat * (1 + gamma) + beta",
        "the scale is 1 + gamma",
        "Where gamma is near 1, normalised rows are twice too large.",
        ("NVIDIA/TransformerEngine#67: zero-centred gamma",
         "Blaizzy/mlx-vlm#2041: a checkpoint of the other convention", "pytorch/executorch#22444"),
        derivatives=(Patch(at.LAYER_NORM_BACKWARD, "d_out * gamma", "d_out * (1 + gamma)"),
                     Patch(at.LAYER_NORM_JVP, ", dx) * gamma", ", dx) * (1 + gamma)")),
    ),
    Deviation(
        "layer-norm-shared", "forward", at.LAYER,
        "layer_norm(residual2, layer.norm2_gamma, layer.norm2_beta)",
        "layer_norm(residual2, layer.norm1_gamma, layer.norm1_beta)",
        "the second normalisation has the first one's parameters",
        "Logits are wrong by the difference of the parameters, and the second pair's gradients, if"
        " automatic, are 0. Invisible at initialisation, where both pairs are alike.",
        ("allenai/OLMo#222", "ml-explore/mlx#1636"),
        derivatives=(
            Patch(at.LAYER_BACKWARD, "layer.norm2_gamma, d_out", "layer.norm1_gamma, d_out"),
            Patch(at.LAYER_BACKWARD, "norm1_gamma=d_gamma1", "norm1_gamma=d_gamma1 + d_gamma2"),
            Patch(at.LAYER_BACKWARD, "norm1_beta=d_beta1", "norm1_beta=d_beta1 + d_beta2"),
            Patch(at.LAYER_BACKWARD, "norm2_gamma=d_gamma2", "norm2_gamma=0 * d_gamma2"),
            Patch(at.LAYER_BACKWARD, "norm2_beta=d_beta2", "norm2_beta=0 * d_beta2"),
            Patch(at.LAYER_JVP,
                  "layer.norm2_gamma,\n        d_normed1 + d_from_ffn,\n"
                  "        tangent.norm2_gamma,\n        tangent.norm2_beta",
                  "layer.norm1_gamma,\n        d_normed1 + d_from_ffn,\n"
                  "        tangent.norm1_gamma,\n        tangent.norm1_beta"),
        ),
        practical=Form(at.BLOCK, "layer_norm(residual, block.norm2_gamma, block.norm2_beta",
                       "layer_norm(residual, block.norm1_gamma, block.norm1_beta",
                       alias="block-norms-shared"),
    ),
)  # fmt: skip
"""In the order of the computation."""
