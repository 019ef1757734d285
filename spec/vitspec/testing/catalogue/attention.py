"""Mistakes in the attention's forward."""

from __future__ import annotations

from vitspec.testing.catalogue.deviation import Deviation, Patch

WEIGHTS = "layers.attention:attention_weights"
SDPA_BACKWARD = "layers.attention:scaled_dot_product_attention_backward"
SDPA_JVP = "layers.attention:scaled_dot_product_attention_jvp"
SPLIT = "layers.multi_head_attention:split_heads"
COMBINE = "layers.multi_head_attention:combine_heads"
MHA = "layers.multi_head_attention:multi_head_attention_trace"
MHA_BACKWARD = "layers.multi_head_attention:multi_head_attention_backward"
MHA_JVP = "layers.multi_head_attention:multi_head_attention_jvp"

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


ATTENTION = (
    Deviation(
        "attention-scale-missing", "both", "layers.attention:attention_scale_denom",
        "np.sqrt(scalars.scalar(max(d, 1), dtype))", "scalars.scalar(1, dtype)",
        "scores are not divided by sqrt(head_dim)",
        "The weights are too sharp; everything after the first attention is wrong by tens of per"
        " cent. Invisible if head_dim is 1 or all scores of a row are alike.",
        ("huggingface/blog#2893: sample code without the scale", "delzac/cntkx#10"),
        derivatives=(),
    ),
    Deviation(
        "attention-scale-by-head-dim", "both", "layers.attention:attention_scale_denom",
        "np.sqrt(scalars.scalar(max(d, 1), dtype))", "scalars.scalar(max(d, 1), dtype)",
        "scores are divided by head_dim instead of its square root",
        "The weights are too flat, as if the scale were applied twice; all logits and gradients"
        " move. Invisible if head_dim is 1.",
        ("AI-Hypercomputer/maxtext#1349: scores scaled down twice",),
        derivatives=(),
    ),
    Deviation(
        "attention-scale-by-embed-dim", "forward", WEIGHTS, _DENOMINATOR, _ALL_HEADS,
        "scores are divided by the square root of all heads' width instead of one head's",
        "The weights are too flat by sqrt(head_count); all logits and gradients move. Invisible"
        " with one head.",
        ("lucidrains/vit-pytorch#65: `self.scale = dim ** -0.5`", "omihub777/ViT-CIFAR#12",
         "karpathy/ng-video-lecture#6"),
        derivatives=(
            Patch(SDPA_BACKWARD, _DENOMINATOR, _ALL_HEADS),
            Patch(SDPA_JVP, _DENOMINATOR, _ALL_HEADS),
        ),
    ),
    Deviation(
        "softmax-over-queries", "forward", WEIGHTS,
        "return softmax(scores)", "return softmax(scores.swapaxes(-1, -2)).swapaxes(-1, -2)",
        "the softmax normalises over queries instead of keys",
        "Rows of weights no longer sum to 1; outputs of the attention are wrong at their own size."
        " Invisible with one token.",
        ("nerminnuraydogan/vision-transformer#1",
         "labmlai/annotated_deep_learning_paper_implementations#146"),
        derivatives=(
            Patch(
                SDPA_BACKWARD, "softmax_backward_from_weights(weights, d_weights)",
                "softmax_backward_from_weights(weights.swapaxes(-1, -2),"
                " d_weights.swapaxes(-1, -2)).swapaxes(-1, -2)",
            ),
            Patch(
                SDPA_JVP, "softmax_backward_from_weights(weights, d_scores)",
                "softmax_backward_from_weights(weights.swapaxes(-1, -2),"
                " d_scores.swapaxes(-1, -2)).swapaxes(-1, -2)",
            ),
        ),
    ),
    Deviation(
        "softmax-shifted-by-columns", "forward", "layers.activation:softmax",
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
        "attention-causal", "both", WEIGHTS,
        "softmax(scores) if mask is None",
        "hard_masked_softmax(scores, np.tri(*scores.shape[-2:], dtype=bool)) if mask is None",
        "a token attends only to itself and to those before it",
        "Everything is wrong; the CLS token, being first, sees no patch at all, so with one layer"
        " its logits do not depend on the image.",
        ("NVIDIA/Megatron-LM#1791: a ViT layer with a causal mask",),
        derivatives=(),
    ),
    Deviation(
        "mask-sense-inverted", "both", WEIGHTS,
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
        "mask-after-softmax", "both", WEIGHTS,
        "hard_masked_softmax(scores, mask)", "softmax(scores) * mask.astype(scores.dtype)",
        "blocked weights are set to 0 after the softmax, and the others not scaled up",
        "Rows of weights sum to less than 1 wherever a key is blocked. The models use no mask.",
        ("abisee/pointer-generator#88: mask and softmax in this order, but then scaled up",),
        specs=(),
    ),
    Deviation(
        "mask-multiplies-scores", "both", WEIGHTS,
        "hard_masked_softmax(scores, mask)", "softmax(scores * mask.astype(scores.dtype))",
        "blocked scores are set to 0 instead of minus infinity",
        "Blocked keys keep a weight, since exp(0) = 1. The models use no mask.",
        ("georg-wolflein/good-features#1",),
        specs=(),
    ),
    Deviation(
        "blocked-row-uniform", "both", WEIGHTS,
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
        "heads-split-by-raw-reshape", "both", SPLIT, _SPLIT,
        "x.reshape(head_count, n, I // head_count)",
        "heads cut the flat buffer, so they mix tokens",
        "Queries, keys and values of a head belong to other tokens; everything after the first"
        " attention is wrong at its own size. Invisible with one head or one token.",
        ("TorchLean's first release (DEV-3 in `docs/deviations.md`)", "reczoo/FuxiCTR#30",
         "hyunwoongko/transformer#15"),
        derivatives=(
            Patch(MHA_BACKWARD, _D_HEADS, _TRUE_D_HEADS),
            Patch(MHA_BACKWARD, _BY_HEAD, "(d.reshape(len(x), -1) for d in by_head)"),
        ),
    ),
    Deviation(
        "heads-interleaved", "both", SPLIT, _SPLIT,
        "x.reshape(n, I // head_count, head_count).transpose(2, 0, 1)",
        "neighbouring columns go to different heads",
        "Heads see the wrong columns of Q, K and V; all logits and gradients move. Invisible with"
        " one head, or with head_dim 1.",
        ("tensorflow/swift-models#564: heads split before q, k and v", "awslabs/slapo#46"),
        derivatives=(
            Patch(MHA_BACKWARD, _D_HEADS, _TRUE_D_HEADS),
            Patch(
                MHA_BACKWARD, _BY_HEAD,
                "(d.transpose(1, 2, 0).reshape(len(x), -1) for d in by_head)",
            ),
        ),
    ),
    Deviation(
        "heads-combined-by-raw-reshape", "both", COMBINE,
        "x.transpose(1, 0, 2).reshape(n, H * d)", "x.reshape(n, H * d)",
        "the heads' outputs are not brought back to their tokens",
        "A token's row is made of other tokens' outputs; everything after the first attention is"
        " wrong at its own size. Invisible with one head or one token.",
        ("jsbaan/transformer-from-scratch#6", "ajhalthor/Transformer-Neural-Network#4",
         "chelsea0x3b/dfdx#158"),
        derivatives=(
            Patch(
                MHA_BACKWARD, _D_HEADS,
                "matmul(d_out, mha.wo.T).reshape(mha.head_count, len(x), -1)",
            ),
            Patch(
                MHA_BACKWARD, _BY_HEAD,
                "(d.transpose(1, 0, 2).reshape(len(x), -1) for d in by_head)",
            ),
        ),
    ),
    Deviation(
        "queries-and-keys-swapped", "forward", MHA, _QUERIES + _KEYS,
        _QUERIES.replace("wq", "wk") + _KEYS.replace("wk", "wq"),
        "the query weight is used for the keys and the key weight for the queries",
        "Scores are transposed; all logits move, and the gradients of the two weights change"
        " places. Invisible with one token, or if the two weights are alike.",
        ("kyegomez/MegaVIT#17: k and v taken for q and k",
         "vllm-project/vllm#42803: parts of a fused qkv weight in each other's slots"),
        derivatives=(
            Patch(MHA_BACKWARD, "d_q, d_k, d_v = (combine", "d_k, d_q, d_v = (combine"),
            Patch(MHA_JVP, "t.v, dq, dk, dv", "t.v, dk, dq, dv"),
        ),
    ),
    Deviation(
        "keys-and-values-swapped", "forward", MHA, _KEYS + _VALUES,
        _KEYS.replace("wk", "wv") + _VALUES.replace("wv", "wk"),
        "the key weight is used for the values and the value weight for the keys",
        "All logits and gradients are wrong at their own size. Invisible only if the two weights"
        " are alike.",
        ("vllm-project/vllm#42803: parts of a fused qkv weight in each other's slots",
         "awslabs/slapo#46: two layouts of the fused weight"),
        derivatives=(
            Patch(MHA_BACKWARD, "d_q, d_k, d_v = (combine", "d_q, d_v, d_k = (combine"),
            Patch(MHA_JVP, "t.v, dq, dk, dv", "t.v, dq, dv, dk"),
        ),
    ),
    Deviation(
        "attention-weights-transposed", "forward", MHA, _QUERIES + _KEYS + _VALUES,
        (_QUERIES + _KEYS + _VALUES)
        .replace("mha.wq", _read_transposed("wq"))
        .replace("mha.wk", _read_transposed("wk"))
        .replace("mha.wv", _read_transposed("wv")),
        "the buffers of Wq, Wk and Wv, stored (in, out), are read as (out, in)",
        "If the heads fill the embedding the weights are square, nothing fails, and all logits are"
        " wrong at their own size; the three gradients come back transposed as well.",
        ("TorchLean's import of PyTorch weights (DEV-5 in `docs/deviations.md`)",
         "huggingface/transformers#47031", "skyzh/tiny-llm#60"),
        derivatives=(
            *(
                Patch(MHA_BACKWARD, f"matmul(d_{c}, mha.w{c}.T)",
                      f"matmul(d_{c}, {_read_transposed(f'w{c}')}.T)")
                for c in "qkv"
            ),
            *(
                Patch(MHA_BACKWARD, f"d_w{c}=matmul(x.T, d_{c})",
                      f"d_w{c}=matmul(x.T, d_{c}).reshape(mha.w{c}.T.shape).T.copy()")
                for c in "qkv"
            ),
            *(
                Patch(MHA_JVP, f"matmul(dx, mha.w{c}) + matmul(x, tangent.w{c})",
                      f"matmul(dx, {_read_transposed(f'w{c}')}) + matmul(x,"
                      f" tangent.w{c}.T.reshape(mha.w{c}.shape))")
                for c in "qkv"
            ),
        ),
    ),
    Deviation(
        "output-projection-missing", "forward", MHA, _MHA_RETURN,
        _IMPORT + _MHA_RETURN.replace("mha.wo", _EYE),
        "the heads' outputs side by side are the attention's output",
        "Logits are wrong at their own size, and the gradient of Wo, if automatic, is 0.",
        ("`src/multi_head_attention.py` of kmsgnnew/vision_transformer_numpy has none",
         "dome272/VQGAN-pytorch#23"),
        derivatives=(
            Patch(MHA_BACKWARD, f"d_heads = {_D_HEADS}",
                  f"{_IMPORT}d_heads = {_D_HEADS.replace('mha.wo', _EYE)}"),
            Patch(MHA_BACKWARD, "matmul(t.concat.T, d_out)", "0 * matmul(t.concat.T, d_out)"),
            Patch(MHA_JVP, _JVP_RETURN,
                  f"{_IMPORT}return matmul(combine_heads(d_heads), {_EYE})"),
        ),
    ),
)  # fmt: skip
"""In the order of the computation."""
