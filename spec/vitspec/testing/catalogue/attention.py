"""Mistakes in the attention's forward."""

from __future__ import annotations

from vitspec.testing.catalogue import functions as at
from vitspec.testing.catalogue.deviation import Deviation, Form, Patch

_DENOMINATOR = "attention_scale_denom(q.shape[-1], q.dtype)"
_ALL_HEADS = "attention_scale_denom(q.shape[-1] * (len(q) if q.ndim > 2 else 1), q.dtype)"
_SPLIT = "x.reshape(n, head_count, I // head_count).transpose(1, 0, 2)"
_D_HEADS = "split_heads(matmul(d_out, mha.wo.T), mha.head_count)"
_TRUE_D_HEADS = "matmul(d_out, mha.wo.T).reshape(len(x), mha.head_count, -1).transpose(1, 0, 2)"
_BY_HEAD = "(combine_heads(d) for d in by_head)"
_IMPORT = "import numpy as np\n    "
_EYE = "np.eye(*mha.wo.shape, dtype=x.dtype)"
_MHA_RETURN = (
    "return MultiHeadAttentionTrace(q, k, v, weights, concat, output=matmul(concat, mha.wo))"
)
_JVP_RETURN = "return matmul(combine_heads(d_heads), mha.wo) + matmul(t.concat, tangent.wo)"
_QUERIES = "q = split_heads(matmul(x, mha.wq), mha.head_count)\n    "
_KEYS = "k = split_heads(matmul(x, mha.wk), mha.head_count)\n    "
_VALUES = "v = split_heads(matmul(x, mha.wv), mha.head_count)"


def _read_transposed(name: str) -> str:
    return f"mha.{name}.T.reshape(mha.{name}.shape)"


def _over_queries(function: str, weights: str, d: str) -> Patch:
    """The softmax's derivative along the other axis."""
    args = f"{weights}.swapaxes(-1, -2), {d}.swapaxes(-1, -2)"
    right, wrong = (f"softmax_backward_from_weights({a})" for a in (f"{weights}, {d}", args))
    return Patch(function, right, f"{wrong}.swapaxes(-1, -2)")


def _exchanged(a: str, b: str) -> Form:
    """Two of the self-attention's projections in each other's places."""
    return Form(
        at.ATTENTION, "weights = att", f"{a}, {b} = {b}, {a}\n    weights = att",
        derivatives=(
            Patch(at.ATTENTION_BACKWARD, "grads =", f"d_{a}, d_{b} = d_{b}, d_{a}\n    grads ="),
            Patch(at.ATTENTION_JVP, "d_scores =", f"d{a}, d{b} = d{b}, d{a}\n    d_scores ="),
        ),
    )  # fmt: skip


