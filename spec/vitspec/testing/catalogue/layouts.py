"""Buffers read in another order than they were written in."""

from __future__ import annotations

from vitspec.testing.catalogue import functions as at
from vitspec.testing.catalogue.deviation import Deviation, Form, Patch, of_practical

_SHAPED = ".reshape(spec.kernel.shape)"
_FROM_HWIO = ".reshape(*spec.kernel.shape[2:], *spec.kernel.shape[1::-1]).transpose(3, 2, 0, 1)"
_PADDED = "padding : padding + W] = x"
_UNPADDED = "return x[:, padding : x.shape[1] - padding, padding : x.shape[2] - padding]"
_READ_HEAD = "spec.weights.T.reshape(spec.weights.shape)"
_HEAD_GRADIENT = "d_out[:, None] * x[None, :]"
_READ_WO = "mha.wo.T.reshape(mha.wo.shape)"
_FUSED = (
    "import numpy as np\n"
    "    rows = np.concatenate([combine_heads(a) for a in (q, k, v)], axis=1)\n"
    "    rows = rows.reshape(len(x), mha.head_count, 3, q.shape[-1])\n"
    "    q, k, v = rows.transpose(2, 1, 0, 3)\n"
    "    weights = att"
)
_FUSED_BIAS = (
    "import numpy as np\n"
    "    b = (None,) * 3 if mha.bq is None else np.concatenate([mha.bq, mha.bk, mha.bv]).reshape(\n"
    "        mha.head_count, 3, -1).swapaxes(0, 1).reshape(3, -1)\n    "
)
_ACROSS = (
    "a, b, c = (one.swapaxes(0, 1) for one in (q, k, v))\n"
    "    concat = matmul(attention_weights(a, b), c).reshape(len(x), q.shape[0] * q.shape[2])"
)
_BY_KIND = "q = split_heads(affine(x, mha.wq, mha.bq)"


def _from_hwio(function: str) -> Patch:
    return Patch(function, _SHAPED, _FROM_HWIO)


def _biases(function: str, *changes: tuple[str, str]) -> tuple[Patch, ...]:
    return tuple(Patch(function, old, new) for old, new in changes)


