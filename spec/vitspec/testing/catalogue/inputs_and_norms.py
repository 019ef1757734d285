"""Further mistakes in images and positions, in normalisations and blocks, and in the head."""

from __future__ import annotations

from vitspec.testing.catalogue import functions as at
from vitspec.testing.catalogue.deviation import Deviation, Form, Patch, of_practical
from vitspec.testing.catalogue.practical_gradients import SOURCE, interpolated

_AGAIN = "2 * image - 1"
_SCALED = "times(mha.output, block.layer_scale1)", "times(ffn.output, block.layer_scale2)"
_LOGITS = "matmul(spec.weights, x) + spec.bias"
_CLAMPED = "clamped = scalars.maximum_with_zero(variance) + scalars.scalar(epsilon, x.dtype)"
_GRADS = "d_norm1_gamma=d_gamma1,\n        d_norm1_beta=d_beta1,"
_OTHER_GRADS = "d_norm2_gamma=d_gamma2,\n        d_norm2_beta=d_beta2,"
_FACTORS = "factors = conditions.embedding_factors"


def _patches(function: str, *changes: tuple[str, str]) -> tuple[Patch, ...]:
    return tuple(Patch(function, old, new) for old, new in changes)


def _changed_image(new: str, factor: str) -> tuple[str, str, tuple[Patch, ...]]:
    """What stands for the image in the Lean mirror, with its derivatives."""
    own = "(self.patch_embed, image"
    return own, own.replace("image", new), (
        Patch(at.LEAN_MODEL_BACKWARD, f"{own}, d_patches)",
              f"(self.patch_embed, {new}, d_patches); d_image = {factor}d_image"),
        *_patches(at.LEAN_MODEL_JVP, (f"{own}, tangent.patch_embed, d_image)",
                                      f"(self.patch_embed, {new}, tangent.patch_embed,"
                                      f" {factor}d_image)")),
    )  # fmt: skip


def _changed_image_there(new: str, factor: str) -> Form:
    """The same in the practical family."""
    own = "(self.patch_embed, image"
    return Form(
        at.EMBED, own, own.replace("image", new),
        derivatives=(
            Patch(at.MODEL_BACKWARD, f"{own}, d_tokens)",
                  f"(self.patch_embed, {new}, d_tokens); d_image = {factor}d_image"),
            Patch(at.MODEL_JVP, f"{own}, tangent.patch_embed, d_image)",
                  f"(self.patch_embed, {new}, tangent.patch_embed, {factor}d_image)"),
        ),
    )  # fmt: skip


def _image(name: str, new: str, factor: str, *words: str) -> Deviation:
    own, other, derivatives = _changed_image(new, factor)
    description, effect, *seen = words
    return Deviation(
        name, "forward", at.LEAN_EMBED, own, other, description, effect, tuple(seen),
        derivatives=derivatives, practical=_changed_image_there(new, factor),
    )  # fmt: skip


IMAGES = (
    Deviation(
        "tokens-doubled", "forward", at.POSITIONS, "return x + spec.pos", "return x + x",
        "the sequence is added to itself instead of the positions",
        "Logits do not depend on the order of the patches; the positions' gradient, if automatic,"
        " is 0.",
        ("huggingface/candle#2286: the tokens were returned in the positions' place",),
        derivatives=(
            Patch(at.POSITIONS_BACKWARD, "return d_out, d_out", "return 0 * d_out, d_out + d_out"),
            Patch(at.POSITIONS_JVP, "return dx + tangent.pos", "return dx + dx"),
        ),
        practical=Form(
            at.SEQUENCE, "tokens + table", "tokens + tokens",
            also=(Patch(at.SEQUENCE, "self.cls_token + self.pos[0]",
                        "self.cls_token + self.cls_token"),),
            derivatives=_patches(
                at.SEQUENCE_BACKWARD,
                ("d_cls = d_sequence[0] if cls_rows else None",
                 "d_tokens, d_cls = 2 * d_tokens, 2 * d_sequence[0] if cls_rows else None"),
                ("np.concatenate([", "0 * np.concatenate(["),
            ),
        ),
    ),
    _image(
        "image-normalised-again", _AGAIN, "2 * ",
        "the image is normalised once more, as (x - 0.5) / 0.5",
        "All logits are wrong at their own size.",
        "mrluin/TextualDegRemoval#18: two normalisations of one image",
        "4uiiurz1/pytorch-nested-unet#62",
    ),
    _image(
        "image-divided-by-255", "image / 255", "1 / 255 * ",
        "the image, whose numbers are of the size of 1 already, is divided by 255",
        "Logits hardly depend on the image.",
        "magenta/magenta#925: divided twice", "pkmital/pycadl#5",
    ),
)  # fmt: skip

