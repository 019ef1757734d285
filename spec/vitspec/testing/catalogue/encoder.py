"""Mistakes in the forward of the encoder and its feed-forward network."""

from __future__ import annotations

from vitspec.testing.catalogue.deviation import Deviation, Patch

TRACE = "models.transformer:encoder_layer_trace"
BACKWARD = "models.transformer:encoder_layer_backward"
JVP = "models.transformer:encoder_layer_jvp"
ENCODER = "models.transformer:encoder"
ENCODER_TRACE = "models.transformer:encoder_trace"
ENCODER_BACKWARD = "models.transformer:encoder_backward"
ENCODER_JVP = "models.transformer:encoder_jvp"
FFN_TRACE = "layers.feed_forward:feed_forward_trace"
FFN_BACKWARD = "layers.feed_forward:feed_forward_backward"
FFN_JVP = "layers.feed_forward:feed_forward_jvp"
RELU = "layers.activation:relu"
RELU_DERIV = "layers.activation:relu_deriv"

_LAYERS = "for layer in spec.layers:"
_READ_W1 = "ffn.w1.T.reshape(ffn.w1.shape)"
_RELU = "return scalars.maximum_with_zero(z)"
_RELU_DERIV = "return scalars.is_positive(z)"
_SQUARE_ROOT_OF_2_OVER_PI = "0.7978845608028654"
_TANH = f"np.tanh({_SQUARE_ROOT_OF_2_OVER_PI} * (z + 0.044715 * z**3))"
_ERF = (
    "import math; x = z.real; erf = np.vectorize(math.erf, otypes=[x.dtype])(x / math.sqrt(2)); "
    "density = np.exp(-x * x / 2) / math.sqrt(2 * math.pi); "
)
_SKIP_LAST = "dataclasses.replace(traces[-1], output=traces[-1].{})"


def _replace_last_output(by: str) -> Patch:
    """The last layer's output in the trace becomes another of its values."""
    return Patch(
        ENCODER_TRACE, "return tuple(traces)",
        f"import dataclasses; return (*traces[:-1], {_SKIP_LAST.format(by)}) if traces else ()",
    )  # fmt: skip