LAYOUTS = (
    Deviation(
        "kernel-hwio-as-oihw", "both", at.KERNEL,
        "return kernel.reshape(", "return kernel.transpose(2, 3, 1, 0).reshape(",
        "the kernel's buffer in the order HWIO is read in the order OIHW",
        "All logits are wrong at their own size. Nothing fails, for there are as many entries.",
        ("apache/tvm#14546: a kernel in HWIO where HWOI is meant; Flax and Keras have HWIO, PyTorch"
         " OIHW",),
        derivatives=(_from_hwio(at.KERNEL_DERIV),),
        practical=Form(derivatives=(_from_hwio(at.EMBEDDING_BACKWARD),)),
    ),
    Deviation(
        "image-hwc-as-chw", "both", at.PAD,
        _PADDED, f"{_PADDED}.transpose(1, 2, 0).reshape(x.shape)",
        "the image's buffer with channels last is read as if they were first",
        "All logits are wrong at their own size. Invisible with one channel.",
        ("gupta-abhay/pytorch-vit#7: data of different channels mixed by a reshape",),
        derivatives=(
            Patch(at.UNPAD, _UNPADDED,
                  _UNPADDED.replace("return x", "x = x", 1)
                  + "; return x.reshape(*x.shape[1:], len(x)).transpose(2, 0, 1)"),
        ),
        practical=Form(
            at.PATCHES, "C, H, W = x.shape",
            "x = x.transpose(1, 2, 0).reshape(x.shape); C, H, W = x.shape",
            derivatives=(
                Patch(at.PIXELS, "return x", "return x.reshape(H, W, C).transpose(2, 0, 1)"),
            ),
        ),
    ),
    Deviation(
        "head-weight-transposed", "forward", at.LINEAR,
        "matmul(spec.weights, x)", f"matmul({_READ_HEAD}, x)",
        "the buffer of the head's weights, stored (out, in), is read as (in, out)",
        "Logits are wrong at their own size. Nothing fails where a loader goes by the number of"
        " entries, or with as many classes as features.",
        ("huggingface/transformers#47031: transposed if the two sizes are alike",),
        derivatives=(
            Patch(at.LINEAR_BACKWARD, _HEAD_GRADIENT,
                  f"({_HEAD_GRADIENT}).reshape(spec.weights.T.shape).T.copy()"),
            Patch(at.LINEAR_BACKWARD, "matmul(spec.weights.T", f"matmul({_READ_HEAD}.T"),
            Patch(at.LINEAR_JVP, "matmul(spec.weights, dx) + matmul(tangent.weights, x)",
                  f"matmul({_READ_HEAD}, dx)"
                  " + matmul(tangent.weights.T.reshape(spec.weights.shape), x)"),
        ),
    ),
    Deviation(
        "output-weight-transposed", "forward", at.MHA,
        "matmul(concat, mha.wo)", f"matmul(concat, {_READ_WO})",
        "the buffer of Wo, stored (out, in), is read as (in, out)",
        "If the heads fill the embedding the weight is square, nothing fails, and all logits are"
        " wrong at their own size.",
        ("TorchLean's import of PyTorch weights (DEV-5 in `docs/deviations.md`)",),
        practical=Form(
            at.ATTENTION, "concat, mha.wo,", "concat, mha.wo.T,",
            derivatives=(
                Patch(at.ATTENTION_BACKWARD, "d_out, mha.wo.T", "d_out, mha.wo"),
                Patch(at.ATTENTION_BACKWARD, "d_wo=matmul(t.concat.T, d_out)",
                      "d_wo=matmul(t.concat.T, d_out).T"),
                Patch(at.ATTENTION_JVP, "t.concat, mha.wo, combine_heads(d_heads), tangent.wo",
                      "t.concat, mha.wo.T, combine_heads(d_heads), tangent.wo.T"),
            ),
        ),
    ),
    Deviation(
        "feed-forward-second-weight-transposed", "forward", at.FFN,
        "matmul(activated, ffn.w2)", "matmul(activated, ffn.w2.T.reshape(ffn.w2.shape))",
        "the buffer of W2, stored (out, in), is read as (in, out)",
        "As `feed-forward-weight-transposed`, of the second weight.",
        ("TorchLean's import of PyTorch weights (DEV-5 in `docs/deviations.md`)",),
        practical=Form(at.MLP, "mlp.w2, mlp.b2", "mlp.w2.T.reshape(mlp.w2.shape), mlp.b2"),
    ),
    Deviation(
        "fused-qkv-by-head", "forward", at.MHA, "weights = att", _FUSED,
        "the columns of a fused weight, stored (3, heads, head_dim), are read as (heads, 3,"
        " head_dim), and so are its biases",
        "Queries, keys and values of a head are made of other columns; all logits are wrong at"
        " their own size. Invisible with one head.",
        ("vllm-project/vllm#53114: both layouts, and code that goes from one to the other",
         "Lightning-AI/litgpt#1013"),
        practical=Form(at.ATTENTION, "weights = att", _FUSED),
    ),
    of_practical(
        "fused-bias-by-head", "forward", at.ATTENTION, _BY_KIND,
        f"{_FUSED_BIAS}{_BY_KIND.replace('mha.bq', 'b[0]')}",
        "as `fused-qkv-by-head`, but for the biases alone: the weights are read rightly",
        "Logits are wrong by the size of the biases. Invisible with one head, at initialisation,"
        " where biases are 0, and in models without them.",
        ("not seen in public; included because weight and bias are reordered by two lines of a"
         " converter",),
        also=_biases(at.ATTENTION, ("mha.wk, mha.bk)", "mha.wk, b[1])"),
                     ("mha.wv, mha.bv)", "mha.wv, b[2])")),
    ),
    of_practical(
        "query-and-value-biases-swapped", "forward", at.ATTENTION,
        "mha.wq, mha.bq)", "mha.wq, mha.bv)",
        "queries have the values' bias, and values the queries'",
        "Logits are wrong by the size of the biases. Invisible at initialisation, where they are 0,"
        " and in models without them.",
        ("not seen in public; included because BEiT has biases of queries and values alone, and"
         " fuses them with zeros",),
        also=_biases(at.ATTENTION, ("mha.wv, mha.bv)", "mha.wv, mha.bq)")),
        derivatives=(
            *_biases(at.ATTENTION_BACKWARD, ("mha.bq, d_q)", "mha.bq, d_v)"),
                     ("mha.bv, d_v)", "mha.bv, d_q)")),
            *_biases(at.ATTENTION_JVP, ("tangent.wq, tangent.bq)", "tangent.wq, tangent.bv)"),
                     ("tangent.wv, tangent.bv)", "tangent.wv, tangent.bq)")),
        ),
    ),
    Deviation(
        "attention-across-heads", "forward", at.MHA,
        "concat = combine_heads(matmul(weights, v))", _ACROSS,
        "heads and tokens are not transposed: a token's heads attend to each other",
        "No token sees another one; all logits are wrong at their own size.",
        ("harvardnlp/annotated-transformer#118: whether the transposition is needed is asked for",),
        practical=Form(
            at.ATTENTION, "concat = combine_heads(matmul(times(weights, factors), v))", _ACROSS
        ),
    ),
    Deviation(
        "head-count-and-head-dim-exchanged", "both", at.SPLIT,
        "x.reshape(n, head_count, I // head_count)", "x.reshape(n, I // head_count, head_count)",
        "there are as many heads as a head should have columns, and the other way round",
        "All logits are wrong at their own size. Invisible where the two numbers are alike.",
        ("not seen in public; included because two integers side by side are easily exchanged",),
        derivatives=(),
    ),
)  # fmt: skip
"""Parameters, images, heads."""