INTERPOLATED = (
    interpolated(
        "interpolation-scale-offset", "both", at.INTERPOLATION_WEIGHTS,
        SOURCE, SOURCE.replace("Fraction(old, new)", "Fraction(10 * old, 10 * new + 1)"),
        "positions are interpolated by the factor (n + 0.1) / N instead of n / N",
        "Interpolated positions are wrong by some per cent of their size, most at the far border."
        " Invisible at the size that the positions were trained for.",
        ("DINOv2 and its descendants, on purpose: facebookresearch/dinov2#378",),
        derivatives=(),
    ),
    interpolated(
        "interpolation-size-exchanged", "both", at.INTERPOLATION_AXES,
        "interpolation_weights(old[0], new[0]", "interpolation_weights(old[0], new[1]",
        "positions are interpolated to a grid of as many rows as there should be columns, and the"
        " other way round",
        "Interpolated positions are wrong at their own size. Nothing fails, for they are as many."
        " Invisible where the new grid is square.",
        ("lightly-ai/lightly-train#189: h and w swapped", "facebookresearch/dinov2#456"),
        also=(Patch(at.INTERPOLATION_AXES, "interpolation_weights(old[1], new[1]",
                    "interpolation_weights(old[1], new[0]"),),
        derivatives=(),
    ),
)  # fmt: skip
"""What only interpolated positions show."""

NORMS_AND_BLOCKS = (
    Deviation(
        "layer-norm-eps-1e-3", "both", at.NORMALIZE,
        "scalars.scalar(epsilon, x.dtype)", 'scalars.scalar("1e-3", x.dtype)',
        "epsilon is 1e-3, whatever the configuration says",
        "A normalised row is too small by 5e-4 / variance; more where the variance is small.",
        ("Keras' `LayerNormalization` has the default 1e-3",),
        derivatives=(),
    ),
    Deviation(
        "layer-norm-eps-as-floor", "both", at.NORMALIZE, _CLAMPED,
        "floor = scalars.scalar(epsilon, x.dtype)\n"
        "    clamped = scalars.maximum_with_zero(variance - floor) + floor",
        "epsilon is the least variance instead of being added to it: sqrt(max(variance, epsilon))",
        "Rows of a variance below epsilon are wrong at their own size; others are too large by"
        " epsilon / (2 variance), as if there were no epsilon.",
        ("not seen in public; included because a division is made safe in either way",),
    ),
    Deviation(
        "layer-norms-swapped", "forward", at.LAYER,
        "layer_norm(residual1, layer.norm1_gamma, layer.norm1_beta)",
        "layer_norm(residual1, layer.norm2_gamma, layer.norm2_beta)",
        "a layer's two normalisations have each other's parameters",
        "Logits are wrong by the difference of the parameters. Invisible at initialisation, where"
        " both pairs are alike.",
        ("not seen in public; included because two names that differ in a digit are easily mixed",),
        also=_patches(at.LAYER, ("layer_norm(residual2, layer.norm2_gamma, layer.norm2_beta)",
                                 "layer_norm(residual2, layer.norm1_gamma, layer.norm1_beta)")),
        practical=Form(
            at.BLOCK, "x, block.norm1_gamma, block.norm1_beta",
            "x, block.norm2_gamma, block.norm2_beta",
            also=_patches(at.BLOCK, ("residual, block.norm2_gamma, block.norm2_beta",
                                     "residual, block.norm1_gamma, block.norm1_beta")),
            derivatives=(
                *_patches(
                    at.BLOCK_BACKWARD,
                    ("t.residual, block.norm2_gamma", "t.residual, block.norm1_gamma"),
                    ("t.input, block.norm1_gamma", "t.input, block.norm2_gamma"),
                    (_GRADS, _GRADS.replace("d_gamma1", "d_gamma2").replace("d_beta1", "d_beta2")),
                    (_OTHER_GRADS,
                     _OTHER_GRADS.replace("d_gamma2", "d_gamma1").replace("d_beta2", "d_beta1")),
                ),
                *_patches(
                    at.BLOCK_JVP,
                    ("block.norm1_gamma, dx, tangent.norm1_gamma, tangent.norm1_beta",
                     "block.norm2_gamma, dx, tangent.norm2_gamma, tangent.norm2_beta"),
                    ("block.norm2_gamma, d_residual, tangent.norm2_gamma, tangent.norm2_beta",
                     "block.norm1_gamma, d_residual, tangent.norm1_gamma, tangent.norm1_beta"),
                ),
            ),
        ),
    ),
    of_practical(
        "branches-parallel", "forward", at.BLOCK,
        "layer_norm(residual, block.norm2", "layer_norm(x, block.norm2",
        "the feed-forward reads the block's input, beside the attention, not after it",
        "Logits are wrong at their own size.",
        ("on purpose in ViT-22B and in timm's `ParallelScalingBlock`",),
        derivatives=(
            *_patches(
                at.BLOCK_BACKWARD, ("t.residual, block.norm2", "t.input, block.norm2"),
                ("d_residual = d_out + d_x", "d_residual, d_past = d_out, d_x"),
                ("return grads, d_residual + d_x", "return grads, d_residual + d_x + d_past"),
            ),
            *_patches(at.BLOCK_JVP, ("t.residual, block.norm2_gamma, d_residual,",
                                     "t.input, block.norm2_gamma, dx,")),
        ),
    ),
    of_practical(
        "feed-forward-residual-of-the-normalised", "forward", at.BLOCK,
        "output = residual + times", "output = normed2 + times",
        "the feed-forward's output is added to its normalised input",
        "Logits are wrong at their own size.",
        ("not seen in public; included because pre-norm is often made out of post-norm",),
        derivatives=(
            *_patches(at.BLOCK_BACKWARD, ("d_normed2, eps)\n    d_residual = d_out + d_x",
                                          "d_normed2 + d_out, eps)\n    d_residual = d_x")),
            *_patches(at.BLOCK_JVP, ("return d_residual + times", "return d_normed2 + times")),
        ),
    ),
    of_practical(
        "layer-scales-twice", "forward", at.BLOCK,
        _SCALED[0], f"times({_SCALED[0]}, block.layer_scale1)",
        "the branches' outputs are multiplied by their scales twice",
        "Logits are wrong by the scales' distance from 1. Invisible in models without them.",
        ("not seen in public; included because a scale may be in the weights already",),
        also=_patches(at.BLOCK, (_SCALED[1], f"times({_SCALED[1]}, block.layer_scale2)")),
        derivatives=(
            Patch(at.SCALE_BACKWARD, "return d_out * scale, ",
                  "return d_out * scale * scale, 2 * scale * "),
            Patch(at.SCALE_JVP, "return d_branch * scale + branch * d_scale",
                  "return d_branch * scale * scale + 2 * scale * branch * d_scale"),
        ),
    ),
    Deviation(
        "layer-norm-shift-before-scale", "forward", at.LAYER_NORM,
        "xhat * gamma + beta", "(xhat + beta) * gamma",
        "beta is added before gamma multiplies",
        "Logits are wrong by beta times gamma's distance from 1. Invisible at initialisation.",
        ("not seen in public; included because the order of two operations is easily mistaken",),
    ),
    of_practical(
        "norm-before-the-blocks", "forward", at.EMBED, _FACTORS,
        f"{_FACTORS}\n        sequence = layer_norm(sequence, 1 + 0 * self.norm_gamma,"
        " 0 * self.norm_beta, self._epsilon)",
        "the rows are normalised, without gain and shift, before they enter the first block",
        "Logits are wrong at their own size.",
        ("CLIP's vision transformer has one, `ln_pre`, with parameters of its own; fresh ones are"
         " 1 and 0",),
    ),
)  # fmt: skip

