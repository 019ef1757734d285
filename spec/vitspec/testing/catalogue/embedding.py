"""Mistakes in the forward before and after the encoder: patches, tokens, positions, pooling."""

from __future__ import annotations

from vitspec.testing.catalogue import functions as at
from vitspec.testing.catalogue.deviation import Deviation, Form, Patch, of_lean, with_cls, with_mean

_TO_TOKENS = "patches.reshape(D, out_h * out_w).T"
_TO_GRID = "tokens.T.reshape(tokens.shape[1], out_h, out_w)"
_ADD = "return x + spec.pos"
_ROWS = "whole.transpose(1, 3, 0, 2, 4)"
_PIXELS = "rows.reshape(g_h, g_w, C, ph, pw).transpose(2, 0, 3, 1, 4)"
_CLS_SUM = "self.cls_token + self.pos[0]"
_D_POS = "np.concatenate("
_MEAN = "scalars.mean(encoded, axis=0)"
_SHARE = "d_pooled * (scalars.scalar(1, d_pooled.dtype) / n)"
_TILE = "np.tile(share, (n, 1))"
_SAME_SHIFTS = (
    "[max(2 * spec.padding - (size - extent) % spec.stride, 0) // 2 - spec.padding"
    " for size, extent in zip(x_pad.shape[1:], (ph, pw))]"
)


def _adding(backward: str, jvp: str) -> tuple[Patch, ...]:
    """How adding the positions is derived instead."""
    return (
        Patch(at.POSITIONS_BACKWARD, "return d_out, d_out", backward),
        Patch(at.POSITIONS_JVP, "return dx + tangent.pos", jvp),
    )


def _times(factor: str) -> Form:
    """The practical family's positions, the CLS token's too, times a factor."""
    return Form(
        at.SEQUENCE, "tokens + table", f"tokens + {factor} * table",
        also=(Patch(at.SEQUENCE, _CLS_SUM, f"self.cls_token + {factor} * self.pos[0]"),),
        derivatives=(Patch(at.SEQUENCE_BACKWARD, _D_POS, f"{factor} * {_D_POS}"),),
    )  # fmt: skip


