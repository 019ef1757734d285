"""Mistakes in the forward of the encoder and its layers."""

from __future__ import annotations

from vitspec.testing.catalogue import functions as at
from vitspec.testing.catalogue.deviation import Deviation, Form, Patch, of_lean

_LAYERS = "for layer in spec.layers:"
_BLOCKS = "self.encoder.layers"


def _last_output(by: str) -> tuple[str, str]:
    """The last layer's output in the trace becomes another of its values."""
    last = f"dataclasses.replace(traces[-1], output=traces[-1].{by})"
    return (
        "return tuple(traces)",
        f"import dataclasses; return (*traces[:-1], {last}) if traces else ()",
    )


def _first_layer_has_all(function: str) -> Patch:
    """The gradients of layers that share the first one's parameters are added up there."""
    return Patch(
        function, "return tuple(reversed(last_first)), d_out",
        "first = last_first[:1]\n    for grads in last_first[1:]:\n"
        "        first = [first[0].map(lambda a, b: a + b, grads)]\n"
        "    return (*first, *(g.map(lambda a: 0 * a) for g in last_first[1:])), d_out",
    )  # fmt: skip


LAYERS = (
    of_lean(
        "pre-norm", "forward", at.LAYER,
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
                at.LAYER_BACKWARD,
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
                at.LAYER_JVP, "d_residual1 = dx + multi",
                "normed = layer_norm(x, layer.norm1_gamma, layer.norm1_beta)\n"
                "    d_normed = layer_norm_jvp(x, layer.norm1_gamma, dx, tangent.norm1_gamma,"
                " tangent.norm1_beta)\n"
                "    d_residual1 = dx + multi_head_attention_jvp(layer.mha, normed, tangent.mha,"
                " d_normed, trace=t.mha)\n"
                "    d_normed1 = layer_norm_jvp(t.residual1, layer.norm2_gamma, d_residual1,"
                " tangent.norm2_gamma, tangent.norm2_beta)\n"
                "    return d_residual1 + feed_forward_jvp(layer.ffn, t.normed1, tangent.ffn,"
                " d_normed1, t.ffn)\n"
                "    d_residual1 = dx + multi",
            ),
        ),
    ),
    Deviation(
        "attention-residual-missing", "forward", at.LAYER,
        "residual1 = x + mha.output", "residual1 = mha.output",
        "the input is not added to the attention's output",
        "Everything is wrong at its own size; tokens become alike. Invisible without layers.",
        ("facebookresearch/multimodal#305: the input was overwritten before it was added",
         "kyegomez/BitNet#32: `x = x + x`"),
        derivatives=(
            Patch(at.LAYER_BACKWARD, "return grads, d_residual1 + d_from_mha",
                  "return grads, d_from_mha"),
            Patch(at.LAYER_JVP, "d_residual1 = dx + multi_head", "d_residual1 = multi_head"),
        ),
        practical=Form(at.BLOCK, "residual = x + times", "residual = times", derivatives=(
            Patch(at.BLOCK_BACKWARD, "return grads, d_residual + d_x", "return grads, d_x"),
            Patch(at.BLOCK_JVP, "d_residual = dx + times", "d_residual = times"),
        )),
    ),
    Deviation(
        "feed-forward-residual-missing", "forward", at.LAYER,
        "residual2 = normed1 + ffn.output", "residual2 = ffn.output",
        "the feed-forward's input is not added to its output",
        "Everything is wrong at its own size. Invisible without layers.",
        ("ChristophReich1996/MaxViT#8: multiplied instead of added",
         "facebookresearch/multimodal#305"),
        derivatives=(Patch(at.LAYER_BACKWARD, "d_normed1 = d_residual2 + d_from_ffn",
                           "d_normed1 = d_from_ffn"),
                     Patch(at.LAYER_JVP, "d_normed1 + d_from_ffn,", "d_from_ffn,")),
        practical=Form(at.BLOCK, "output = residual + times", "output = times", derivatives=(
            Patch(at.BLOCK_BACKWARD, "d_residual = d_out + d_x", "d_residual = d_x"),
            Patch(at.BLOCK_JVP, "return d_residual + times", "return times"),
        )),
    ),
    of_lean(
        "feed-forward-residual-before-norm", "forward", at.LAYER,
        "residual2 = normed1 + ffn.output", "residual2 = residual1 + ffn.output",
        "the second residual branches off before the first normalisation",
        "Wrong by the difference between the sum and its normalisation, tens of per cent. Invisible"
        " without layers.",
        ("NVIDIA-NeMo/Speech#4350: a post-norm layer's residual",
         "SHI-Labs/Compact-Transformers#25: the branching point, the other way round"),
        derivatives=(Patch(at.LAYER_BACKWARD, "d_normed1 = d_residual2 + d_from_ffn",
                           "d_normed1 = d_from_ffn"),
                     Patch(at.LAYER_BACKWARD, "mha_grads, d_from_mha =",
                           "d_residual1 = d_residual1 + d_residual2\n    mha_grads, d_from_mha ="),
                     Patch(at.LAYER_JVP, "d_normed1 + d_from_ffn,", "d_residual1 + d_from_ffn,")),
    ),
    Deviation(
        "feed-forward-residual-of-the-input", "forward", at.LAYER,
        "residual2 = normed1 + ffn.output", "residual2 = x + ffn.output",
        "the layer's input is added to the feed-forward's output",
        "The attention's output reaches the next layer only through the feed-forward; wrong at its"
        " own size. Invisible without layers.",
        ("strutive07/transformer-tensorflow2.0#14",),
        derivatives=(Patch(at.LAYER_BACKWARD, "d_normed1 = d_residual2 + d_from_ffn",
                           "d_normed1 = d_from_ffn"),
                     Patch(at.LAYER_BACKWARD, "d_residual1 + d_from_mha",
                           "d_residual1 + d_from_mha + d_residual2"),
                     Patch(at.LAYER_JVP, "d_normed1 + d_from_ffn,", "dx + d_from_ffn,")),
        practical=Form(at.BLOCK, "output = residual + times", "output = x + times", derivatives=(
            Patch(at.BLOCK_BACKWARD, "d_residual = d_out + d_x", "d_residual = d_x"),
            Patch(at.BLOCK_BACKWARD, "d_residual + d_x\n", "d_residual + d_x + d_out\n"),
            Patch(at.BLOCK_JVP, "return d_residual + times", "return dx + times"),
        )),
    ),
)  # fmt: skip
"""Layers, in the order of the computation."""

