"""Mistakes in the practical family's derivatives, in interpolated positions, in the decoder."""

from __future__ import annotations

from functools import partial

from vitspec.testing.catalogue import functions as at
from vitspec.testing.catalogue.deviation import Patch, of_practical

interpolated = partial(of_practical, other_sizes_only=True)

_GELU_DERIV = "return normal_distribution(x) + x * density"
SOURCE = "source = Fraction(2 * i + 1, 2) * Fraction(old, new) - Fraction(1, 2)"
_ALIGNED = "source = Fraction(i * (old - 1), new - 1) if new > 1 else Fraction(0)"
_READ = (
    "for k in range(below - 1, below + 3):\n"
    "            row[min(max(k, 0), old - 1)] += cubic_weight(abs(source - k))"
)

PRACTICAL_GRADIENTS = (
    of_practical(
        "gelu-gradient-without-density", "backward", at.GELU_DERIV,
        _GELU_DERIV, "return normal_distribution(x) + 0 * density",
        "the exact GELU's derivative lacks x p(x)",
        "The gradients of W1 and b1, and all below, are wrong by tens of per cent. Other"
        " activations are right.",
        ("not seen in public; included because x P(x) looks like a product with a constant",),
    ),
    of_practical(
        "gelu-gradient-of-tanh", "backward", at.GELU_DERIV,
        _GELU_DERIV, "return 0 * density + gelu_tanh_deriv(x)",
        "the exact GELU has the derivative of the approximation by tanh",
        "The gradients of W1 and b1, and all below, are wrong by about 1e-3 of their size.",
        ("not seen in public; included because fused kernels have one backward for both",),
    ),
    of_practical(
        "key-bias-gets-query-gradient", "backward", at.ATTENTION_BACKWARD,
        "d_bk=bias_backward(mha.bk, d_k)", "d_bk=bias_backward(mha.bk, d_q)",
        "the key bias's gradient, which is 0, is the query bias's",
        "The gradient of the key bias is as large as the query bias's; all else is right. A"
        " relative tolerance cannot see it, since the right one is rounding noise.",
        ("ooples/AiDotNet.Tensors#49: swapped gradients, of the weights",),
    ),
    of_practical(
        "value-bias-gradient-averaged", "backward", at.ATTENTION_BACKWARD,
        "d_bv=bias_backward(mha.bv, d_v)",
        "d_bv=None if mha.bv is None else bias_backward(mha.bv, d_v) / len(d_v)",
        "the value bias's gradient is the mean over the tokens instead of the sum",
        "The gradient of the value bias is too small by the number of tokens; all else is right.",
        ("kvfrans/notes#5: `mean` for `sum`, over a batch",),
    ),
    of_practical(
        "layer-scale-gradient-stopped", "backward", at.SCALE_BACKWARD,
        "scalars.total(d_out * branch, axis=0)", "0 * scale",
        "the layer scales get no gradient",
        "Their gradients are 0; all else is right. Invisible in models without them.",
        ("not seen in public; included because a scale is easily taken for a constant",),
    ),
    of_practical(
        "layer-scale-gradient-not-scaled", "backward", at.SCALE_BACKWARD,
        "return d_out * scale, ", "return d_out, ",
        "the gradient passes the layer scales as it is",
        "The gradients of a branch's parameters, and all below, are wrong by the scales' distance"
        " from 1. Invisible in models without them.",
        ("not seen in public; included as the counterpart of `layer-scale-gradient-stopped`",),
    ),
    of_practical(
        "mean-pool-gradient-over-all-rows", "backward", at.POOL_BACKWARD,
        "mean_pool_backward(d_pooled[-D:], T)", "mean_pool_backward(d_pooled[-D:], n)[cls_rows:]",
        "the mean's gradient is divided by the number of all rows, the CLS token's among them",
        "Every gradient below the pooling is too small by T / (T + 1). Invisible without a CLS"
        " token, or where its row alone is pooled.",
        ("tracel-ai/burn#5604: forward and backward divide by different numbers",),
    ),
    of_practical(
        "cls-position-gradient-missing", "backward", at.SEQUENCE_BACKWARD,
        "np.concatenate([d_sequence[:cls_rows], d_table])",
        "np.concatenate([0 * d_sequence[:cls_rows], d_table])",
        "the CLS token's position gets no gradient",
        "The first row of the positions' gradient is 0; all else is right. Invisible without a CLS"
        " token.",
        ("not seen in public; included because the token and its position are one sum",),
    ),
    of_practical(
        "image-gradient-of-the-remainder", "backward", at.PIXELS,
        "x = scalars.zeros((C, H, W), rows.dtype)",
        "x = scalars.zeros((C, H, W), rows.dtype) + rows[0, 0]",
        "pixels that fill no patch get a gradient",
        "The image's gradient is not 0 where the image is not read; all else is right. Invisible"
        " where the patches fill the image.",
        ("not seen in public; included because a buffer is easily left as it was",),
    ),
)  # fmt: skip
"""From the activation to the patches."""

