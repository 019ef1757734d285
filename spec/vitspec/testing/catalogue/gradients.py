"""Mistakes in hand-written derivatives: the logits are right, cotangents or tangents are not."""

from __future__ import annotations

from vitspec.testing.catalogue import functions as at
from vitspec.testing.catalogue.deviation import Deviation, Form, Patch, of_lean, with_cls, with_mean

GRADIENTS = (
    # ---- head and pooling
    Deviation(
        "backbone-gradient-stopped", "backward", at.LINEAR_BACKWARD,
        "return grads, matmul(spec.weights.T, d_out)",
        "return grads, 0 * matmul(spec.weights.T, d_out)",
        "the gradient stops below the head",
        "Every gradient but the head's is 0.",
        ("not seen as a mistake: it is what linear probing does on purpose, as asked for in"
         " facebookresearch/ijepa#36",),
    ),
    with_mean(
        "mean-pool-gradient-not-divided", "backward", at.MEAN_POOL_BACKWARD,
        "d_pooled * (scalars.scalar(1, d_pooled.dtype) / n)", "d_pooled",
        "the factor 1/T is missing",
        "Every gradient below the pooling is too large by the number of tokens. Invisible with one"
        " token.",
        ("tracel-ai/burn#5604: forward and backward divide by different numbers",
         "mlpack/mlpack#2865"),
    ),
    with_cls(
        "cls-pool-gradient-to-all-rows", "backward", at.CLS_POOL_BACKWARD,
        "d_encoded[0] = d_pooled", "d_encoded[:] = d_pooled",
        "every token gets the CLS token's gradient",
        "All gradients below the pooling are wrong at their own size. Invisible without patches.",
        ("not seen in public; included as the counterpart of the mean's gradient",),
        practical=Form(
            at.POOL_BACKWARD, "return np.concatenate([above, patches])",
            'return np.concatenate([above, patches + (d_pooled[:D] if "cls" in kind else 0)])',
        ),
    ),
    # ---- attention
    Deviation(
        "softmax-gradient-without-row-dot", "backward", at.SOFTMAX_BACKWARD,
        "d_scores = d_weights - row_dots", "d_scores = d_weights + 0 * row_dots",
        "the softmax is differentiated entry by entry, like exp",
        "The gradients of Wq and Wk are wrong at their own size, and with them the image's and"
        " those of the layers before.",
        ("HomericIntelligence/Odyssey#2134: the dot product is missing",
         "RoboticsClubIITJ/ML-DL-implementation#153"),
    ),
    Deviation(
        "softmax-gradient-of-the-diagonal", "backward", at.SOFTMAX_BACKWARD,
        "d_scores = d_weights - row_dots", "d_scores = d_weights * (1 - weights)",
        "only the diagonal y (1 - y) of the softmax's Jacobian is used",
        "The gradients of Wq and Wk are wrong at their own size, and with them all below.",
        ("deeplearning4j/libnd4j#440: only `output * (1 - output)`", "pocketpy/cTensor#31"),
    ),
    Deviation(
        "softmax-gradient-over-queries", "backward", at.SOFTMAX_BACKWARD,
        "axis=-1", "axis=-2 if weights.ndim > 1 else -1",
        "the softmax gradient's sum runs over queries",
        "The gradients of Wq and Wk are wrong at their own size, and with them all below.",
        ("`src/softmax.py` of kmsgnnew/vision_transformer_numpy has it commented out:"
         " `.sum(axis=1)[:, None]` fails",),
    ),
    Deviation(
        "attention-gradient-scale-missing", "backward", at.SDPA_BACKWARD,
        "d_scores *= scale", "pass",
        "the scores' gradient is not scaled by 1 / sqrt(head_dim)",
        "The gradients of Wq and Wk are too large by sqrt(head_dim), those below are wrong."
        " Invisible if head_dim is 1.",
        ("ooples/AiDotNet.Tensors#49: wrong dQ and dK, against a backward by hand that scales",),
        practical=Form(at.ATTENTION_BACKWARD, "d_weights) * scale", "d_weights)"),
    ),
    Deviation(
        "attention-gradient-scale-twice", "backward", at.SDPA_BACKWARD,
        "d_scores *= scale", "d_scores *= scale * scale",
        "the scores' gradient is scaled twice",
        "The gradients of Wq and Wk are too small by sqrt(head_dim), those below are wrong."
        " Invisible if head_dim is 1.",
        ("AI-Hypercomputer/maxtext#1349: the factor in two places, of the forward",),
        practical=Form(at.ATTENTION_BACKWARD, "d_weights) * scale", "d_weights) * scale * scale"),
    ),
    Deviation(
        "attention-gradient-scores-transposed", "backward", at.SDPA_BACKWARD,
        "return matmul(d_scores, k), matmul(d_scores.swapaxes(-1, -2), q), d_v",
        "return matmul(d_scores.swapaxes(-1, -2), k), matmul(d_scores, q), d_v",
        "queries and keys get each other's rows",
        "The gradients of Wq and Wk are wrong at their own size, and with them all below. Invisible"
        " with one token.",
        ("`attention.py` of keri0711/vision_transformer_numpy: `delta_e_b` lacks a transposition",
         "ooples/AiDotNet.Tensors#49: swapped gradients"),
        practical=Form(
            at.ATTENTION_BACKWARD, "(d_scores, t.k)", "(d_scores.swapaxes(-1, -2), t.k)",
            also=(Patch(at.ATTENTION_BACKWARD, "d_scores.swapaxes(-1, -2), t.q", "d_scores, t.q"),),
        ),
    ),
    Deviation(
        "value-gradient-weights-not-transposed", "backward", at.SDPA_BACKWARD,
        "d_v = matmul(weights.swapaxes(-1, -2), d_out)", "d_v = matmul(weights, d_out)",
        "the values' gradient is A g instead of A^T g",
        "The gradient of Wv is wrong at its own size, and with it all below. Invisible with one"
        " token.",
        ("ooples/AiDotNet.Tensors#49: wrong dQ, dK and dV",),
        practical=Form(at.ATTENTION_BACKWARD, "factors).swapaxes(-1, -2)", "factors)"),
    ),
    Deviation(
        "attention-weights-constant", "backward", at.SDPA_BACKWARD,
        "d_scores *= scale", "d_scores *= 0",
        "the gradient stops at the attention weights",
        "The gradients of Wq and Wk are 0; those below lack these paths.",
        ("paiml/aprender#2203: no gradient for q, k and v", "bboylyg/NAD#8: a `detach` too many"),
        practical=Form(at.ATTENTION_BACKWARD, "d_weights) * scale", "d_weights) * 0"),
    ),
    Deviation(
        "value-weight-gets-key-gradient", "backward", at.MHA_BACKWARD,
        "d_wv=matmul(x.T, d_v)", "d_wv=matmul(x.T, d_k)",
        "the value weight's gradient is the key's",
        "The gradient of Wv is wrong at its own size; all else is right.",
        ("ooples/AiDotNet.Tensors#49: swapped gradients",),
        practical=Form(at.ATTENTION_BACKWARD),
    ),
    Deviation(
        "attention-gradient-without-value-path", "backward", at.MHA_BACKWARD,
        " + matmul(d_v, mha.wv.T)", "",
        "the input's gradient leaves out the values",
        "The layer's own gradients are right; those of all layers before, and the image's, are"
        " wrong at their own size.",
        ("not seen in public; included because the sum of three paths is easily cut short",),
        practical=Form(at.ATTENTION_BACKWARD),
    ),
    # ---- layer normalisation
    Deviation(
        "layer-norm-gradient-without-projection", "backward", at.NORMALIZE_DERIV,
        "(centred - xhat * mean(w * xhat, axis=-1, keepdims=True)) / std", "centred / std",
        "the variance is treated as a constant",
        "All gradients below a normalisation are wrong by tens of per cent; those of gamma and beta"
        " of the last are right.",
        ("mlpack/mlpack#1327: until then a batch normalisation's gradient was gamma / std",
         "mlpack/mlpack#1923: a test that could not see the input's gradient"),
    ),
    Deviation(
        "layer-norm-gradient-without-mean", "backward", at.NORMALIZE_DERIV,
        "centred = w - mean(w, axis=-1, keepdims=True)", "centred = w",
        "the mean is treated as a constant",
        "All gradients below a normalisation get a part along the row of ones.",
        ("mlpack/mlpack#1327: until then a batch normalisation's gradient was gamma / std",
         "AlexeyAB/darknet#4605: the mean's part is doubted"),
    ),
    Deviation(
        "layer-norm-gradient-without-gamma", "backward", at.LAYER_NORM_BACKWARD,
        "normalize_derivative(xhat, std, d_out * gamma)", "normalize_derivative(xhat, std, d_out)",
        "the gradient of x is not scaled by gamma",
        "All gradients below are wrong by the spread of gamma. Invisible at initialisation, where"
        " gamma is 1.",
        ("NVIDIA/TransformerEngine#67: the backward without the forward's 1 + gamma",
         "deepspeedai/DeepSpeed#692: gamma of another column"),
    ),
    Deviation(
        "gamma-gradient-not-normalised", "backward", at.LAYER_NORM_BACKWARD,
        "scalars.total(d_out * xhat, axis=0)", "scalars.total(d_out * x, axis=0)",
        "gamma's gradient uses the rows before normalisation",
        "The gradients of both gammas are wrong at their own size; all else is right.",
        ("deepspeedai/DeepSpeed#692: wrong gradients of gamma alone",),
    ),
    Deviation(
        "gamma-and-beta-gradients-swapped", "backward", at.LAYER_NORM_BACKWARD,
        "scalars.total(d_out * xhat, axis=0), scalars.total(d_out, axis=0)",
        "scalars.total(d_out, axis=0), scalars.total(d_out * xhat, axis=0)",
        "gamma gets beta's gradient and beta gamma's",
        "These gradients are wrong at their own size; all else is right.",
        ("Oneflow-Inc/oneflow#6149",),
    ),
    Deviation(
        "gamma-and-beta-gradients-missing", "backward", at.LAYER_NORM_BACKWARD,
        "scalars.total(d_out * xhat, axis=0), scalars.total(d_out, axis=0)",
        "0 * scalars.total(d_out * xhat, axis=0), 0 * scalars.total(d_out, axis=0)",
        "gamma and beta get no gradient",
        "The gradients of all gammas and betas are 0; all else is right.",
        ("paiml/aprender#2196", "harvard-edge/cs249r_book#1504: `requires_grad` left out"),
    ),
    # ---- encoder and feed-forward
    Deviation(
        "attention-residual-gradient-dropped", "backward", at.LAYER_BACKWARD,
        "return grads, d_residual1 + d_from_mha", "return grads, d_from_mha",
        "the gradient does not pass the first residual",
        "The last layer's gradients are right; those before fade from layer to layer.",
        ("NVIDIA/Fuser#2922: both residuals' additions were missing",),
        practical=Form(at.BLOCK_BACKWARD, "return grads, d_residual + d_x", "return grads, d_x",
                       alias="block-attention-residual-gradient-dropped"),
    ),
    Deviation(
        "feed-forward-residual-gradient-dropped", "backward", at.LAYER_BACKWARD,
        "d_normed1 = d_residual2 + d_from_ffn", "d_normed1 = d_from_ffn",
        "the gradient does not pass the second residual",
        "Only the last feed-forward's gradients are right; those before fade from layer to layer.",
        ("paiml/entrenar#313", "NVIDIA/Fuser#2922"),
        practical=Form(at.BLOCK_BACKWARD, "d_residual = d_out + d_x", "d_residual = d_x",
                       alias="block-mlp-residual-gradient-dropped"),
    ),
    Deviation(
        "relu-gradient-of-the-identity", "backward", at.RELU_BACKWARD,
        "return d_out * relu_deriv(z)", "return d_out",
        "the gradient passes where the ReLU was closed",
        "The gradients of W1 and b1, and all below, are wrong by about the share of closed units.",
        ("dannyneil/spiking_relu_conversion#1",
         "andersy005/deep-learning-specialization-coursera#5"),
        practical=Form(at.RELU_DERIV, "scalars.is_positive(z)", "1 + 0 * scalars.is_positive(z)"),
    ),
    Deviation(
        "relu-gradient-replaces", "backward", at.RELU_BACKWARD,
        "return d_out * relu_deriv(z)", "return relu_deriv(z) + 0 * d_out",
        "the activation's derivative is not multiplied by the gradient that arrives",
        "The gradients of W1 and b1, and all below, are wrong and do not depend on the cotangent's"
        " size.",
        ("haifengl/smile#528",),
        practical=Form(at.MLP_BACKWARD, "d_hidden = d_activated *",
                       "d_hidden = 0 * d_activated +"),
    ),
    Deviation(
        "bias-gradient-averaged", "backward", at.FFN_BACKWARD,
        "d_b1=scalars.total(d_hidden, axis=0)", "d_b1=scalars.mean(d_hidden, axis=0)",
        "a bias's gradient is the mean over the tokens instead of the sum",
        "The gradient of b1 is too small by the number of tokens; all else is right. Invisible with"
        " one token.",
        ("kvfrans/notes#5: `mean` for `sum`, over a batch",),
        practical=Form(at.MLP_BACKWARD),
    ),
    Deviation(
        "weight-gradient-of-the-pre-activation", "backward", at.FFN_BACKWARD,
        "d_w2=matmul(trace.activated.T, d_out)", "d_w2=matmul(trace.hidden.T, d_out)",
        "the second weight's gradient uses the hidden layer before the ReLU",
        "The gradient of W2 is wrong by its part from closed units; all else is right.",
        ("PaddlePaddle/Paddle#18678: input and output of an activation taken for each other",),
        practical=Form(at.MLP_BACKWARD),
    ),
    Deviation(
        "encoder-gradients-reversed", "backward", at.ENCODER_BACKWARD,
        "return tuple(reversed(last_first)), d_out", "return tuple(last_first), d_out",
        "the layers' gradients come last layer first",
        "Every layer has another one's gradients; the image's and those outside the encoder are"
        " right. Invisible with one layer.",
        ("TorchLean (DEV-1 in `docs/deviations.md`)",),
        practical=Form(at.BLOCKS_BACKWARD),
    ),
    Deviation(
        "layer-backward-at-its-output", "backward", at.ENCODER_BACKWARD,
        "encoder_layer_backward(layer, trace.input, d_out, trace)",
        "encoder_layer_backward(layer, trace.output, d_out, trace)",
        "a layer is differentiated at its output instead of its input",
        "The gradients of Wq, Wk and Wv are wrong at their own size; all else is right. In the"
        " practical family those of the first normalisation, and all below, are wrong.",
        ("not seen in public; included because a layer's output is the next one's input",),
        practical=Form(
            at.BLOCKS_BACKWARD, "grads, d_out = block",
            "import dataclasses; trace = dataclasses.replace(trace, input=trace.output)\n"
            "        grads, d_out = block",
        ),
    ),
    # ---- patches and tokens
    Deviation(
        "positions-gradient-stopped", "backward", at.POSITIONS_BACKWARD,
        "return d_out, d_out", "return 0 * d_out, d_out",
        "the positions get no gradient",
        "The positions' gradient is 0; all else is right.",
        ("on purpose: `self.pos_embed.requires_grad = False` in `vits.py` of"
         " facebookresearch/moco-v3",
         "`requires_grad=False` in `models_mae.py` of facebookresearch/mae"),
        practical=Form(at.SEQUENCE_BACKWARD, '"d_pos": np', '"d_pos": 0 * np'),
    ),
    with_cls(
        "cls-gradient-stopped", "backward", at.PREPEND_BACKWARD,
        "d_sequence[0].copy()", "0 * d_sequence[0]",
        "the CLS token gets no gradient",
        "The CLS token's gradient is 0; all else is right.",
        ("Project-MONAI/MONAI#3454: a `cls_token` without gradient",),
        practical=Form(at.SEQUENCE_BACKWARD, "d_cls = d_sequence", "d_cls = 0 * d_sequence"),
    ),
    Deviation(
        "patch-embedding-gradient-stopped", "backward", at.CONV2D_BACKWARD,
        "d_kernel=conv2d_kernel_deriv(spec, x, d_out), d_bias=conv2d_bias_deriv(d_out)",
        "d_kernel=0 * conv2d_kernel_deriv(spec, x, d_out), d_bias=0 * conv2d_bias_deriv(d_out)",
        "kernel and bias of the patch embedding get no gradient",
        "These two gradients are 0; all else is right.",
        ("on purpose in MoCo v3: facebookresearch/moco-v3#18, Sense-GVT/DeCLIP#9",),
        practical=Form(at.EMBEDDING_BACKWARD, "d_kernel=d_kernel, d_bias=scalars",
                       "d_kernel=0 * d_kernel, d_bias=0 * scalars"),
    ),
    Deviation(
        "image-gradient-stopped", "backward", at.CONV2D_BACKWARD,
        "return grads, conv2d_input_deriv(spec, x, d_out)",
        "return grads, 0 * conv2d_input_deriv(spec, x, d_out)",
        "the image gets no gradient",
        "The image's gradient is 0; all else is right.",
        ("mlpack/mlpack#1923: no layer comes before, so no test looks",),
        practical=Form(at.EMBEDDING_BACKWARD, "return grads, pixels", "return grads, 0 * pixels"),
    ),
    of_lean(
        "image-gradient-overwritten", "backward", at.INPUT_DERIV,
        "np.add.at(d_x_pad.reshape(-1), window_rows(spec, pixels), d_rows)",
        "d_x_pad.reshape(-1)[window_rows(spec, pixels)] = d_rows",
        "where windows overlap, the last one wins instead of adding up",
        "The image's gradient is wrong where patches overlap; all else is right. Invisible where"
        " the stride is at least the patch.",
        ("not seen in public; included because `a[i] = b` keeps one of several values",),
    ),
    Deviation(
        "image-gradient-kernel-flipped", "backward", at.INPUT_DERIV,
        "kernel_as_matrix(spec.kernel)", "kernel_as_matrix(spec.kernel[:, :, ::-1, ::-1])",
        "the kernel is flipped on the way back",
        "The image's gradient is wrong at its own size; all else is right. Invisible for patches of"
        " one pixel.",
        ("claroche-r/DMBSR#4: which of a convolution and its transpose flips",),
        practical=Form(at.EMBEDDING_BACKWARD),
    ),
    Deviation(
        "patch-bias-gradient-averaged", "backward", at.BIAS_DERIV,
        "scalars.total(", "1 / max(out_h * out_w, 1) * scalars.total(",
        "the patch bias's gradient is the mean over the grid instead of the sum",
        "The patch bias's gradient is too small by the number of patches; all else is right."
        " Invisible with one patch.",
        ("heyxhh/nnet-numpy#1: whether to divide is asked for",),
        practical=Form(at.EMBEDDING_BACKWARD, "d_bias=scalars.total",
                       "d_bias=1 / len(d_out) * scalars.total"),
    ),
)  # fmt: skip
"""From the head down to the patches."""