ENCODER = (
    Deviation(
        "layers-in-reverse", "forward", at.ENCODER_TRACE, _LAYERS,
        "for layer in reversed(spec.layers):",
        "the layers run last to first",
        "Everything is wrong at its own size. Invisible with one layer, or if all are alike.",
        ("not seen in public; included because a list of layers is easily filled from the back",),
        also=(Patch(at.ENCODER, _LAYERS, "for layer in reversed(spec.layers):"),),
        derivatives=(Patch(at.ENCODER_BACKWARD, "zip(reversed(spec.layers),", "zip(spec.layers,"),
                     Patch(at.ENCODER_BACKWARD, "tuple(reversed(last_first))", "tuple(last_first)"),
                     Patch(at.ENCODER_JVP, "zip(spec.layers, tangent.layers,",
                           "zip(reversed(spec.layers), reversed(tangent.layers),")),
        practical=Form(
            at.BLOCKS, "zip(blocks,", "zip(reversed(blocks),",
            also=(Patch(at.MODEL_FORWARD, _BLOCKS, f"reversed({_BLOCKS})"),),
            derivatives=(
                Patch(at.BLOCKS_BACKWARD, "zip(blocks,", "zip(reversed(blocks),"),
                Patch(at.BLOCKS_BACKWARD, "tuple(reversed(last_first))", "tuple(last_first)"),
                Patch(at.BLOCKS_JVP, "zip(blocks, tangents,",
                      "zip(reversed(blocks), reversed(tangents),"),
            ),
        ),
    ),
    Deviation(
        "layers-shared", "forward", at.ENCODER_TRACE, _LAYERS,
        "for layer in spec.layers[:1] * len(spec.layers):",
        "every layer has the first layer's parameters",
        "Logits do not depend on the other layers' parameters. Invisible with one layer, or at an"
        " initialisation that copies one layer.",
        ("zalandoresearch/pytorch-vq-vae#2: `[layer] * n`", "IDEA-Research/DAB-DETR#17",
         "espnet/espnet#1278"),
        also=(Patch(at.ENCODER, _LAYERS, "for layer in spec.layers[:1] * len(spec.layers):"),),
        derivatives=(
            Patch(at.ENCODER_BACKWARD, "zip(reversed(spec.layers),",
                  "zip(spec.layers[:1] * len(spec.layers),"),
            _first_layer_has_all(at.ENCODER_BACKWARD),
            Patch(at.ENCODER_JVP, "zip(spec.layers, tangent.layers,",
                  "zip(spec.layers[:1] * len(traces), tangent.layers[:1] * len(traces),"),
        ),
        practical=Form(
            at.BLOCKS, "zip(blocks,", "zip(blocks[:1] * len(blocks),",
            also=(Patch(at.MODEL_FORWARD, _BLOCKS, f"{_BLOCKS}[:1] * len({_BLOCKS})"),),
            derivatives=(
                Patch(at.BLOCKS_BACKWARD, "zip(blocks,", "zip(blocks[:1] * len(blocks),"),
                _first_layer_has_all(at.BLOCKS_BACKWARD),
                Patch(at.BLOCKS_JVP, "zip(blocks, tangents,",
                      "zip(blocks[:1] * len(blocks), tangents[:1] * len(blocks),"),
            ),
        ),
    ),
    Deviation(
        "last-layer-skipped", "forward", at.ENCODER_TRACE, *_last_output("input"),
        "the last layer's input is the encoder's output",
        "Everything is wrong at its own size, and the last layer's gradients, if automatic, are 0."
        " Invisible without layers.",
        ("on purpose in repositories built on LLaVA: `mm_vision_select_layer` of -2",),
        also=(Patch(at.ENCODER, _LAYERS, "for layer in spec.layers[:-1]:"),),
        derivatives=(Patch(at.LAYER_BACKWARD, "    t = trace or encoder_layer_trace(layer, x)\n",
                           "    t = trace or encoder_layer_trace(layer, x)\n"
                           "    skipped, passed = t.output is t.input, d_out\n"
                           "    d_out = 0 * d_out if skipped else d_out\n"),
                     Patch(at.LAYER_BACKWARD, "return grads, d_residual1 + d_from_mha",
                           "return grads, passed if skipped else d_residual1 + d_from_mha"),
                     Patch(at.LAYER_JVP, "    t = trace or encoder_layer_trace(layer, x)\n",
                           "    t = trace or encoder_layer_trace(layer, x)\n"
                           "    if t.output is t.input:\n        return dx\n")),
        practical=Form(
            at.BLOCKS,
            also=(Patch(at.MODEL_FORWARD, f"zip({_BLOCKS}, settings",
                        f"zip({_BLOCKS}[:-1], settings[:-1]"),),
        ),
    ),
    of_lean(
        "last-norm-missing", "forward", at.ENCODER_TRACE, *_last_output("residual2"),
        "the last layer's second normalisation is left out",
        "The pooled row and the logits are wrong at their own size, and with them all gradients."
        " Invisible without layers.",
        ("H-EmbodVis/TurboVLA#6: `hidden_states[-1]` is the value before the last normalisation",
         "agentdr1/LA_MIL#3: a normalisation declared and not used"),
        also=(Patch(at.ENCODER, "x = encoder_layer(layer, x)",
                    "x = encoder_layer_trace(layer, x).residual2 if layer is spec.layers[-1] else"
                    " encoder_layer(layer, x)"),),
        derivatives=(
            Patch(at.LAYER_BACKWARD,
                  "d_residual2, d_gamma2, d_beta2 = layer_norm_backward(t.residual2,"
                  " layer.norm2_gamma, d_out)",
                  "d_residual2, d_gamma2, d_beta2 = (\n"
                  "        (d_out, 0 * layer.norm2_gamma, 0 * layer.norm2_beta)\n"
                  "        if t.output is t.residual2\n"
                  "        else layer_norm_backward(t.residual2, layer.norm2_gamma, d_out)\n    )"),
            Patch(at.LAYER_JVP, "return layer_norm_jvp(",
                  "if t.output is t.residual2:\n        return d_normed1 + d_from_ffn\n"
                  "    return layer_norm_jvp("),
        ),
    ),
)  # fmt: skip
"""What becomes of the layers."""
