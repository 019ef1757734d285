"""Further mistakes in the attention: its scale, its softmax, and what they are applied to."""

from __future__ import annotations

from vitspec.testing.catalogue import functions as at
from vitspec.testing.catalogue.deviation import Deviation, Form, Patch, of_practical

_DENOMINATOR = "attention_scale_denom(q.shape[-1], q.dtype)"
_BY_HEADS = "attention_scale_denom(len(q) if q.ndim > 2 else 1, q.dtype)"
_ROOT = "np.sqrt(scalars.scalar(max(d, 1), dtype))"
_UNMASKED = "softmax(scores) if mask is None"
_SUM = "scalars.total(weights, axis=-1, keepdims=True)"
_A, _AT = "times(weights, factors), v", "times(weights, factors).swapaxes(-1, -2), v"
_SAME_WINDOW = (
    "np.arange(scores.shape[-2])[:, None] // 4 == np.arange(scores.shape[-1])[None, :] // 4"
)
_SIGNATURE = '#n #n"] | None = None,\n'


def _patches(function: str, *changes: tuple[str, str]) -> tuple[Patch, ...]:
    return tuple(Patch(function, old, new) for old, new in changes)


SCORES = (
    Deviation(
        "attention-scale-after-softmax", "forward", at.WEIGHTS,
        "scores *= scale", "scores *= 1",
        "the weights are divided by sqrt(head_dim), and not the scores",
        "The weights are too sharp, and their rows add up to 1 / sqrt(head_dim); all logits are"
        " wrong at their own size. Invisible if head_dim is 1.",
        ("not seen in public; included because the factor is easily put one line too late",),
        also=(Patch(at.WEIGHTS, _UNMASKED, "softmax(scores) * scale if mask is None"),),
    ),
    Deviation(
        "attention-scale-inverted", "both", at.ATTENTION_SCALE, _ROOT, f"1 / {_ROOT}",
        "scores are multiplied by sqrt(head_dim) instead of divided",
        "The weights are almost those of the largest scores alone; all logits and gradients move."
        " Invisible if head_dim is 1.",
        ("esceptico/perceiver-io#9: divided by `head_dim ** -0.5`",),
        derivatives=(),
    ),
    Deviation(
        "attention-scale-by-head-count", "forward", at.WEIGHTS, _DENOMINATOR, _BY_HEADS,
        "scores are divided by the square root of the number of heads",
        "The weights are too sharp or too flat; all logits and gradients move. Invisible where a"
        " head has as many columns as there are heads.",
        ("tenstorrent/tt-metal#56789: in a tutorial's CLIP",),
        derivatives=(Patch(at.SDPA_BACKWARD, _DENOMINATOR, _BY_HEADS),
                     Patch(at.SDPA_JVP, _DENOMINATOR, _BY_HEADS)),
        practical=Form(derivatives=(
            Patch(at.ATTENTION_BACKWARD, "denom(trace.q.shape[-1]", "denom(len(trace.q)"),
            Patch(at.ATTENTION_JVP, "denom(trace.q.shape[-1]", "denom(len(trace.q)"),
        )),
    ),
    Deviation(
        "attention-scale-of-padded-head-dim", "both", at.ATTENTION_SCALE,
        "max(d, 1)", "max(-(-d // 8) * 8, 1)",
        "scores are divided by the square root of head_dim rounded up to a multiple of 8",
        "The weights are too flat; all logits and gradients move. Invisible where head_dim is a"
        " multiple of 8, as in all models that people load.",
        ("intel/ipex-llm#12619: the scale of padded heads",
         "huggingface/transformers#35984: code that has to take care of it"),
        derivatives=(),
    ),
    Deviation(
        "softmax-over-heads", "forward", at.WEIGHTS,
        "return softmax(scores)", "return softmax(scores.swapaxes(0, -1)).swapaxes(0, -1)",
        "the softmax normalises over heads instead of keys",
        "With one head all weights are 1; with several, a token's weights do not add up to 1. All"
        " logits are wrong at their own size.",
        ("CAMMA-public/rendezvous-in-time#3: `nn.Softmax(dim=1)`, where that is the heads",
         "PetrochukM/PyTorch-NLP#2: dimension 0"),
    ),
    Deviation(
        "softmax-missing", "forward", at.WEIGHTS, "return softmax(scores)", "return scores",
        "the scores themselves are the weights",
        "All logits are wrong at their own size, and grow with the number of tokens.",
        ("not seen in public; included because linear attention leaves it out on purpose",),
    ),
    Deviation(
        "attention-applied-transposed", "forward", at.MHA,
        "matmul(weights, v)", "matmul(weights.swapaxes(-1, -2), v)",
        "the values are weighed by A^T instead of A",
        "A row's weights do not add up to 1; all logits are wrong at their own size. Invisible with"
        " one token.",
        ("not seen in public; included because A^T v has the right shape",),
        derivatives=(
            *_patches(at.SDPA_BACKWARD,
                      ("matmul(d_out, v.swapaxes(-1, -2))", "matmul(v, d_out.swapaxes(-1, -2))"),
                      ("matmul(weights.swapaxes(-1, -2), d_out)", "matmul(weights, d_out)")),
            *_patches(at.SDPA_JVP, ("matmul(d_weights, v) + matmul(weights, dv)",
                                    "matmul(d_weights.swapaxes(-1, -2), v)"
                                    " + matmul(weights.swapaxes(-1, -2), dv)")),
        ),
        practical=Form(
            at.ATTENTION, _A, _AT,
            derivatives=(
                *_patches(
                    at.ATTENTION_BACKWARD,
                    ("d_heads, t.v.swapaxes(-1, -2)", "t.v, d_heads.swapaxes(-1, -2)"),
                    ("factors).swapaxes(-1, -2), d_heads", "factors), d_heads"),
                ),
                *_patches(
                    at.ATTENTION_JVP,
                    ("matmul(d_weights, t.v)", "matmul(d_weights.swapaxes(-1, -2), t.v)"),
                    ("times(t.weights, factors), dv",
                     "times(t.weights, factors).swapaxes(-1, -2), dv"),
                ),
            ),
        ),
    ),
    of_practical(
        "keys-and-values-not-normalised", "forward", at.BLOCK,
        "f.attention_weights)", "f.attention_weights, x)",
        "queries are of the normalised rows, keys and values of the rows before",
        "Logits are wrong at their own size.",
        ("not seen in public; included because cross-attention normalises queries and keys apart",),
        also=_patches(
            at.ATTENTION,
            (_SIGNATURE, _SIGNATURE + "    rows=None,\n"),
            ("affine(x, mha.wk", "affine(x if rows is None else rows, mha.wk"),
            ("affine(x, mha.wv", "affine(x if rows is None else rows, mha.wv"),
        ),
    ),
    Deviation(
        "softmax-denominator-plus-one", "both", at.SOFTMAX,
        f"weights /= {_SUM}", f"weights /= {_SUM} + np.exp(-scalars.row_max(x))",
        "the weights are exp(s) / (1 + the sum of exp(s)), as with a further key and value of 0",
        "Rows of weights sum to less than 1; all logits and gradients move, the less the more"
        " tokens there are.",
        ("`add_zero_attn=True` of `torch.nn.MultiheadAttention`",
         "softmax1/Flash-Attention-Softmax-N#12: on purpose"),
        derivatives=(),
    ),
    Deviation(
        "attention-in-windows", "both", at.WEIGHTS, _UNMASKED,
        f"hard_masked_softmax(scores, {_SAME_WINDOW}) if mask is None",
        "a row attends only to those of its window, four rows of the sequence",
        "All logits are wrong; the CLS token sees three patches. Invisible with up to four rows.",
        ("on purpose in ViTDet and SAM, in windows of the grid: most of their blocks have them",),
        derivatives=(),
    ),
)  # fmt: skip
"""In the order of the computation."""
