"""The name maps that ship: data only."""

from __future__ import annotations

from vitspec.testing.adapters.conventions import ALL_LAYERS, FLAX, LAYER, PYTORCH, QKV
from vitspec.testing.adapters.name_maps import EVERYTHING, Constant, NameMap, Rule, every_name

OF_A_LAYER = (
    "mha.wq", "mha.wk", "mha.wv", "mha.wo", "ffn.w1", "ffn.w2", "ffn.b1", "ffn.b2",
    "norm1_gamma", "norm1_beta", "norm2_gamma", "norm2_beta",
)  # fmt: skip
OUTSIDE = (
    "patch_embed.kernel", "patch_embed.bias", "cls_token", "pos_enc.pos", "head.weights",
    "head.bias",
)  # fmt: skip

SAME_NAMES = NameMap(
    "the specification's own names",
    tuple(Rule(name, name) for name in (*OUTSIDE, *(LAYER + name for name in OF_A_LAYER))),
)
"""For functions that take the parameters as the specification names them."""

PRACTICAL_NAMES = NameMap(
    "the specification's own names (practical family)",
    tuple(Rule(name, name) for name in every_name(EVERYTHING)),
)
"""The same for `spec = "vision-transformer"`."""

VITFAST = NameMap(
    "vitfast",
    (
        *(Rule(name, name) for name in OUTSIDE),
        *(Rule(f"encoder.layers.{name}", ALL_LAYERS + name) for name in OF_A_LAYER),
    ),
)
"""The NNX module of `vitfast`: our names and layouts, with the layers stacked on a first axis."""

TORCH_ENCODER = NameMap(
    "torch.nn.TransformerEncoder",
    (
        *PYTORCH.rules("", patches="patch_embed", cls_token="cls_token", positions="pos_embed"),
        Rule(LAYER + "self_attn.in_proj_weight", QKV, "qkv-out-in"),
        Rule(LAYER + "self_attn.out_proj.weight", LAYER + "mha.wo", "transpose"),
        *PYTORCH.rules(
            LAYER, up="linear1", down="linear2", norm1="norm1", norm2="norm2", head="head"
        ),
    ),
    (
        Constant(LAYER + "self_attn.in_proj_bias", "(3 H d)"),
        Constant(LAYER + "self_attn.out_proj.bias", "D"),
    ),
)
"""PyTorch's own modules: `Conv2d`, `TransformerEncoder` and `Linear`, and positions (1, n, D).

`TransformerEncoderLayer` has biases in its attention, which the specification has not. (Without
them, with `bias=False`, it would have none in its feed-forward and normalisations either.)
"""

FLAX_ATTENTION = NameMap(
    "Flax modules",
    (
        *FLAX.rules("", patches="patch_embed", cls_token="cls_token", positions="pos_embed"),
        Rule("layers.{i}.attention.query.kernel", LAYER + "mha.wq", "heads-in"),
        Rule("layers.{i}.attention.key.kernel", LAYER + "mha.wk", "heads-in"),
        Rule("layers.{i}.attention.value.kernel", LAYER + "mha.wv", "heads-in"),
        Rule("layers.{i}.attention.out.kernel", LAYER + "mha.wo", "heads-out"),
        *FLAX.rules(
            "layers.{i}.", up="linear1", down="linear2", norm1="norm1", norm2="norm2", head="head"
        ),
    ),
)
"""Flax's own modules: `Conv`, `MultiHeadAttention` without biases, `LayerNorm` and `Linear`.

NNX and Linen name what is inside their modules alike.
"""

NAME_MAPS = {
    "same": SAME_NAMES,
    "vitfast": VITFAST,
    "torch": TORCH_ENCODER,
    "flax": FLAX_ATTENTION,
    "flax-patches": FLAX_ATTENTION.replacing(
        Rule("patch_embed.kernel", "patch_embed.kernel", "kernel-hwc-in-out"),
        name="Flax modules, patches as rows",
    ),
}
"""Every map that ships, by a short name."""
