"""Mistakes that one image, or exact arithmetic, cannot show."""

from __future__ import annotations

from vitspec.testing.catalogue import functions as at
from vitspec.testing.catalogue.deviation import Deviation, Patch

_SUM = "reduce(np.add, [one[name] for one in gradients])"
_STACK = "np.stack([d_image for _, d_image in pairs])"

BATCH = (
    Deviation(
        "batch-gradients-averaged", "batch", at.SUM_OVER_BATCH, _SUM, f"{_SUM} / len(gradients)",
        "the parameters' gradients are averaged over the batch instead of added up",
        "Every parameter's gradient is too small by the batch size; the images' are right."
        " Invisible for one image.",
        ("deepspeedai/DeepSpeed#7773 and intel/ipex-llm#2079: sum and mean confused",
         "openai/guided-diffusion#111"),
    ),
    Deviation(
        "batch-loss-averaged", "batch", at.SUM_OVER_BATCH, _SUM, f"{_SUM} / len(gradients)",
        "the cotangent is divided by the batch size, as by a loss that is a mean",
        "All gradients, the images' too, are too small by the batch size; the logits are right."
        " Invisible for one image.",
        ("apache/mxnet#2427: why is the sum not divided?", "karpathy/nanoGPT#206"),
        also=(Patch(at.EVALUATE, _STACK, f"{_STACK} / len(pairs)"),),
    ),
    Deviation(
        "batch-last-image-only", "batch", at.SUM_OVER_BATCH, _SUM, "gradients[-1][name] + 0",
        "the parameters' gradients are those of the last image: overwritten, not added up",
        "Every parameter's gradient is wrong at its own size; the images' are right. Invisible for"
        " one image.",
        ("karpathy/convnetjs#17: zeroed in every backward pass",
         "mlpack/mlpack#3679: `gradient = error`, right for one point only", "LBANN/lbann#1022"),
    ),
    Deviation(
        "batch-gradients-not-zeroed", "batch", at.SUM_OVER_BATCH, _SUM,
        "reduce(np.add, [(len(gradients) - b) * one[name] for b, one in enumerate(gradients)])",
        "each image adds its gradients to those left by the images before, and all are added up",
        "Earlier images count more often. Invisible for one image, unless evaluated twice.",
        ("karpathy/micrograd#102", "affaan-m/ECC#3122: no `zero_grad`"),
    ),
    Deviation(
        "batch-images-gradient-summed", "batch", at.EVALUATE, _STACK,
        "np.stack([sum(d for _, d in pairs)] * len(pairs))",
        "every image gets the sum of all images' gradients",
        "The images' gradients are wrong at their own size, and alike; all else is right. Invisible"
        " for one image.",
        ("not seen in public; included because broadcasting over the batch is easily inverted",),
    ),
)  # fmt: skip
"""Patches of the kit's evaluation of a batch, since the specification has no batch axis."""

ACCURACY = (
    Deviation(
        "layer-norm-fast-variance", "accuracy", at.NORMALIZE,
        "variance = mean(twice_centred * twice_centred, axis=-1, keepdims=True)",
        "variance = mean(x * x, axis=-1, keepdims=True) - mean(x, axis=-1, keepdims=True) ** 2",
        "the variance is E[x^2] - E[x]^2",
        "The same function, but rounding is magnified by mean^2 / variance: a row around 1000 with"
        " variance 1 is wrong by 6 % in float32. Invisible for rows of mean near 0.",
        ("`use_fast_variance=True` is the default of `flax.nnx.LayerNorm`: google/flax#3693,"
         " keras-team/keras-core#866", "patrick-kidger/equinox#314", "pytorch/pytorch#40302"),
        derivatives=(),
    ),
    Deviation(
        "softmax-not-shifted", "accuracy", at.SOFTMAX,
        "shifted = x - scalars.row_max(x)", "shifted = x.copy()",
        "the row's maximum is not subtracted before exp",
        "The same function while exp does not overflow: NaN from scores of 89 in float32, 710 in"
        " float64. Invisible for scores of ordinary size.",
        ("TorchLean's first release, in the masked softmax (DEV-7 in `docs/deviations.md`)",),
        derivatives=(),
    ),
)  # fmt: skip
"""These pass every comparison in float64 on ordinary inputs; they are graded, not forbidden."""