ATTENTION = (
    Deviation(
        "attention-scale-missing", "both", at.ATTENTION_SCALE,
        "np.sqrt(scalars.scalar(max(d, 1), dtype))", "scalars.scalar(1, dtype)",
        "scores are not divided by sqrt(head_dim)",
        "The weights are too sharp; everything after the first attention is wrong by tens of per"
        " cent. Invisible if head_dim is 1 or all scores of a row are alike.",
        ("huggingface/blog#2893: sample code without the scale", "delzac/cntkx#10"),
        derivatives=(),
    ),
    Deviation(
        "attention-scale-by-head-dim", "both", at.ATTENTION_SCALE,
        "np.sqrt(scalars.scalar(max(d, 1), dtype))", "scalars.scalar(max(d, 1), dtype)",
        "scores are divided by head_dim instead of its square root",
        "The weights are too flat, as if the scale were applied twice; all logits and gradients"
        " move. Invisible if head_dim is 1.",
        ("AI-Hypercomputer/maxtext#1349: scores scaled down twice",),
        derivatives=(),
    ),
    Deviation(
        "attention-scale-by-embed-dim", "forward", at.WEIGHTS, _DENOMINATOR, _ALL_HEADS,
        "scores are divided by the square root of all heads' width instead of one head's",
        "The weights are too flat by sqrt(head_count); all logits and gradients move. Invisible"
        " with one head.",
        ("lucidrains/vit-pytorch#65: `self.scale = dim ** -0.5`", "omihub777/ViT-CIFAR#12",
         "karpathy/ng-video-lecture#6"),
        derivatives=(Patch(at.SDPA_BACKWARD, _DENOMINATOR, _ALL_HEADS),
                     Patch(at.SDPA_JVP, _DENOMINATOR, _ALL_HEADS)),
        practical=Form(derivatives=(
            Patch(at.ATTENTION_BACKWARD, "denom(trace.q.shape[-1]", "denom(x.shape[-1]"),
            Patch(at.ATTENTION_JVP, "denom(trace.q.shape[-1]", "denom(x.shape[-1]"),
        )),
    ),
    Deviation(
        "softmax-over-queries", "forward", at.WEIGHTS,
        "return softmax(scores)", "return softmax(scores.swapaxes(-1, -2)).swapaxes(-1, -2)",
        "the softmax normalises over queries instead of keys",
        "Rows of weights no longer sum to 1; outputs of the attention are wrong at their own size."
        " Invisible with one token.",
        ("nerminnuraydogan/vision-transformer#1",
         "labmlai/annotated_deep_learning_paper_implementations#146"),
        derivatives=(
            _over_queries(at.SDPA_BACKWARD, "weights", "d_weights"),
            _over_queries(at.SDPA_JVP, "weights", "d_scores"),
        ),
        practical=Form(derivatives=(
            _over_queries(at.ATTENTION_BACKWARD, "t.weights", "d_weights"),
            _over_queries(at.ATTENTION_JVP, "t.weights", "d_scores"),
        )),
    ),
    Deviation(
        "softmax-shifted-by-columns", "forward", at.SOFTMAX,
        "x - scalars.row_max(x)",
        "x - (scalars.row_max(x).swapaxes(-1, -2) if x.ndim > 1 and x.shape[-1] == x.shape[-2]"
        " else scalars.row_max(x))",
        "the maximum that is subtracted from column j is that of row j",
        "Not a softmax: each key is weighed by another row's maximum, tens of per cent on random"
        " scores. Invisible with one token, or if all rows have the same maximum.",
        ("`src/softmax.py` of kmsgnnew/vision_transformer_numpy: `np.max(x, axis=-1)[:, None]` on"
         " an array with a batch axis",),
    ),
    Deviation(
        "attention-causal", "both", at.WEIGHTS,
        "softmax(scores) if mask is None",
        "hard_masked_softmax(scores, np.tri(*scores.shape[-2:], dtype=bool)) if mask is None",
        "a token attends only to itself and to those before it",
        "Everything is wrong; the CLS token, being first, sees no patch at all, so with one layer"
        " its logits do not depend on the image.",
        ("NVIDIA/Megatron-LM#1791: a ViT layer with a causal mask",),
        derivatives=(),
    ),
    Deviation(
        "mask-sense-inverted", "both", at.WEIGHTS,
        "hard_masked_softmax(scores, mask)", "hard_masked_softmax(scores, ~mask)",
        "True is read as blocked",
        "With a mask, queries attend to exactly what they must not. The models use no mask, so only"
        " a check of the attention itself can see it.",
        ("pytorch/pytorch#170415: `MultiheadAttention` and `scaled_dot_product_attention` read it"
         " in opposite ways", "rasbt/LLMs-from-scratch#1061"),
        specs=(),
        derivatives=(),
    ),
    Deviation(
        "mask-after-softmax", "both", at.WEIGHTS,
        "hard_masked_softmax(scores, mask)", "softmax(scores) * mask.astype(scores.dtype)",
        "blocked weights are set to 0 after the softmax, and the others not scaled up",
        "Rows of weights sum to less than 1 wherever a key is blocked. The models use no mask.",
        ("abisee/pointer-generator#88: mask and softmax in this order, but then scaled up",),
        specs=(),
    ),
    Deviation(
        "mask-multiplies-scores", "both", at.WEIGHTS,
        "hard_masked_softmax(scores, mask)", "softmax(scores * mask.astype(scores.dtype))",
        "blocked scores are set to 0 instead of minus infinity",
        "Blocked keys keep a weight, since exp(0) = 1. The models use no mask.",
        ("georg-wolflein/good-features#1",),
        specs=(),
    ),
    Deviation(
        "blocked-row-uniform", "both", at.WEIGHTS,
        "hard_masked_softmax(scores, mask)",
        "hard_masked_softmax(np.where(mask.any(-1, keepdims=True), scores, 0),"
        " mask | ~mask.any(-1, keepdims=True))",
        "a fully blocked query attends to every key alike instead of to none",
        "A row without an allowed key gives the mean of the values instead of 0. Nothing else"
        " changes. The models use no mask.",
        ("NVIDIA/apex#1390", "pytorch/pytorch#131060: both conventions, and NaN as the third"),
        specs=(),
    ),
    Deviation(
        "heads-split-by-raw-reshape", "both", at.SPLIT, _SPLIT,
        "x.reshape(head_count, n, I // head_count)",
        "heads cut the flat buffer, so they mix tokens",
        "Queries, keys and values of a head belong to other tokens; everything after the first"
        " attention is wrong at its own size. Invisible with one head or one token.",
        ("TorchLean's first release (DEV-3 in `docs/deviations.md`)", "reczoo/FuxiCTR#30",
         "hyunwoongko/transformer#15"),
        derivatives=(Patch(at.MHA_BACKWARD, _D_HEADS, _TRUE_D_HEADS),
                     Patch(at.MHA_BACKWARD, _BY_HEAD, "(d.reshape(len(x), -1) for d in by_head)")),
        practical=Form(),
    ),
    Deviation(
        "heads-interleaved", "both", at.SPLIT, _SPLIT,
        "x.reshape(n, I // head_count, head_count).transpose(2, 0, 1)",
        "neighbouring columns go to different heads",
        "Heads see the wrong columns of Q, K and V; all logits and gradients move. Invisible with"
        " one head, or with head_dim 1.",
        ("tensorflow/swift-models#564: heads split before q, k and v", "awslabs/slapo#46"),
        derivatives=(
            Patch(at.MHA_BACKWARD, _D_HEADS, _TRUE_D_HEADS),
            Patch(at.MHA_BACKWARD, _BY_HEAD,
                  "(d.transpose(1, 2, 0).reshape(len(x), -1) for d in by_head)"),
        ),
        practical=Form(),
    ),
    Deviation(
        "heads-combined-by-raw-reshape", "both", at.COMBINE,
        "x.transpose(1, 0, 2).reshape(n, H * d)", "x.reshape(n, H * d)",
        "the heads' outputs are not brought back to their tokens",
        "A token's row is made of other tokens' outputs; everything after the first attention is"
        " wrong at its own size. Invisible with one head or one token.",
        ("jsbaan/transformer-from-scratch#6", "ajhalthor/Transformer-Neural-Network#4",
         "chelsea0x3b/dfdx#158"),
        derivatives=(
            Patch(at.MHA_BACKWARD, _D_HEADS,
                  "matmul(d_out, mha.wo.T).reshape(mha.head_count, len(x), -1)"),
            Patch(at.MHA_BACKWARD, _BY_HEAD,
                  "(d.transpose(1, 0, 2).reshape(len(x), -1) for d in by_head)"),
        ),
        practical=Form(),
    ),
    Deviation(
        "queries-and-keys-swapped", "forward", at.MHA, _QUERIES + _KEYS,
        _QUERIES.replace("wq", "wk") + _KEYS.replace("wk", "wq"),
        "the query weight is used for the keys and the key weight for the queries",
        "Scores are transposed; all logits move, and the gradients of the two weights change"
        " places. Invisible with one token, or if the two weights are alike.",
        ("kyegomez/MegaVIT#17: k and v taken for q and k",
         "vllm-project/vllm#42803: parts of a fused qkv weight in each other's slots"),
        derivatives=(Patch(at.MHA_BACKWARD, "d_q, d_k, d_v = (combine", "d_k, d_q, d_v = (combine"),
                     Patch(at.MHA_JVP, "t.v, dq, dk, dv", "t.v, dk, dq, dv")),
        practical=_exchanged("q", "k"),
    ),
    Deviation(
        "keys-and-values-swapped", "forward", at.MHA, _KEYS + _VALUES,
        _KEYS.replace("wk", "wv") + _VALUES.replace("wv", "wk"),
        "the key weight is used for the values and the value weight for the keys",
        "All logits and gradients are wrong at their own size. Invisible only if the two weights"
        " are alike.",
        ("vllm-project/vllm#42803: parts of a fused qkv weight in each other's slots",
         "awslabs/slapo#46: two layouts of the fused weight"),
        derivatives=(Patch(at.MHA_BACKWARD, "d_q, d_k, d_v = (combine", "d_q, d_v, d_k = (combine"),
                     Patch(at.MHA_JVP, "t.v, dq, dk, dv", "t.v, dq, dv, dk")),
        practical=_exchanged("k", "v"),
    ),
    Deviation(
        "attention-weights-transposed", "forward", at.MHA, _QUERIES + _KEYS + _VALUES,
        (_QUERIES + _KEYS + _VALUES)
        .replace("mha.wq", _read_transposed("wq"))
        .replace("mha.wk", _read_transposed("wk"))
        .replace("mha.wv", _read_transposed("wv")),
        "the buffers of Wq, Wk and Wv, stored (out, in), are read as (in, out)",
        "If the heads fill the embedding the weights are square, nothing fails, and all logits are"
        " wrong at their own size; the three gradients come back transposed as well.",
        ("TorchLean's import of PyTorch weights (DEV-5 in `docs/deviations.md`)",
         "huggingface/transformers#47031", "skyzh/tiny-llm#60"),
        derivatives=tuple(
            Patch(function, old.format(c=c), new.format(c=c, w=_read_transposed(f"w{c}")))
            for function, old, new in (
                (at.MHA_BACKWARD, "matmul(d_{c}, mha.w{c}.T)", "matmul(d_{c}, {w}.T)"),
                (at.MHA_BACKWARD, "d_w{c}=matmul(x.T, d_{c})",
                 "d_w{c}=matmul(x.T, d_{c}).reshape(mha.w{c}.T.shape).T.copy()"),
                (at.MHA_JVP, "matmul(dx, mha.w{c}) + matmul(x, tangent.w{c})",
                 "matmul(dx, {w}) + matmul(x, tangent.w{c}.T.reshape(mha.w{c}.shape))"),
            )
            for c in "qkv"
        ),
        practical=Form(
            at.ATTENTION, "mha.wq,", "mha.wq.T,",
            also=tuple(Patch(at.ATTENTION, f"mha.w{c},", f"mha.w{c}.T,") for c in "kv"),
        ),
    ),
    Deviation(
        "output-projection-missing", "forward", at.MHA, _MHA_RETURN,
        _IMPORT + _MHA_RETURN.replace("mha.wo", _EYE),
        "the heads' outputs side by side are the attention's output",
        "Logits are wrong at their own size, and the gradient of Wo, if automatic, is 0.",
        ("`src/multi_head_attention.py` of kmsgnnew/vision_transformer_numpy has none",
         "dome272/VQGAN-pytorch#23"),
        derivatives=(
            Patch(at.MHA_BACKWARD, f"d_heads = {_D_HEADS}",
                  f"{_IMPORT}d_heads = {_D_HEADS.replace('mha.wo', _EYE)}"),
            Patch(at.MHA_BACKWARD, "matmul(t.concat.T, d_out)", "0 * matmul(t.concat.T, d_out)"),
            Patch(at.MHA_JVP, _JVP_RETURN,
                  f"{_IMPORT}return matmul(combine_heads(d_heads), {_EYE})"),
        ),
        practical=Form(at.ATTENTION, "output=affine(concat, mha.wo, mha.bo)", "output=concat"),
    ),
)  # fmt: skip
"""In the order of the computation."""
