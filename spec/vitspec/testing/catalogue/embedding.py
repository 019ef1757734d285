"""Mistakes in the forward before and after the encoder: patches, tokens, positions, pooling."""

from __future__ import annotations

from vitspec.testing.catalogue.deviation import Deviation, Patch

KERNEL = "layers.conv2d:kernel_as_matrix"
WINDOWS = "layers.conv2d:window_rows"
CONV2D = "layers.conv2d:conv2d"
KERNEL_DERIV = "layers.conv2d:conv2d_kernel_deriv"
BIAS_DERIV = "layers.conv2d:conv2d_bias_deriv"
CONV2D_JVP = "layers.conv2d:conv2d_jvp"
GRID_TO_TOKENS = "models.tokens:grid_to_tokens"
TOKENS_TO_GRID = "models.tokens:tokens_to_grid"
POSITIONS = "layers.positional_encoding:add_positional_encoding"
POSITIONS_BACKWARD = "layers.positional_encoding:add_positional_encoding_backward"
POSITIONS_JVP = "layers.positional_encoding:add_positional_encoding_jvp"
PREPEND = "models.tokens:prepend_cls"
PREPEND_BACKWARD = "models.tokens:prepend_cls_backward"
CLS_POOL = "models.tokens:cls_pool"
CLS_POOL_BACKWARD = "models.tokens:cls_pool_backward"
MEAN_POOL = "models.tokens:mean_pool"
MEAN_POOL_BACKWARD = "models.tokens:mean_pool_backward"

_TO_TOKENS = "patches.reshape(D, out_h * out_w).T"
_TO_GRID = "tokens.T.reshape(tokens.shape[1], out_h, out_w)"
_ADD = "return x + spec.pos"
_D_ADD = "return d_out, d_out"
_ADD_JVP = "return dx + tangent.pos"
_MEAN = "scalars.mean(encoded, axis=0)"
_SHARE = "d_pooled * (scalars.scalar(1, d_pooled.dtype) / n)"
_TILE = "np.tile(share, (n, 1))"
_SAME_SHIFTS = (
    "[max(2 * spec.padding - (size - extent) % spec.stride, 0) // 2 - spec.padding"
    " for size, extent in zip(x_pad.shape[1:], (ph, pw))]"
)