HEAD = (
    Deviation(
        "logits-softmaxed", "forward", at.LINEAR, f"return {_LOGITS}",
        f"from vitspec.layers.activation import softmax\n    return softmax({_LOGITS})",
        "the softmax is applied to the logits",
        "The logits are probabilities: all are between 0 and 1, and add up to 1.",
        ("bowang-lab/Transformer-GCN-QA#32 and tflearn/tflearn#562: then once more by the loss",),
    ),
    Deviation(
        "pooled-tanh", "forward", at.LINEAR, "return matmul(spec.weights, x)",
        "import numpy as np\n    return matmul(spec.weights, np.tanh(x))",
        "the head reads tanh of the pooled row",
        "Logits are wrong by tens of per cent.",
        ("Hugging Face's `ViTPooler` has a tanh, after a matrix of its own",),
        derivatives=(
            *_patches(
                at.LINEAR_BACKWARD,
                ("grads = ", "import numpy as np\n    x = np.tanh(x)\n    grads = "),
                ("return grads, matmul(", "return grads, (1 - x * x) * matmul("),
            ),
            *_patches(
                at.LINEAR_JVP,
                ("return matmul(spec.weights, dx) + matmul(tangent.weights, x)",
                 "import numpy as np\n    x = np.tanh(x)\n    return"
                 " matmul(spec.weights, (1 - x * x) * dx) + matmul(tangent.weights, x)"),
            ),
        ),
    ),
    Deviation(
        "classes-reversed", "forward", at.LINEAR, f"return {_LOGITS}", f"return ({_LOGITS})[::-1]",
        "the logits are in the reverse order",
        "Every logit is another class's. Invisible with one class.",
        ("not seen in public; included because classes are numbered in many ways",),
        derivatives=(
            Patch(at.LINEAR_BACKWARD, "grads = ", "d_out = d_out[::-1]\n    grads = "),
            Patch(at.LINEAR_JVP, "x) + tangent.bias", "x)[::-1] + tangent.bias[::-1]"),
            Patch(at.LINEAR_JVP, "matmul(spec.weights, dx)", "matmul(spec.weights, dx)[::-1]"),
        ),
    ),
)  # fmt: skip
"""The head, and what it reads."""