EMBEDDING = (
    Deviation(
        "kernel-flipped", "both", at.KERNEL,
        "return kernel.reshape(", "return kernel[:, :, ::-1, ::-1].reshape(",
        "a true convolution: the kernel is flipped",
        "All logits are wrong at their own size. Invisible for patches of one pixel.",
        ("keras-team/keras#3015: Theano flips, TensorFlow does not",
         "hi-abhi/tensorflow-value-iteration-networks#2", "pytorch/pytorch#117534"),
        derivatives=(Patch(at.KERNEL_DERIV, ".reshape(spec.kernel.shape)",
                           ".reshape(spec.kernel.shape)[:, :, ::-1, ::-1]"),),
        practical=Form(derivatives=(
            Patch(at.EMBEDDING_BACKWARD, ".reshape(spec.kernel.shape)",
                  ".reshape(spec.kernel.shape)[:, :, ::-1, ::-1]"),
        )),
    ),
    Deviation(
        "kernel-transposed", "both", at.KERNEL,
        "return kernel.reshape(", "return kernel.swapaxes(2, 3).reshape(",
        "rows and columns of the kernel are exchanged",
        "All logits are wrong at their own size. Invisible for patches that are one pixel high or"
        " wide; nothing fails if patches are square.",
        ("facebookresearch/dinov2#582: `B, nc, w, h = x.shape`",
         "apache/tvm#14546: a kernel in HWIO where HWOI is meant"),
        derivatives=(
            Patch(at.KERNEL_DERIV, ".reshape(spec.kernel.shape)",
                  ".reshape(*spec.kernel.shape[:2], *spec.kernel.shape[:1:-1]).swapaxes(2, 3)"),
        ),
        practical=Form(derivatives=(
            Patch(at.EMBEDDING_BACKWARD, ".reshape(spec.kernel.shape)",
                  ".reshape(*spec.kernel.shape[:2], *spec.kernel.shape[:1:-1]).swapaxes(2, 3)"),
        )),
    ),
    Deviation(
        "window-channels-last", "both", at.WINDOWS,
        "view.transpose(1, 2, 0, 3, 4)", "view.transpose(1, 2, 3, 4, 0)",
        "a patch is flattened channels last, the kernel channels first",
        "All logits are wrong at their own size. Invisible with one channel, or patches of one"
        " pixel.",
        ("gupta-abhay/pytorch-vit#7: data of different channels mixed",
         "lablup/mlxcel#1610: (c, y, x) for a kernel in (y, x, c)", "lucidrains/vit-pytorch#352"),
        derivatives=(),
        practical=Form(
            at.PATCHES, _ROWS, "whole.transpose(1, 3, 2, 4, 0)", alias="patch-rows-channels-last",
            derivatives=(Patch(at.PIXELS, _PIXELS,
                               "rows.reshape(g_h, g_w, ph, pw, C).transpose(4, 0, 2, 1, 3)"),),
        ),
    ),
    Deviation(
        "channels-reversed", "both", at.WINDOWS,
        "view.transpose(1, 2, 0, 3, 4)", "view[::-1].transpose(1, 2, 0, 3, 4)",
        "the image's channels are taken last to first",
        "BGR for RGB: all logits are wrong, and the image's gradient is that of other channels."
        " Invisible with one channel, or for grey images.",
        ("OpenCV reads BGR: pixelite1201/CameraHMR#20, XPixelGroup/BasicSR#218",
         "huggingface/transformers#23701: rows reversed instead of channels"),
        derivatives=(),
        practical=Form(at.PATCHES, _ROWS, _ROWS.replace("whole", "whole[::-1]"),
                       derivatives=(Patch(at.PIXELS, _PIXELS, f"{_PIXELS}[::-1]"),)),
    ),
    of_lean(
        "padding-shifted", "forward", at.PAD,
        "padded[:, padding : padding + H, padding : padding + W] = x",
        "low = max(padding - 1, 0); padded[:, low : low + H, low : low + W] = x",
        "the padding is off by one: more below and to the right than above and to the left",
        "Patches are read one pixel too far down and right; all logits are wrong. Invisible without"
        " padding.",
        ("taehoonlee/tensornets#25: 2 + 3 against 3 + 3", "keras-team/keras#16363"),
        derivatives=(
            Patch(at.UNPAD,
                  "return x[:, padding : x.shape[1] - padding, padding : x.shape[2] - padding]",
                  "low = max(padding - 1, 0); high = 2 * padding - low;"
                  " return x[:, low : x.shape[1] - high, low : x.shape[2] - high]"),
        ),
    ),
    of_lean(
        "padding-same", "both", at.WINDOWS,
        "geometry.windows(x_pad, ph, pw, spec.stride)",
        f"geometry.windows(np.roll(x_pad, {_SAME_SHIFTS}, (1, 2)), ph, pw, spec.stride)",
        "no more is padded than the grid needs, half of it above and to the left (`SAME`)",
        "Patches are shifted by a pixel or more where the windows do not use up the padding; where"
        " they do, and without padding, nothing is to be seen. (Where SAME makes another number of"
        " tokens, the positions do not fit, and the model fails.)",
        ("`padding='SAME'` in the patch embedding of D2L, `vision-transformer.md` in"
         " d2l-ai/d2l-en", "pytorch/pytorch#45667: the formulas", "vtjeng/MIPVerify.jl#23"),
        derivatives=(),
    ),
    Deviation(
        "patch-bias-missing", "forward", at.CONV2D, "y + spec.bias[:, None]", "y",
        "the patch embedding has no bias",
        "Logits are wrong by the size of the bias, and its gradient, if automatic, is 0. Invisible"
        " at initialisation, where biases are 0.",
        ("`bias=False` of `conv1` in `clip/model.py` of openai/CLIP",),
        derivatives=(Patch(at.BIAS_DERIV, "scalars.total(", "0 * scalars.total("),
                     Patch(at.CONV2D_JVP, "y + tangent.bias[:, None]", "y")),
        practical=Form(
            at.EMBEDDING, "kernel_as_matrix(spec.kernel).T) + spec.bias",
            "kernel_as_matrix(spec.kernel).T)",
            derivatives=(
                Patch(at.EMBEDDING_BACKWARD, "scalars.total(", "0 * scalars.total("),
                Patch(at.EMBEDDING_JVP, " + tangent.bias", ""),
            ),
        ),
    ),
    Deviation(
        "patches-column-major", "forward", at.GRID_TO_TOKENS, _TO_TOKENS,
        "patches.transpose(0, 2, 1).reshape(D, out_h * out_w).T",
        "tokens are numbered down the columns of the grid",
        "Patches get each other's positions; all logits are wrong. Invisible for a grid of one row"
        " or column, or if positions are not used.",
        ("vllm-project/vllm#52932: blocks where rows are expected", "lablup/mlxcel#1610",
         "facebookresearch/dinov2#582"),
        derivatives=(Patch(at.TOKENS_TO_GRID, _TO_GRID,
                           "tokens.T.reshape(tokens.shape[1], out_w, out_h).transpose(0, 2, 1)"),),
        practical=Form(
            at.PATCHES, _ROWS, "whole.transpose(3, 1, 0, 2, 4)",
            kind="both", alias="patch-grid-column-major",
            derivatives=(Patch(at.PIXELS, _PIXELS,
                               "rows.reshape(g_w, g_h, C, ph, pw).transpose(2, 1, 3, 0, 4)"),),
        ),
    ),
    Deviation(
        "tokens-by-raw-reshape", "forward", at.GRID_TO_TOKENS, _TO_TOKENS,
        "patches.reshape(out_h * out_w, D)",
        "the grid's buffer (D, T) is cut into T tokens without a transposition",
        "A token holds one feature of many patches; everything is wrong at its own size. Invisible"
        " with one token.",
        ("duoan/TorchCode#21: `x.view(B, num_patches, -1)`", "gupta-abhay/pytorch-vit#7"),
        derivatives=(
            Patch(at.TOKENS_TO_GRID, _TO_GRID, "tokens.reshape(tokens.shape[1], out_h, out_w)"),
        ),
        practical=Form(at.EMBED, "(self.patch_embed, image)",
                       "(self.patch_embed, image); tokens = tokens.T.reshape(tokens.shape)"),
    ),
    Deviation(
        "tokens-scaled", "forward", at.POSITIONS, _ADD, "return x * x.shape[1] ** 0.5 + spec.pos",
        "the tokens are multiplied by sqrt(embed_dim) before the positions are added",
        "Positions count sqrt(embed_dim) times less; all logits and gradients move. Invisible if"
        " embed_dim is 1.",
        ("not seen in a ViT; the Transformer of D2L does so with its embeddings,"
         " `self.embedding(X) * math.sqrt(self.num_hiddens)`",),
        derivatives=_adding("return d_out, d_out * d_out.shape[1] ** 0.5",
                            "return dx * dx.shape[1] ** 0.5 + tangent.pos"),
        practical=Form(
            at.SEQUENCE, "tokens + table", "tokens * tokens.shape[1] ** 0.5 + table",
            also=(Patch(at.SEQUENCE, _CLS_SUM, "self.cls_token * len(self.cls_token) ** 0.5"
                        " + self.pos[0]"),),
        ),
    ),
    Deviation(
        "positions-missing", "forward", at.POSITIONS, _ADD, "return x + 0 * spec.pos",
        "no positions are added",
        "Logits do not depend on the order of the patches, and the positions' gradient, if"
        " automatic, is 0.",
        ("engichang1467/Open-Rig3R#42: positions of zeros, for two reasons",),
        derivatives=_adding("return 0 * d_out, d_out", "return dx + 0 * tangent.pos"),
        practical=_times("0"),
    ),
    Deviation(
        "positions-twice", "forward", at.POSITIONS, _ADD, "return x + spec.pos + spec.pos",
        "the positions are added twice",
        "Logits are wrong by the size of the positions, and their gradient, if automatic, is twice"
        " too large.",
        ("gaasher/I-JEPA#4",),
        derivatives=_adding("return d_out + d_out, d_out",
                            "return dx + tangent.pos + tangent.pos"),
        practical=_times("2"),
    ),
    Deviation(
        "positions-from-one-row", "forward", at.POSITIONS, _ADD, "return x + spec.pos[:1]",
        "every token gets the position of row 0",
        "Logits do not depend on the order of the patches; the gradient of all other positions, if"
        " automatic, is 0. Invisible with one token.",
        ("labmlai/annotated_deep_learning_paper_implementations#133: a row instead of a slice",
         "pytorch/examples#1178: positions of shape (B, 1, D)"),
        derivatives=_adding(
            "d_pos = 0 * d_out; d_pos[:1] = d_out.sum(axis=0, keepdims=True); return d_pos, d_out",
            "return dx + tangent.pos[:1]",
        ),
        practical=Form(at.SEQUENCE, "tokens + table", "tokens + self.pos[:1]", derivatives=(
            Patch(at.SEQUENCE_BACKWARD, f"{_D_POS}[d_sequence[:cls_rows], d_table])",
                  f"{_D_POS}[d_sequence.sum(axis=0, keepdims=True), 0 * self.pos[1:]])"),
        )),
    ),
    of_lean(
        "positions-skip-first-row", "forward", at.POSITIONS, _ADD,
        "pos = spec.pos.copy(); pos[0] = 0; return x + pos",
        "no position is added to row 0 (the CLS token's)",
        "With a CLS token, its row is wrong by the size of a position, and so are the logits;"
        " without, the first patch's. The gradient of row 0, if automatic, is 0.",
        ("labmlai/annotated_deep_learning_paper_implementations#221",
         "NVIDIA/Megatron-LM#6260: positions added before the CLS token is"),
        derivatives=_adding("d_pos = d_out.copy(); d_pos[0] = 0; return d_pos, d_out",
                            "pos = tangent.pos.copy(); pos[0] = 0; return dx + pos"),
    ),
    with_cls(
        "cls-token-last", "forward", at.PREPEND,
        "np.concatenate([cls_token[None, :], tokens])",
        "np.concatenate([tokens, cls_token[None, :]])",
        "the CLS token stands below the tokens",
        "Every token has its neighbour's position, and a patch's row is pooled; all logits are"
        " wrong. Invisible without patches.",
        ("XLNet's place of it: dheerajrajagopal/SelfExplain#1",),
        derivatives=(Patch(at.PREPEND_BACKWARD, "return d_sequence[0].copy(), d_sequence[1:]",
                           "return d_sequence[-1].copy(), d_sequence[:-1]"),),
        practical=Form(),
    ),
    with_cls(
        "cls-pools-last-row", "forward", at.CLS_POOL, "return encoded[0]", "return encoded[-1]",
        "the last row is taken for the CLS token",
        "Logits are those of the last patch, wrong at their own size. Invisible without patches.",
        ("Tencent/digitalhuman#5", "yongzhuo/Keras-TextClassification#23: the other way round"),
        derivatives=(Patch(at.CLS_POOL_BACKWARD, "d_encoded[0]", "d_encoded[-1]"),),
        practical=Form(),
    ),
    with_cls(
        "cls-pools-mean", "forward", at.CLS_POOL, "return encoded[0]", f"return {_MEAN}",
        "the model with a CLS token pools the mean of all rows, that token's among them",
        "Logits are wrong at their own size. Invisible without patches.",
        ("lucidrains/vit-pytorch#226: the mean includes the CLS token",
         "microsoft/unilm#820: a CLS token that pooling ignores"),
        derivatives=(
            Patch(at.CLS_POOL_BACKWARD, "d_encoded[0] = d_pooled", "d_encoded[:] = d_pooled / n"),
        ),
        practical=Form(),
    ),
    with_cls(
        "cls-pools-mean-of-patches", "forward", at.CLS_POOL, "return encoded[0]",
        "return scalars.mean(encoded[min(1, len(encoded) - 1) :], axis=0)",
        "the model with a CLS token pools the mean of the other rows",
        "Logits are wrong at their own size. Invisible without patches.",
        ("ViCCo-Group/thingsvision#169: `avg_pool` leaves the CLS token out",),
        derivatives=(Patch(at.CLS_POOL_BACKWARD, "d_encoded[0] = d_pooled",
                           "d_encoded[min(1, n - 1) :] = d_pooled / max(n - 1, 1)"),),
        practical=Form(),
    ),
    with_mean(
        "mean-pool-sums", "forward", at.MEAN_POOL, _MEAN, "scalars.total(encoded, axis=0)",
        "the tokens are summed, not averaged",
        "The pooled row is too large by the number of tokens. Invisible with one token.",
        ("StarlightSearch/EmbedAnything#210: divided by another number",),
        derivatives=(Patch(at.MEAN_POOL_BACKWARD, _SHARE, "d_pooled"),),
    ),
    with_mean(
        "mean-pool-wrong-axis", "forward", at.MEAN_POOL, _MEAN,
        "scalars.mean(encoded.reshape(encoded.shape[::-1]), axis=1)",
        "the mean runs along the sequence's buffer read as (D, n): over features, if n = D",
        "The pooled row and all logits are wrong at their own size. Invisible with one token.",
        ("gaasher/I-JEPA#15: `AvgPool1d` over the features",
         "facebookresearch/ijepa#36: the axis is asked for"),
        derivatives=(Patch(at.MEAN_POOL_BACKWARD, _TILE, "np.repeat(share, n).reshape(n, -1)"),),
    ),
    with_mean(
        "mean-pool-takes-first-row", "forward", at.MEAN_POOL, _MEAN, "encoded[0]",
        "the model without a CLS token pools row 0, as if there were one",
        "Logits are those of the first patch, wrong at their own size. Invisible with one token.",
        ("google-research/l2p#21: slices that start at the wrong token",
         "pytorch/vision#8685: which row is pooled is asked for"),
        derivatives=(Patch(at.MEAN_POOL_BACKWARD, _TILE,
                           "np.tile(d_pooled, (n, 1)) * np.eye(n, 1, dtype=d_pooled.dtype)"),),
    ),
    with_mean(
        "mean-pool-skips-first-row", "forward", at.MEAN_POOL, _MEAN,
        "scalars.mean(encoded[min(1, len(encoded) - 1) :], axis=0)",
        "the model without a CLS token leaves row 0 out of the mean, as if it were one",
        "Logits are wrong by about 1 / sqrt(T) of their size. Invisible with one token.",
        ("deepmodeling/Uni-Mol#293: `x[:, 1:, :]` handed on",
         "ViCCo-Group/thingsvision#169: asked for models without one"),
        derivatives=(Patch(at.MEAN_POOL_BACKWARD, _TILE,
                           "np.tile(d_pooled / max(n - 1, 1), (n, 1))"
                           " * (1 - np.eye(n, 1, dtype=d_pooled.dtype) * (n > 1))"),),
    ),
)  # fmt: skip
"""In the order of the computation."""
