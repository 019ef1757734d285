"""Another activation than the configuration's, and parameters that are left out."""

from __future__ import annotations

from vitspec.testing.catalogue import functions as at
from vitspec.testing.catalogue.deviation import Deviation, Form, Patch, of_practical
from vitspec.testing.catalogue.practical import (
    LAST,
    LAST_BACKWARD,
    LAST_JVP,
    no_bias_gradient,
)

_ACTIVATED = "activated = times(ACTIVATIONS[mlp.activation].function(hidden), factors)"
_SILU = (
    "from vitspec.layers.gelu import logistic\n"
    "    activated = times(hidden * logistic(hidden), factors)"
)
_ANY = "ACTIVATIONS[mlp.activation]"
_RELU = 'ACTIVATIONS["relu"]'
_SLOPE = 'scalar("1.702", x.dtype)'
_GAIN, _SHIFT = "self.norm_gamma", "self.norm_beta"


def _plain(text: str, *names: str) -> str:
    """The final normalisation without its gain, or its shift."""
    for name in names:
        text = text.replace(name, f"{int(name == _GAIN)} + 0 * {name}")
    return text


def _final_norm(gradients: tuple[str, ...], last: str, jvp: str) -> tuple[Patch, ...]:
    return (
        *(Patch(at.MODEL_BACKWARD, f"d_norm_{one}=", f"d_norm_{one}=0 * ") for one in gradients),
        *((Patch(at.MODEL_BACKWARD, LAST_BACKWARD, last),) if last else ()),
        Patch(at.MODEL_JVP, LAST_JVP, jvp),
    )


ANOTHER_ACTIVATION = (
    Deviation(
        "activation-silu", "forward", at.RELU,
        "return scalars.maximum_with_zero(z)", "return z * (1 + np.tanh(z / 2)) / 2",
        "the activation is x s(x), SiLU, whatever the configuration says",
        "The feed-forward is wrong by up to 0.2 an entry; all logits and gradients move.",
        ("not seen in public; included because a table of activations has it next to GELU",),
        derivatives=(Patch(at.RELU_DERIV, "return scalars.is_positive(z)",
                           "s = (1 + np.tanh(z / 2)) / 2; return s * (1 + z * (1 - s))"),),
        practical=Form(at.MLP, _ACTIVATED, _SILU),
    ),
    of_practical(
        "activation-relu", "forward", at.MLP, f"{_ANY}.function", f"{_RELU}.function",
        "the activation is ReLU, whatever the configuration says",
        "The feed-forward is wrong by up to 0.17 an entry; all logits and gradients move. Invisible"
        " where the configuration says ReLU.",
        ("TorchLean's ViT has ReLU, Hugging Face's GELU",),
        derivatives=tuple(
            Patch(function, f"{_ANY}.deriv", f"{_RELU}.deriv")
            for function in (at.MLP_BACKWARD, at.MLP_JVP)
        ),
    ),
    of_practical(
        "gelu-erf-not-scaled", "forward", at.GELU,
        "x * normal_distribution(x)", "x * scalars.erfc(-x) / 2",
        "the exact GELU has erf(x) instead of erf(x / sqrt(2))",
        "Up to 7e-2 in each activation; all logits are wrong by some per cent. Other activations"
        " are right.",
        ("not seen in public; included because the root is a factor that nothing reminds of",),
        derivatives=(
            Patch(at.GELU_DERIV, "np.exp(x * x / -2) / np.sqrt(2 * scalars.pi(x.dtype))",
                  "np.exp(-x * x) / np.sqrt(scalars.pi(x.dtype))"),
            Patch(at.GELU_DERIV, "return normal_distribution(x)", "return scalars.erfc(-x) / 2"),
        ),
    ),
    of_practical(
        "gelu-tanh-without-cube", "both", at.TANH_AND_SLOPE,
        'scalar("0.044715", x.dtype)', "scalar(0, x.dtype)",
        "the approximation of GELU by tanh has no cube in it",
        "Up to 3e-2 in each activation; all logits are wrong by some per cent. Other activations"
        " are right.",
        ("not seen in public; included because tanh(sqrt(2 / pi) x) is right to the first order",),
        derivatives=(),
    ),
    of_practical(
        "quick-gelu-slope-1-72", "forward", at.QUICK_GELU, _SLOPE, _SLOPE.replace("702", "72"),
        "x s(1.72 x) stands for x s(1.702 x)",
        "Up to 3e-3 in each activation. Other activations are right.",
        ("not seen in public; included because 1.702 is easily mistyped:"
         " harvard-edge/cs249r_book#1154 doubts where it comes from",),
        derivatives=(Patch(at.QUICK_GELU_DERIV, _SLOPE, _SLOPE.replace("702", "72")),),
    ),
    Deviation(
        "activation-after-the-second-matrix", "forward", at.FFN,
        "matmul(activated, ffn.w2) + ffn.b2", "relu(matmul(activated, ffn.w2) + ffn.b2)",
        "the activation stands after the second matrix of the feed-forward too",
        "Logits are wrong at their own size: what a feed-forward adds is hardly negative.",
        ("not seen in public; included because a layer with its activation is easily repeated",),
        practical=Form(at.MLP, "output=affine(activated, mlp.w2, mlp.b2)",
                       f"output={_ANY}.function(affine(activated, mlp.w2, mlp.b2))"),
    ),
)  # fmt: skip