INTERPOLATION = (
    interpolated(
        "cubic-a-half", "both", at.CUBIC_WEIGHT, "a = KEYS_A", "a = Fraction(-1, 2)",
        "positions are interpolated with a = -1/2 instead of -3/4",
        "Interpolated positions are wrong by some per cent of their size. Invisible at the size"
        " that the positions were trained for.",
        ("`jax.image.resize` and PIL have -1/2: bonsai's ViT, at 384 pixels",),
        derivatives=(),
    ),
    interpolated(
        "positions-corners-aligned", "both", at.INTERPOLATION_WEIGHTS, SOURCE, _ALIGNED,
        "positions are interpolated with aligned corners",
        "Interpolated positions are wrong at their own size, least at the corners. Invisible at the"
        " size that the positions were trained for.",
        ("torchvision's `interpolate_embeddings`: bicubic, `align_corners=True`",),
        derivatives=(),
    ),
    interpolated(
        "positions-antialiased", "both", at.INTERPOLATION_WEIGHTS, _READ,
        "wide = max(Fraction(old, new), Fraction(1))\n"
        "        near = [cubic_weight(abs(source - k) / wide) for k in range(old)]\n"
        "        row[:] = [weight / sum(near) for weight in near]",
        "positions are smoothed before there are fewer of them",
        "Interpolated positions are wrong by tens of per cent on smaller images, and near the"
        " border on larger ones. Invisible at the size that the positions were trained for.",
        ("timm's `resample_abs_pos_embed`: `antialias=True`", "`jax.image.resize`'s default"),
        derivatives=(),
    ),
    interpolated(
        "positions-bilinear", "both", at.CUBIC_WEIGHT,
        "a = KEYS_A", "return max(1 - t, Fraction(0))",
        "positions are interpolated linearly, with aligned corners",
        "Interpolated positions are wrong by tens of per cent. Invisible at the size that the"
        " positions were trained for.",
        ("big_vision: `scipy.ndimage.zoom` of order 1",),
        also=(Patch(at.INTERPOLATION_WEIGHTS, SOURCE, _ALIGNED),),
        derivatives=(),
    ),
    interpolated(
        "interpolation-gradient-resampled", "backward", at.INTERPOLATION_BACKWARD,
        "return _apply(d_out, rows.T, columns.T)",
        "return interpolate_positions(d_out, new, old)",
        "the gradient of interpolated positions is interpolated back, instead of transposed",
        "The positions' gradient is wrong at its own size, but for the CLS token's; all else is"
        " right. Invisible at the size that the positions were trained for.",
        ("not seen in public; included because an image's resize is often undone so",),
    ),
    interpolated(
        "interpolation-gradient-missing", "backward", at.SEQUENCE_BACKWARD,
        "d_table = interpolate_positions_backward(d_tokens, self.config.grid, grid)",
        "d_table = 0 * self.pos[cls_rows:]",
        "interpolated positions get no gradient",
        "The positions' gradient is 0, but for the CLS token's; all else is right. Invisible at the"
        " size that the positions were trained for.",
        ("not seen in public; included because positions are often interpolated once, outside of"
         " what is differentiated",),
    ),
)  # fmt: skip
"""What only interpolated positions show."""

DECODER = (
    of_practical(
        "pixel-shuffle-channels-last", "both", at.SHUFFLE,
        "y.reshape(g_h, g_w, C, S, S).transpose(2, 0, 3, 1, 4)",
        "y.reshape(g_h, g_w, S, S, C).transpose(4, 0, 2, 1, 3)",
        "the decoder's columns are counted (i, j, channel), as a flattened patch's often are",
        "The reconstruction has the right numbers in wrong places. Invisible with one channel.",
        ("not seen in public; included because patches are flattened so in JAX, and PyTorch's"
         " `PixelShuffle` counts (channel, i, j)",),
        specs=(),
        derivatives=(Patch(at.UNSHUFFLE, "x.reshape(C, g_h, S, g_w, S).transpose(1, 3, 0, 2, 4)",
                           "x.reshape(C, g_h, S, g_w, S).transpose(1, 3, 2, 4, 0)"),),
    ),
)  # fmt: skip
"""What only a decoder shows: `vitspec check` has none."""
