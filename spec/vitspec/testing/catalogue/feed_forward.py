"""Mistakes in the forward of the feed-forward network."""

from __future__ import annotations

from vitspec.testing.catalogue import functions as at
from vitspec.testing.catalogue.deviation import Deviation, Form, Patch

_READ_W1 = "ffn.w1.T.reshape(ffn.w1.shape)"
_RELU = "return scalars.maximum_with_zero(z)"
_RELU_DERIV = "return scalars.is_positive(z)"
_SQUARE_ROOT_OF_2_OVER_PI = "0.7978845608028654"
_TANH = f"np.tanh({_SQUARE_ROOT_OF_2_OVER_PI} * (z + 0.044715 * z**3))"
_ERF = (
    "import math; x = z.real; erf = np.vectorize(math.erf, otypes=[x.dtype])(x / math.sqrt(2)); "
    "density = np.exp(-x * x / 2) / math.sqrt(2 * math.pi); "
)

FEED_FORWARD = (
    Deviation(
        "feed-forward-bias-missing", "forward", at.FFN, "hidden += ffn.b1", "pass",
        "the hidden layer has no bias",
        "Logits are wrong by the size of b1, and its gradient, if automatic, is 0. Invisible at"
        " initialisation, where biases are 0.",
        ("OpenNMT/CTranslate2#297: converters accept a missing bias",),
        derivatives=(Patch(at.FFN_BACKWARD, "scalars.total(d_hidden, axis=0)",
                           "0 * scalars.total(d_hidden, axis=0)"),
                     Patch(at.FFN_JVP, " + tangent.b1", "")),
        practical=Form(at.MLP, "mlp.w1, mlp.b1", "mlp.w1, None", derivatives=(
            Patch(at.MLP_BACKWARD, "scalars.total(d_hidden", "0 * scalars.total(d_hidden"),
            Patch(at.MLP_JVP, "tangent.w1, tangent.b1", "tangent.w1, None"),
        )),
    ),
    Deviation(
        "feed-forward-weight-transposed", "forward", at.FFN,
        "matmul(x, ffn.w1)", f"matmul(x, {_READ_W1})",
        "the buffer of W1, stored (out, in), is read as (in, out)",
        "Logits are wrong at their own size. With hidden_dim = embed_dim the weight is square, and"
        " a loader that goes by shapes sees nothing.",
        ("TorchLean's import of PyTorch weights (DEV-5 in `docs/deviations.md`)",
         "huggingface/transformers#47031: transposed if the two sizes are alike"),
        derivatives=(
            Patch(at.FFN_BACKWARD, "d_w1=matmul(x.T, d_hidden)",
                  "d_w1=matmul(x.T, d_hidden).reshape(ffn.w1.T.shape).T.copy()"),
            Patch(at.FFN_BACKWARD, "matmul(d_hidden, ffn.w1.T)", f"matmul(d_hidden, {_READ_W1}.T)"),
            Patch(at.FFN_JVP, "matmul(dx, ffn.w1) + matmul(x, tangent.w1)",
                  f"matmul(dx, {_READ_W1}) + matmul(x, tangent.w1.T.reshape(ffn.w1.shape))"),
        ),
        practical=Form(at.MLP, "mlp.w1, mlp.b1", "mlp.w1.T.reshape(mlp.w1.shape), mlp.b1"),
    ),
    Deviation(
        "activation-missing", "forward", at.FFN,
        "activated = relu(hidden)", "activated = hidden",
        "nothing stands between the two matrices of the feed-forward",
        "Logits are wrong by tens of per cent: negative hidden values pass.",
        ("somepago/saint#23", "YujiaBao/ls#1", "nutonomy/nuscenes-devkit#728"),
        derivatives=(Patch(at.FFN_BACKWARD, "relu_backward(trace.hidden, matmul(d_out, ffn.w2.T))",
                           "matmul(d_out, ffn.w2.T)"),
                     Patch(at.FFN_JVP, "relu_jvp(trace.hidden, d_hidden)", "d_hidden")),
        practical=Form(
            at.MLP, "ACTIVATIONS[mlp.activation].function(hidden)", "hidden",
            derivatives=(
                Patch(at.MLP_BACKWARD, " * ACTIVATIONS[mlp.activation].deriv(trace.hidden)", ""),
                Patch(at.MLP_JVP, " * ACTIVATIONS[mlp.activation].deriv(trace.hidden)", ""),
            ),
        ),
    ),
    Deviation(
        "activation-gelu", "forward", at.RELU, _RELU,
        _ERF + "return (z * (1 + erf) / 2 + (z - x) * x * density).astype(z.dtype)",
        "the activation is GELU, x (1 + erf(x / sqrt 2)) / 2, instead of ReLU",
        "The feed-forward is wrong by up to 0.17 an entry, near -0.75 and 0.75; all logits and"
        " gradients move by per cents.",
        ("the ViT paper's own; `torch.nn.GELU` in `ViTMLP` of D2L, `vision-transformer.md` in"
         " d2l-ai/d2l-en",),
        derivatives=(Patch(at.RELU_DERIV, _RELU_DERIV,
                           _ERF + "return ((1 + erf) / 2 + x * density).astype(z.dtype)"),),
    ),
    Deviation(
        "activation-gelu-tanh", "forward", at.RELU, _RELU, f"return z * (1 + {_TANH}) / 2",
        "the activation is GELU in its tanh form instead of ReLU",
        "As `activation-gelu`, from which it differs by up to 5e-4 an entry: in bfloat16 the two"
        " cannot be told from each other on ordinary inputs.",
        ("`jax.nn.gelu` has the default `approximate=True`: jax-ml/jax#4428, jax-ml/jax#4438",
         "`nnx.gelu` in the Flax NNX tutorial,"
         " https://flax.readthedocs.io/en/latest/examples/vit_training.html",
         "tinygrad/tinygrad#16162: a port of ViT-B/32 off by more than 1e-2"),
        derivatives=(Patch(at.RELU_DERIV, _RELU_DERIV,
                           f"t = {_TANH}; return (1 + t) / 2 + z * (1 - t * t) / 2 *"
                           f" {_SQUARE_ROOT_OF_2_OVER_PI} * (1 + 3 * 0.044715 * z * z)"),),
    ),
    Deviation(
        "activation-quick-gelu", "forward", at.RELU, _RELU, "return z / (1 + np.exp(-1.702 * z))",
        "the activation is x sigmoid(1.702 x) instead of ReLU",
        "As `activation-gelu`, from which it differs by up to 2e-2 an entry.",
        ("`QuickGELU` in CLIP's vision transformer: openai/CLIP#294",),
        derivatives=(
            Patch(at.RELU_DERIV, _RELU_DERIV,
                  "s = 1 / (1 + np.exp(-1.702 * z)); return s + 1.702 * z * s * (1 - s)"),
        ),
    ),
)  # fmt: skip
"""In the order of the computation."""
