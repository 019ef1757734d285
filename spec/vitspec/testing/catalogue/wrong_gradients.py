"""Further mistakes in the derivatives: the logits are right."""

from __future__ import annotations

from vitspec.testing.catalogue import functions as at
from vitspec.testing.catalogue.deviation import Deviation, Form, Patch, of_practical, with_cls

_DENSITY = "density = np.exp(x * x / -2) / np.sqrt(2 * scalars.pi(x.dtype))"
_GELU_DERIV = "return normal_distribution(x) + x * density"
_BOTH_MEANS = (
    "centred = w - mean(w, axis=-1, keepdims=True)\n"
    "    return (centred - xhat * mean(w * xhat, axis=-1, keepdims=True))"
)
_SUM = "reduce(np.add, [one[name] for one in gradients])"
_SUMMED = f"return {{name: {_SUM} for name in gradients[0]}}"
_FOUND = "found |= sum_over_batch([grads.to_flat() for grads, _ in pairs])"
_STACK = "np.stack([d_image for _, d_image in pairs])"

WRONG_GRADIENTS = (
    of_practical(
        "gelu-gradient-of-quick", "backward", at.GELU_DERIV,
        _GELU_DERIV, "return 0 * density + quick_gelu_deriv(x)",
        "the exact GELU has the derivative of x s(1.702 x)",
        "The gradients of W1 and b1, and all below, are wrong by some per cent. Other activations"
        " are right.",
        ("not seen in public; included as the counterpart of `gelu-gradient-of-tanh`",),
    ),
    of_practical(
        "gelu-gradient-density-not-normalised", "backward", at.GELU_DERIV,
        _DENSITY, "density = np.exp(x * x / -2)",
        "the exact GELU's derivative has the density without its factor 1 / sqrt(2 pi)",
        "The gradients of W1 and b1, and all below, are wrong by tens of per cent. Other"
        " activations are right.",
        ("not seen in public; included because the factor is a number that nothing checks",),
    ),
    of_practical(
        "gelu-gradient-factor-misplaced", "backward", at.GELU_DERIV,
        _GELU_DERIV, "return normal_distribution(x) + x * density / 2",
        "the exact GELU's derivative is half of (1 + erf(x / sqrt(2)) + x p(x))",
        "The gradients of W1 and b1, and all below, are wrong by tens of per cent. Other"
        " activations are right.",
        ("not seen in public; included because the half belongs to the first two terms alone",),
    ),
    of_practical(
        "gelu-tanh-gradient-without-3", "backward", at.TANH_AND_SLOPE,
        "(1 + 3 * cubic", "(1 + cubic",
        "the derivative of the cube in GELU's approximation by tanh lacks its 3",
        "The gradients of W1 and b1, and all below, are wrong by some per cent. Other activations"
        " are right.",
        ("not seen in public; included because 0.044715 hides what multiplies it",),
    ),
    Deviation(
        "query-and-key-gradients-swapped", "backward", at.MHA_BACKWARD,
        "d_q, d_k, d_v = (combine", "d_k, d_q, d_v = (combine",
        "queries get the keys' gradient and keys the queries'",
        "The gradients of Wq and Wk are wrong at their own size, and with them all below.",
        ("ooples/AiDotNet.Tensors#49: swapped gradients",),
        practical=Form(at.ATTENTION_BACKWARD, "grads =", "d_q, d_k = d_k, d_q\n    grads ="),
    ),
    Deviation(
        "key-gradient-not-scaled", "backward", at.SDPA_BACKWARD,
        "matmul(d_scores.swapaxes(-1, -2), q), d_v",
        "matmul(d_scores.swapaxes(-1, -2), q) / scale, d_v",
        "the keys' gradient lacks the factor 1 / sqrt(head_dim)",
        "The gradient of Wk is too large by sqrt(head_dim), and all below are wrong. Invisible if"
        " head_dim is 1.",
        ("not seen in public; included because the factor is often folded into the queries",),
        practical=Form(at.ATTENTION_BACKWARD, "matmul(d_scores.swapaxes(-1, -2), t.q)",
                       "matmul(d_scores.swapaxes(-1, -2), t.q) / scale"),
    ),
    Deviation(
        "attention-gradient-without-key-path", "backward", at.MHA_BACKWARD,
        " + matmul(d_k, mha.wk.T)", "",
        "the input's gradient leaves out the keys",
        "The layer's own gradients are right; those of all layers before, and the image's, are"
        " wrong.",
        ("not seen in public; included because the sum of three paths is easily cut short",),
        practical=Form(at.ATTENTION_BACKWARD),
    ),
    Deviation(
        "layer-norm-gradient-with-sums", "backward", at.NORMALIZE_DERIV,
        _BOTH_MEANS, _BOTH_MEANS.replace(" mean(", " scalars.total("),
        "the two means of the derivative are sums",
        "All gradients below a normalisation are wrong at their own size. Invisible if embed_dim"
        " is 1.",
        ("mlpack/mlpack#2474: a sum of a batch normalisation's gradient is doubted",),
    ),
    Deviation(
        "layer-norm-gradient-not-divided", "backward", at.NORMALIZE_DERIV,
        "keepdims=True)) / std", "keepdims=True)) + 0 * std",
        "the gradient is not divided by the standard deviation",
        "All gradients below a normalisation are wrong by its rows' size.",
        ("not seen in public; included because the division is the last of many steps",),
    ),
    Deviation(
        "layer-norm-gradient-without-eps", "backward", at.LAYER_NORM_BACKWARD,
        "normalize(x, epsilon)", 'normalize(x, "0")',
        "the backward normalises the rows again, without epsilon",
        "Gradients are wrong by epsilon / (2 variance) of their size: rows of small variance show"
        " it. NaN where all entries of a row are alike.",
        ("not seen in public; included because a backward that recomputes has an epsilon of its"
         " own",),
    ),
    *(
        make(
            f"{name}-gradient-{what}", "batch", at.SUM_OVER_BATCH, _SUM, new.format(leaf=leaf),
            f"the {noun} gradient is {words}, not the sum over the batch",
            f"The {noun} gradient is wrong by {size}; all else is right. Invisible for one image.",
            ("not seen in public; included because what has no batch axis is broadcast over it, and"
             " a hand-written backward has to undo that",),
        )
        for make, name, noun, leaf in (
            (Deviation, "positions", "positions'", "pos_enc.pos"),
            (with_cls, "cls", "CLS token's", "cls_token"),
        )
        for what, words, size, new in (
            ("of-one-image", "that of the first image", "its own size",
             f'gradients[0][name] + 0 if name == "{{leaf}}" else {_SUM}'),
            ("averaged", "the mean", "the factor of the batch size",
             f'{_SUM} / (len(gradients) if name == "{{leaf}}" else 1)'),
        )
    ),
    Deviation(
        "loss-scale-left-in", "backward", at.SUM_OVER_BATCH, _SUM, f"65536 * {_SUM}",
        "all gradients are those of a loss times 65536, as mixed precision scales it",
        "All gradients are too large by this factor; the logits are right.",
        ("PyTorch's `GradScaler` starts with 65536, and leaves it in until `unscale_`",),
        also=(Patch(at.EVALUATE, _STACK, f"65536 * {_STACK}"),),
    ),
    Deviation(
        "gradients-clipped-by-norm", "backward", at.SUM_OVER_BATCH, _SUMMED,
        f"summed = {_SUMMED.removeprefix('return ')}\n"
        "    norm = np.sqrt(sum((g * g).sum() for g in summed.values()))\n"
        "    return {name: g * min(1, 1 / (norm + 1e-6)) for name, g in summed.items()}",
        "the parameters' gradients are scaled down together to a norm of 1 at most",
        "All of them are too small by one factor; the images' are right. Invisible where the norm"
        " is below 1.",
        ("on purpose in training: `torch.nn.utils.clip_grad_norm_` before gradients are read",),
    ),
    Deviation(
        "gradients-clipped-by-value", "backward", at.SUM_OVER_BATCH, _SUM,
        f"np.clip({_SUM}, -1, 1)",
        "the entries of the parameters' gradients are cut to what is between -1 and 1",
        "Larger entries are wrong; the images' are right. Invisible where there is none.",
        ("on purpose in training: `torch.nn.utils.clip_grad_value_`",),
    ),
    Deviation(
        "weight-decay-in-the-gradient", "backward", at.EVALUATE, _FOUND,
        f"{_FOUND}\n"
        "    found |= {n: found[n] + 0.1 * convert(p) for n, p in point.params.items()}",
        "a tenth of each parameter is added to its gradient",
        "All parameters' gradients are wrong by a tenth of the parameters, whatever the cotangent;"
        " the images' are right.",
        ("on purpose in optimisers, as L2 regularisation: `weight_decay` of `torch.optim.SGD`",),
    ),
)  # fmt: skip
"""From the activation down; then what becomes of all gradients."""