ENCODER_DEVIATIONS = (
    Deviation(
        "pre-norm", "forward", TRACE,
        "mha = multi_head_attention_trace(layer.mha, x)\n"
        "    residual1 = x + mha.output\n"
        "    normed1 = layer_norm(residual1, layer.norm1_gamma, layer.norm1_beta)\n"
        "    ffn = feed_forward_trace(layer.ffn, normed1)\n"
        "    residual2 = normed1 + ffn.output\n"
        "    output = layer_norm(residual2, layer.norm2_gamma, layer.norm2_beta)",
        "normed = layer_norm(x, layer.norm1_gamma, layer.norm1_beta)\n"
        "    mha = multi_head_attention_trace(layer.mha, normed)\n"
        "    residual1 = x + mha.output\n"
        "    normed1 = layer_norm(residual1, layer.norm2_gamma, layer.norm2_beta)\n"
        "    ffn = feed_forward_trace(layer.ffn, normed1)\n"
        "    residual2 = output = residual1 + ffn.output",
        "each half of a layer normalises its input instead of its sum with its input",
        "Everything is wrong at its own size: it is another architecture, that of the ViT paper"
        " (without its final normalisation). Invisible without layers.",
        ("`ViTBlock` of D2L, `vision-transformer.md` in d2l-ai/d2l-en",
         "`TransformerEncoder` of the Flax NNX tutorial,"
         " https://flax.readthedocs.io/en/latest/examples/vit_training.html",
         "harvardnlp/annotated-transformer#1: text and code differ"),
        derivatives=(
            Patch(
                BACKWARD,
                "d_residual2, d_gamma2, d_beta2 = layer_norm_backward(t.residual2,"
                " layer.norm2_gamma, d_out)\n"
                "    ffn_grads, d_from_ffn = feed_forward_backward(layer.ffn, t.normed1,"
                " d_residual2, t.ffn)\n"
                "    d_normed1 = d_residual2 + d_from_ffn\n"
                "    d_residual1, d_gamma1, d_beta1 = layer_norm_backward(t.residual1,"
                " layer.norm1_gamma, d_normed1)\n"
                "    mha_grads, d_from_mha = multi_head_attention_backward(layer.mha, x,"
                " d_residual1, trace=t.mha)",
                "ffn_grads, d_normed1 = feed_forward_backward(layer.ffn, t.normed1, d_out, t.ffn)\n"
                "    d_from_ffn, d_gamma2, d_beta2 = layer_norm_backward(t.residual1,"
                " layer.norm2_gamma, d_normed1)\n"
                "    d_residual1 = d_out + d_from_ffn\n"
                "    normed = layer_norm(x, layer.norm1_gamma, layer.norm1_beta)\n"
                "    mha_grads, d_normed = multi_head_attention_backward(layer.mha, normed,"
                " d_residual1, trace=t.mha)\n"
                "    d_from_mha, d_gamma1, d_beta1 = layer_norm_backward(x, layer.norm1_gamma,"
                " d_normed)",
            ),
            Patch(
                JVP,
                "d_residual1 = dx + multi_head_attention_jvp(layer.mha, x, tangent.mha, dx,"
                " trace=t.mha)\n"
                "    d_normed1 = layer_norm_jvp(\n"
                "        t.residual1, layer.norm1_gamma, d_residual1, tangent.norm1_gamma,"
                " tangent.norm1_beta\n"
                "    )\n"
                "    d_from_ffn = feed_forward_jvp(layer.ffn, t.normed1, tangent.ffn, d_normed1,"
                " t.ffn)\n"
                "    return layer_norm_jvp(\n"
                "        t.residual2,\n"
                "        layer.norm2_gamma,\n"
                "        d_normed1 + d_from_ffn,\n"
                "        tangent.norm2_gamma,\n"
                "        tangent.norm2_beta,\n"
                "    )",
                "normed = layer_norm(x, layer.norm1_gamma, layer.norm1_beta)\n"
                "    d_normed = layer_norm_jvp(x, layer.norm1_gamma, dx, tangent.norm1_gamma,"
                " tangent.norm1_beta)\n"
                "    d_residual1 = dx + multi_head_attention_jvp(layer.mha, normed, tangent.mha,"
                " d_normed, trace=t.mha)\n"
                "    d_normed1 = layer_norm_jvp(t.residual1, layer.norm2_gamma, d_residual1,"
                " tangent.norm2_gamma, tangent.norm2_beta)\n"
                "    return d_residual1 + feed_forward_jvp(layer.ffn, t.normed1, tangent.ffn,"
                " d_normed1, t.ffn)",
            ),
        ),
    ),
    Deviation(
        "attention-residual-missing", "forward", TRACE,
        "residual1 = x + mha.output", "residual1 = mha.output",
        "the input is not added to the attention's output",
        "Everything is wrong at its own size; tokens become alike. Invisible without layers.",
        ("facebookresearch/multimodal#305: the input was overwritten before it was added",
         "kyegomez/BitNet#32: `x = x + x`"),
        derivatives=(
            Patch(BACKWARD, "return grads, d_residual1 + d_from_mha", "return grads, d_from_mha"),
            Patch(JVP, "d_residual1 = dx + multi_head", "d_residual1 = multi_head"),
        ),
    ),
    Deviation(
        "feed-forward-residual-missing", "forward", TRACE,
        "residual2 = normed1 + ffn.output", "residual2 = ffn.output",
        "the feed-forward's input is not added to its output",
        "Everything is wrong at its own size. Invisible without layers.",
        ("ChristophReich1996/MaxViT#8: multiplied instead of added",
         "facebookresearch/multimodal#305"),
        derivatives=(
            Patch(BACKWARD, "d_normed1 = d_residual2 + d_from_ffn", "d_normed1 = d_from_ffn"),
            Patch(JVP, "d_normed1 + d_from_ffn,", "d_from_ffn,"),
        ),
    ),
    Deviation(
        "feed-forward-residual-before-norm", "forward", TRACE,
        "residual2 = normed1 + ffn.output", "residual2 = residual1 + ffn.output",
        "the second residual branches off before the first normalisation",
        "Wrong by the difference between the sum and its normalisation, tens of per cent. Invisible"
        " without layers.",
        ("NVIDIA-NeMo/Speech#4350: a post-norm layer's residual",
         "SHI-Labs/Compact-Transformers#25: the branching point, the other way round"),
        derivatives=(
            Patch(BACKWARD, "d_normed1 = d_residual2 + d_from_ffn", "d_normed1 = d_from_ffn"),
            Patch(
                BACKWARD, "mha_grads, d_from_mha =",
                "d_residual1 = d_residual1 + d_residual2\n    mha_grads, d_from_mha =",
            ),
            Patch(JVP, "d_normed1 + d_from_ffn,", "d_residual1 + d_from_ffn,"),
        ),
    ),
    Deviation(
        "feed-forward-residual-of-the-input", "forward", TRACE,
        "residual2 = normed1 + ffn.output", "residual2 = x + ffn.output",
        "the layer's input is added to the feed-forward's output",
        "The attention's output reaches the next layer only through the feed-forward; wrong at its"
        " own size. Invisible without layers.",
        ("strutive07/transformer-tensorflow2.0#14",),
        derivatives=(
            Patch(BACKWARD, "d_normed1 = d_residual2 + d_from_ffn", "d_normed1 = d_from_ffn"),
            Patch(BACKWARD, "d_residual1 + d_from_mha", "d_residual1 + d_from_mha + d_residual2"),
            Patch(JVP, "d_normed1 + d_from_ffn,", "dx + d_from_ffn,"),
        ),
    ),
    Deviation(
        "feed-forward-bias-missing", "forward", FFN_TRACE, "hidden += ffn.b1", "pass",
        "the hidden layer has no bias",
        "Logits are wrong by the size of b1, and its gradient, if automatic, is 0. Invisible at"
        " initialisation, where biases are 0.",
        ("OpenNMT/CTranslate2#297: converters accept a missing bias",),
        derivatives=(
            Patch(
                FFN_BACKWARD, "scalars.total(d_hidden, axis=0)",
                "0 * scalars.total(d_hidden, axis=0)",
            ),
            Patch(FFN_JVP, " + tangent.b1", ""),
        ),
    ),
    Deviation(
        "feed-forward-weight-transposed", "forward", FFN_TRACE,
        "matmul(x, ffn.w1)", f"matmul(x, {_READ_W1})",
        "the buffer of W1, stored (in, out), is read as (out, in)",
        "Logits are wrong at their own size. With hidden_dim = embed_dim the weight is square, and"
        " a loader that goes by shapes sees nothing.",
        ("TorchLean's import of PyTorch weights (DEV-5 in `docs/deviations.md`)",
         "huggingface/transformers#47031: transposed if the two sizes are alike"),
        derivatives=(
            Patch(
                FFN_BACKWARD, "d_w1=matmul(x.T, d_hidden)",
                "d_w1=matmul(x.T, d_hidden).reshape(ffn.w1.T.shape).T.copy()",
            ),
            Patch(FFN_BACKWARD, "matmul(d_hidden, ffn.w1.T)", f"matmul(d_hidden, {_READ_W1}.T)"),
            Patch(
                FFN_JVP, "matmul(dx, ffn.w1) + matmul(x, tangent.w1)",
                f"matmul(dx, {_READ_W1}) + matmul(x, tangent.w1.T.reshape(ffn.w1.shape))",
            ),
        ),
    ),
    Deviation(
        "activation-missing", "forward", FFN_TRACE,
        "activated = relu(hidden)", "activated = hidden",
        "nothing stands between the two matrices of the feed-forward",
        "Logits are wrong by tens of per cent: negative hidden values pass.",
        ("somepago/saint#23", "YujiaBao/ls#1", "nutonomy/nuscenes-devkit#728"),
        derivatives=(
            Patch(FFN_BACKWARD, "relu_backward(trace.hidden, matmul(d_out, ffn.w2.T))",
                  "matmul(d_out, ffn.w2.T)"),
            Patch(FFN_JVP, "relu_jvp(trace.hidden, d_hidden)", "d_hidden"),
        ),
    ),
    Deviation(
        "activation-gelu", "forward", RELU, _RELU,
        _ERF + "return (z * (1 + erf) / 2 + (z - x) * x * density).astype(z.dtype)",
        "the activation is GELU, x (1 + erf(x / sqrt 2)) / 2, instead of ReLU",
        "The feed-forward is wrong by up to 0.17 an entry, near -0.75 and 0.75; all logits and"
        " gradients move by per cents.",
        ("the ViT paper's own; `torch.nn.GELU` in `ViTMLP` of D2L, `vision-transformer.md` in"
         " d2l-ai/d2l-en",),
        derivatives=(
            Patch(
                RELU_DERIV, _RELU_DERIV,
                _ERF + "return ((1 + erf) / 2 + x * density).astype(z.dtype)",
            ),
        ),
    ),
    Deviation(
        "activation-gelu-tanh", "forward", RELU, _RELU, f"return z * (1 + {_TANH}) / 2",
        "the activation is GELU in its tanh form instead of ReLU",
        "As `activation-gelu`, from which it differs by up to 5e-4 an entry: in bfloat16 the two"
        " cannot be told from each other on ordinary inputs.",
        ("`jax.nn.gelu` has the default `approximate=True`: jax-ml/jax#4428, jax-ml/jax#4438",
         "`nnx.gelu` in the Flax NNX tutorial,"
         " https://flax.readthedocs.io/en/latest/examples/vit_training.html",
         "tinygrad/tinygrad#16162: a port of ViT-B/32 off by more than 1e-2"),
        derivatives=(
            Patch(
                RELU_DERIV, _RELU_DERIV,
                f"t = {_TANH}; return (1 + t) / 2 + z * (1 - t * t) / 2 *"
                f" {_SQUARE_ROOT_OF_2_OVER_PI} * (1 + 3 * 0.044715 * z * z)",
            ),
        ),
    ),
    Deviation(
        "activation-quick-gelu", "forward", RELU, _RELU, "return z / (1 + np.exp(-1.702 * z))",
        "the activation is x sigmoid(1.702 x) instead of ReLU",
        "As `activation-gelu`, from which it differs by up to 2e-2 an entry.",
        ("`QuickGELU` in CLIP's vision transformer: openai/CLIP#294",),
        derivatives=(
            Patch(
                RELU_DERIV, _RELU_DERIV,
                "s = 1 / (1 + np.exp(-1.702 * z)); return s + 1.702 * z * s * (1 - s)",
            ),
        ),
    ),
    Deviation(
        "layers-in-reverse", "forward", ENCODER_TRACE, _LAYERS,
        "for layer in reversed(spec.layers):",
        "the layers run last to first",
        "Everything is wrong at its own size. Invisible with one layer, or if all are alike.",
        ("not seen in public; included because a list of layers is easily filled from the back",),
        also=(Patch(ENCODER, _LAYERS, "for layer in reversed(spec.layers):"),),
        derivatives=(
            Patch(ENCODER_BACKWARD, "zip(reversed(spec.layers),", "zip(spec.layers,"),
            Patch(ENCODER_BACKWARD, "tuple(reversed(last_first))", "tuple(last_first)"),
            Patch(
                ENCODER_JVP, "zip(spec.layers, tangent.layers,",
                "zip(reversed(spec.layers), reversed(tangent.layers),",
            ),
        ),
    ),
    Deviation(
        "layers-shared", "forward", ENCODER_TRACE, _LAYERS,
        "for layer in spec.layers[:1] * len(spec.layers):",
        "every layer has the first layer's parameters",
        "Logits do not depend on the other layers' parameters. Invisible with one layer, or at an"
        " initialisation that copies one layer.",
        ("zalandoresearch/pytorch-vq-vae#2: `[layer] * n`", "IDEA-Research/DAB-DETR#17",
         "espnet/espnet#1278"),
        also=(Patch(ENCODER, _LAYERS, "for layer in spec.layers[:1] * len(spec.layers):"),),
        derivatives=(
            Patch(
                ENCODER_BACKWARD, "zip(reversed(spec.layers),",
                "zip(spec.layers[:1] * len(spec.layers),",
            ),
            Patch(
                ENCODER_BACKWARD, "return tuple(reversed(last_first)), d_out",
                "first = last_first[:1]\n    for grads in last_first[1:]:\n"
                "        first = [first[0].map(lambda a, b: a + b, grads)]\n"
                "    return (*first, *(g.map(lambda a: 0 * a) for g in last_first[1:])), d_out",
            ),
            Patch(
                ENCODER_JVP, "zip(spec.layers, tangent.layers,",
                "zip(spec.layers[:1] * len(traces), tangent.layers[:1] * len(traces),",
            ),
        ),
    ),
    Deviation(
        "last-layer-skipped", "forward", ENCODER_TRACE,
        "return tuple(traces)", _replace_last_output("input").new,
        "the last layer's input is the encoder's output",
        "Everything is wrong at its own size, and the last layer's gradients, if automatic, are 0."
        " Invisible without layers.",
        ("on purpose in repositories built on LLaVA: `mm_vision_select_layer` of -2",),
        also=(
            Patch(ENCODER, _LAYERS, "for layer in spec.layers[:-1]:"),
        ),
        derivatives=(
            Patch(
                BACKWARD, "    t = trace or encoder_layer_trace(layer, x)\n",
                "    t = trace or encoder_layer_trace(layer, x)\n"
                "    skipped, passed = t.output is t.input, d_out\n"
                "    d_out = 0 * d_out if skipped else d_out\n",
            ),
            Patch(
                BACKWARD, "return grads, d_residual1 + d_from_mha",
                "return grads, passed if skipped else d_residual1 + d_from_mha",
            ),
            Patch(
                JVP, "    t = trace or encoder_layer_trace(layer, x)\n",
                "    t = trace or encoder_layer_trace(layer, x)\n"
                "    if t.output is t.input:\n        return dx\n",
            ),
        ),
    ),
    Deviation(
        "last-norm-missing", "forward", ENCODER_TRACE,
        "return tuple(traces)", _replace_last_output("residual2").new,
        "the last layer's second normalisation is left out",
        "The pooled row and the logits are wrong at their own size, and with them all gradients."
        " Invisible without layers.",
        ("H-EmbodVis/TurboVLA#6: `hidden_states[-1]` is the value before the last normalisation",
         "agentdr1/LA_MIL#3: a normalisation declared and not used"),
        also=(
            Patch(
                ENCODER, "x = encoder_layer(layer, x)",
                "x = encoder_layer_trace(layer, x).residual2 if layer is spec.layers[-1] else"
                " encoder_layer(layer, x)",
            ),
        ),
        derivatives=(
            Patch(
                BACKWARD,
                "d_residual2, d_gamma2, d_beta2 = layer_norm_backward(t.residual2,"
                " layer.norm2_gamma, d_out)",
                "d_residual2, d_gamma2, d_beta2 = (\n"
                "        (d_out, 0 * layer.norm2_gamma, 0 * layer.norm2_beta)\n"
                "        if t.output is t.residual2\n"
                "        else layer_norm_backward(t.residual2, layer.norm2_gamma, d_out)\n    )",
            ),
            Patch(
                JVP, "return layer_norm_jvp(",
                "if t.output is t.residual2:\n        return d_normed1 + d_from_ffn\n"
                "    return layer_norm_jvp(",
            ),
        ),
    ),
)  # fmt: skip
"""In the order of the computation, layers first."""