EMBEDDING = (
    Deviation(
        "kernel-flipped", "both", KERNEL,
        "return kernel.reshape(", "return kernel[:, :, ::-1, ::-1].reshape(",
        "a true convolution: the kernel is flipped",
        "All logits are wrong at their own size. Invisible for patches of one pixel.",
        ("keras-team/keras#3015: Theano flips, TensorFlow does not",
         "hi-abhi/tensorflow-value-iteration-networks#2", "pytorch/pytorch#117534"),
        derivatives=(
            Patch(
                KERNEL_DERIV, ".reshape(spec.kernel.shape)",
                ".reshape(spec.kernel.shape)[:, :, ::-1, ::-1]",
            ),
        ),
    ),
    Deviation(
        "kernel-transposed", "both", KERNEL,
        "return kernel.reshape(", "return kernel.swapaxes(2, 3).reshape(",
        "rows and columns of the kernel are exchanged",
        "All logits are wrong at their own size. Invisible for patches that are one pixel high or"
        " wide; nothing fails if patches are square.",
        ("facebookresearch/dinov2#582: `B, nc, w, h = x.shape`",
         "apache/tvm#14546: a kernel in HWIO where HWOI is meant"),
        derivatives=(
            Patch(
                KERNEL_DERIV, ".reshape(spec.kernel.shape)",
                ".reshape(*spec.kernel.shape[:2], *spec.kernel.shape[:1:-1]).swapaxes(2, 3)",
            ),
        ),
    ),
    Deviation(
        "window-channels-last", "both", WINDOWS,
        "view.transpose(1, 2, 0, 3, 4)", "view.transpose(1, 2, 3, 4, 0)",
        "a patch is flattened channels last, the kernel channels first",
        "All logits are wrong at their own size. Invisible with one channel, or patches of one"
        " pixel.",
        ("gupta-abhay/pytorch-vit#7: data of different channels mixed",
         "lablup/mlxcel#1610: (c, y, x) for a kernel in (y, x, c)", "lucidrains/vit-pytorch#352"),
        derivatives=(),
    ),
    Deviation(
        "channels-reversed", "both", WINDOWS,
        "view.transpose(1, 2, 0, 3, 4)", "view[::-1].transpose(1, 2, 0, 3, 4)",
        "the image's channels are taken last to first",
        "BGR for RGB: all logits are wrong, and the image's gradient is that of other channels."
        " Invisible with one channel, or for grey images.",
        ("OpenCV reads BGR: pixelite1201/CameraHMR#20, XPixelGroup/BasicSR#218",
         "huggingface/transformers#23701: rows reversed instead of channels"),
        derivatives=(),
    ),
    Deviation(
        "padding-shifted", "forward", "geometry:pad",
        "padded[:, padding : padding + H, padding : padding + W] = x",
        "low = max(padding - 1, 0); padded[:, low : low + H, low : low + W] = x",
        "the padding is off by one: more below and to the right than above and to the left",
        "Patches are read one pixel too far down and right; all logits are wrong. Invisible without"
        " padding.",
        ("taehoonlee/tensornets#25: 2 + 3 against 3 + 3", "keras-team/keras#16363"),
        derivatives=(
            Patch(
                "geometry:unpad",
                "return x[:, padding : x.shape[1] - padding, padding : x.shape[2] - padding]",
                "low = max(padding - 1, 0); high = 2 * padding - low;"
                " return x[:, low : x.shape[1] - high, low : x.shape[2] - high]",
            ),
        ),
    ),
    Deviation(
        "padding-same", "both", WINDOWS,
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
        "patch-bias-missing", "forward", CONV2D, "y + spec.bias[:, None]", "y",
        "the patch embedding has no bias",
        "Logits are wrong by the size of the bias, and its gradient, if automatic, is 0. Invisible"
        " at initialisation, where biases are 0.",
        ("`bias=False` of `conv1` in `clip/model.py` of openai/CLIP",),
        derivatives=(
            Patch(BIAS_DERIV, "scalars.total(", "0 * scalars.total("),
            Patch(CONV2D_JVP, "y + tangent.bias[:, None]", "y"),
        ),
    ),
    Deviation(
        "patches-column-major", "forward", GRID_TO_TOKENS, _TO_TOKENS,
        "patches.transpose(0, 2, 1).reshape(D, out_h * out_w).T",
        "tokens are numbered down the columns of the grid",
        "Patches get each other's positions; all logits are wrong. Invisible for a grid of one row"
        " or column, or if positions are not used.",
        ("vllm-project/vllm#52932: blocks where rows are expected", "lablup/mlxcel#1610",
         "facebookresearch/dinov2#582"),
        derivatives=(
            Patch(
                TOKENS_TO_GRID, _TO_GRID,
                "tokens.T.reshape(tokens.shape[1], out_w, out_h).transpose(0, 2, 1)",
            ),
        ),
    ),
    Deviation(
        "tokens-by-raw-reshape", "forward", GRID_TO_TOKENS, _TO_TOKENS,
        "patches.reshape(out_h * out_w, D)",
        "the grid's buffer (D, T) is cut into T tokens without a transposition",
        "A token holds one feature of many patches; everything is wrong at its own size. Invisible"
        " with one token.",
        ("duoan/TorchCode#21: `x.view(B, num_patches, -1)`", "gupta-abhay/pytorch-vit#7"),
        derivatives=(
            Patch(TOKENS_TO_GRID, _TO_GRID, "tokens.reshape(tokens.shape[1], out_h, out_w)"),
        ),
    ),
    Deviation(
        "tokens-scaled", "forward", POSITIONS, _ADD, "return x * x.shape[1] ** 0.5 + spec.pos",
        "the tokens are multiplied by sqrt(embed_dim) before the positions are added",
        "Positions count sqrt(embed_dim) times less; all logits and gradients move. Invisible if"
        " embed_dim is 1.",
        ("not seen in a ViT; the Transformer of D2L does so with its embeddings,"
         " `self.embedding(X) * math.sqrt(self.num_hiddens)`",),
        derivatives=(
            Patch(POSITIONS_BACKWARD, _D_ADD, "return d_out, d_out * d_out.shape[1] ** 0.5"),
            Patch(POSITIONS_JVP, _ADD_JVP, "return dx * dx.shape[1] ** 0.5 + tangent.pos"),
        ),
    ),
    Deviation(
        "positions-missing", "forward", POSITIONS, _ADD, "return x + 0 * spec.pos",
        "no positions are added",
        "Logits do not depend on the order of the patches, and the positions' gradient, if"
        " automatic, is 0.",
        ("engichang1467/Open-Rig3R#42: positions of zeros, for two reasons",),
        derivatives=(
            Patch(POSITIONS_BACKWARD, _D_ADD, "return 0 * d_out, d_out"),
            Patch(POSITIONS_JVP, _ADD_JVP, "return dx + 0 * tangent.pos"),
        ),
    ),
    Deviation(
        "positions-twice", "forward", POSITIONS, _ADD, "return x + spec.pos + spec.pos",
        "the positions are added twice",
        "Logits are wrong by the size of the positions, and their gradient, if automatic, is twice"
        " too large.",
        ("gaasher/I-JEPA#4",),
        derivatives=(
            Patch(POSITIONS_BACKWARD, _D_ADD, "return d_out + d_out, d_out"),
            Patch(POSITIONS_JVP, _ADD_JVP, "return dx + tangent.pos + tangent.pos"),
        ),
    ),
    Deviation(
        "positions-from-one-row", "forward", POSITIONS, _ADD, "return x + spec.pos[:1]",
        "every token gets the position of row 0",
        "Logits do not depend on the order of the patches; the gradient of all other positions, if"
        " automatic, is 0. Invisible with one token.",
        ("labmlai/annotated_deep_learning_paper_implementations#133: a row instead of a slice",
         "pytorch/examples#1178: positions of shape (B, 1, D)"),
        derivatives=(
            Patch(
                POSITIONS_BACKWARD, _D_ADD,
                "d_pos = 0 * d_out; d_pos[:1] = d_out.sum(axis=0, keepdims=True);"
                " return d_pos, d_out",
            ),
            Patch(POSITIONS_JVP, _ADD_JVP, "return dx + tangent.pos[:1]"),
        ),
    ),
    Deviation(
        "positions-skip-first-row", "forward", POSITIONS, _ADD,
        "pos = spec.pos.copy(); pos[0] = 0; return x + pos",
        "no position is added to row 0 (the CLS token's)",
        "With a CLS token, its row is wrong by the size of a position, and so are the logits;"
        " without, the first patch's. The gradient of row 0, if automatic, is 0.",
        ("labmlai/annotated_deep_learning_paper_implementations#221",
         "NVIDIA/Megatron-LM#6260: positions added before the CLS token is"),
        derivatives=(
            Patch(
                POSITIONS_BACKWARD, _D_ADD,
                "d_pos = d_out.copy(); d_pos[0] = 0; return d_pos, d_out",
            ),
            Patch(
                POSITIONS_JVP, _ADD_JVP, "pos = tangent.pos.copy(); pos[0] = 0; return dx + pos"
            ),
        ),
    ),
    Deviation(
        "cls-token-last", "forward", PREPEND,
        "np.concatenate([cls_token[None, :], tokens])",
        "np.concatenate([tokens, cls_token[None, :]])",
        "the CLS token stands below the tokens",
        "Every token has its neighbour's position, and a patch's row is pooled; all logits are"
        " wrong. Invisible without patches.",
        ("XLNet's place of it: dheerajrajagopal/SelfExplain#1",),
        specs=("vit-cls",),
        derivatives=(
            Patch(
                PREPEND_BACKWARD, "return d_sequence[0].copy(), d_sequence[1:]",
                "return d_sequence[-1].copy(), d_sequence[:-1]",
            ),
        ),
    ),
    Deviation(
        "cls-pools-last-row", "forward", CLS_POOL, "return encoded[0]", "return encoded[-1]",
        "the last row is taken for the CLS token",
        "Logits are those of the last patch, wrong at their own size. Invisible without patches.",
        ("Tencent/digitalhuman#5", "yongzhuo/Keras-TextClassification#23: the other way round"),
        specs=("vit-cls",),
        derivatives=(Patch(CLS_POOL_BACKWARD, "d_encoded[0]", "d_encoded[-1]"),),
    ),
    Deviation(
        "cls-pools-mean", "forward", CLS_POOL, "return encoded[0]", f"return {_MEAN}",
        "the model with a CLS token pools the mean of all rows, that token's among them",
        "Logits are wrong at their own size. Invisible without patches.",
        ("lucidrains/vit-pytorch#226: the mean includes the CLS token",
         "microsoft/unilm#820: a CLS token that pooling ignores"),
        specs=("vit-cls",),
        derivatives=(
            Patch(CLS_POOL_BACKWARD, "d_encoded[0] = d_pooled", "d_encoded[:] = d_pooled / n"),
        ),
    ),
    Deviation(
        "cls-pools-mean-of-patches", "forward", CLS_POOL, "return encoded[0]",
        "return scalars.mean(encoded[min(1, len(encoded) - 1) :], axis=0)",
        "the model with a CLS token pools the mean of the other rows",
        "Logits are wrong at their own size. Invisible without patches.",
        ("ViCCo-Group/thingsvision#169: `avg_pool` leaves the CLS token out",),
        specs=("vit-cls",),
        derivatives=(
            Patch(
                CLS_POOL_BACKWARD, "d_encoded[0] = d_pooled",
                "d_encoded[min(1, n - 1) :] = d_pooled / max(n - 1, 1)",
            ),
        ),
    ),
    Deviation(
        "mean-pool-sums", "forward", MEAN_POOL, _MEAN, "scalars.total(encoded, axis=0)",
        "the tokens are summed, not averaged",
        "The pooled row is too large by the number of tokens. Invisible with one token.",
        ("StarlightSearch/EmbedAnything#210: divided by another number",),
        specs=("vit",),
        derivatives=(Patch(MEAN_POOL_BACKWARD, _SHARE, "d_pooled"),),
    ),
    Deviation(
        "mean-pool-wrong-axis", "forward", MEAN_POOL, _MEAN,
        "scalars.mean(encoded.reshape(encoded.shape[::-1]), axis=1)",
        "the mean runs along the sequence's buffer read as (D, n): over features, if n = D",
        "The pooled row and all logits are wrong at their own size. Invisible with one token.",
        ("gaasher/I-JEPA#15: `AvgPool1d` over the features",
         "facebookresearch/ijepa#36: the axis is asked for"),
        specs=("vit",),
        derivatives=(Patch(MEAN_POOL_BACKWARD, _TILE, "np.repeat(share, n).reshape(n, -1)"),),
    ),
    Deviation(
        "mean-pool-takes-first-row", "forward", MEAN_POOL, _MEAN, "encoded[0]",
        "the model without a CLS token pools row 0, as if there were one",
        "Logits are those of the first patch, wrong at their own size. Invisible with one token.",
        ("google-research/l2p#21: slices that start at the wrong token",
         "pytorch/vision#8685: which row is pooled is asked for"),
        specs=("vit",),
        derivatives=(
            Patch(
                MEAN_POOL_BACKWARD, _TILE,
                "np.tile(d_pooled, (n, 1)) * np.eye(n, 1, dtype=d_pooled.dtype)",
            ),
        ),
    ),
    Deviation(
        "mean-pool-skips-first-row", "forward", MEAN_POOL, _MEAN,
        "scalars.mean(encoded[min(1, len(encoded) - 1) :], axis=0)",
        "the model without a CLS token leaves row 0 out of the mean, as if it were one",
        "Logits are wrong by about 1 / sqrt(T) of their size. Invisible with one token.",
        ("deepmodeling/Uni-Mol#293: `x[:, 1:, :]` handed on",
         "ViCCo-Group/thingsvision#169: asked for models without one"),
        specs=("vit",),
        derivatives=(
            Patch(
                MEAN_POOL_BACKWARD, _TILE,
                "np.tile(d_pooled / max(n - 1, 1), (n, 1))"
                " * (1 - np.eye(n, 1, dtype=d_pooled.dtype) * (n > 1))",
            ),
        ),
    ),
)  # fmt: skip
"""In the order of the computation."""