LEFT_OUT = (
    Deviation(
        "head-bias-missing", "forward", at.LINEAR, " + spec.bias", "",
        "the head has no bias",
        "Logits are wrong by the bias, and its gradient, if automatic, is 0. Invisible at"
        " initialisation, where it is 0.",
        ("OpenNMT/CTranslate2#297: converters accept a missing bias",),
        derivatives=(Patch(at.LINEAR_BACKWARD, "d_bias=d_out.copy()", "d_bias=0 * d_out"),
                     Patch(at.LINEAR_JVP, " + tangent.bias", "")),
    ),
    Deviation(
        "feed-forward-second-bias-missing", "forward", at.FFN, " + ffn.b2", "",
        "the feed-forward's output has no bias",
        "Logits are wrong by the size of b2, and its gradient, if automatic, is 0. Invisible at"
        " initialisation, where biases are 0.",
        ("OpenNMT/CTranslate2#297: converters accept a missing bias",),
        derivatives=(Patch(at.FFN_BACKWARD, "d_b2=", "d_b2=0 * "),
                     Patch(at.FFN_JVP, " + tangent.b2", "")),
        practical=Form(at.MLP, "mlp.w2, mlp.b2", "mlp.w2, None", derivatives=(
            Patch(at.MLP_BACKWARD, "d_b2=", "d_b2=0 * "),
            Patch(at.MLP_JVP, "tangent.w2, tangent.b2", "tangent.w2, None"),
        )),
    ),
    *(
        of_practical(
            f"{name}-bias-missing", "forward", at.ATTENTION,
            f"mha.w{c}, mha.b{c})", f"mha.w{c}, None)",
            f"the {plural} alone have no bias",
            "Logits are wrong by the size of the bias, and its gradient, if automatic, is 0."
            " Invisible at initialisation, where it is 0, and in models without it.",
            ("not seen in public; included because each of the three is a projection of its own"
             " where weights are not fused",),
            derivatives=no_bias_gradient(c),
        )
        for name, plural, c in (("query", "queries", "q"), ("value", "values", "v"))
    ),
    of_practical(
        "final-norm-shift-missing", "forward", at.OUTPUTS, LAST, _plain(LAST, _SHIFT),
        "the final normalisation has no shift",
        "Logits are wrong by the size of the final beta, whose gradient, if automatic, is 0."
        " Invisible at initialisation, where it is 0.",
        ("`bias=False` of `torch.nn.LayerNorm`, as in candle's `layer_norm_no_bias`:"
         " huggingface/candle#3993",),
        derivatives=_final_norm(
            ("beta",), "", LAST_JVP.replace("tangent.norm_beta", "0 * tangent.norm_beta")
        ),
    ),
    of_practical(
        "final-norm-gain-and-shift-missing", "forward", at.OUTPUTS,
        LAST, _plain(LAST, _GAIN, _SHIFT),
        "the final normalisation has neither gain nor shift",
        "Logits are wrong by the distance of the final gamma from 1 and of beta from 0; their"
        " gradients, if automatic, are 0. Invisible at initialisation.",
        ("`elementwise_affine=False` of `torch.nn.LayerNorm`, as in the DiT",),
        derivatives=_final_norm(
            ("gamma", "beta"), _plain(LAST_BACKWARD, _GAIN),
            _plain(LAST_JVP, _GAIN)
            .replace("tangent.norm_gamma", "0 * tangent.norm_gamma")
            .replace("tangent.norm_beta", "0 * tangent.norm_beta"),
        ),
    ),
)  # fmt: skip
"""Of the head, the feed-forward, the attention, the final normalisation."""
