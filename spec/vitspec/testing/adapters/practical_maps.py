"""The name maps of the practical family's peers in PyTorch: data only.

Rules for what a configuration lacks, such as a bias, are passed over. Projections are stored (in,
out) by us and (out, in) by PyTorch.
"""

from __future__ import annotations

from vitspec.testing.adapters.maps import LAYER, QKV
from vitspec.testing.adapters.name_maps import Constant, NameMap, Rule

QKV_BIAS = tuple(f"{LAYER}mha.b{letter}" for letter in "qkv")


def affine(theirs: str, gamma: str, beta: str) -> tuple[Rule, Rule]:
    """The two parameters of a normalisation."""
    return Rule(f"{theirs}.weight", gamma), Rule(f"{theirs}.bias", beta)


def linear(theirs: str, weights: str, bias: str, layout: str = "transpose") -> tuple[Rule, Rule]:
    """The two parameters of a layer; the layout is the weights'."""
    return Rule(f"{theirs}.weight", weights, layout), Rule(f"{theirs}.bias", bias)


def block(layer: str, norms: tuple[str, str], layers: tuple[str, str, str]) -> tuple[Rule, ...]:
    """Both normalisations, the attention's output, and the feed-forward.

    Args:
        layer: what precedes the names.
        norms: names of the normalisations.
        layers: names of the attention's output and the two products of the feed-forward.
    """
    rules: list[Rule] = []
    for i, norm in enumerate(norms, 1):
        rules += affine(layer + norm, f"{LAYER}norm{i}_gamma", f"{LAYER}norm{i}_beta")
    ours = (("mha.wo", "mha.bo"), ("ffn.w1", "ffn.b1"), ("ffn.w2", "ffn.b2"))
    for theirs, (weights, bias) in zip(layers, ours, strict=True):
        rules += linear(layer + theirs, LAYER + weights, LAYER + bias)
    return tuple(rules)


def hugging_face(
    name: str, prefix: str, layer: str, norms: tuple[str, str], head: tuple[Rule, ...]
) -> NameMap:
    """A model of transformers 5: embeddings, blocks with separate q, k and v, a final norm."""
    rules: list[Rule] = [
        Rule(f"{prefix}.embeddings.cls_token", "cls_token", "row-1-1"),
        Rule(f"{prefix}.embeddings.position_embeddings", "pos_enc.pos", "rows-1"),
        *linear(
            f"{prefix}.embeddings.patch_embeddings.projection",
            "patch_embed.kernel", "patch_embed.bias", "same",
        ),
        *affine(f"{prefix}.layernorm", "final_norm_gamma", "final_norm_beta"),
        *block(f"{prefix}.{layer}.{{i}}.", norms, ("attention.o_proj", "mlp.fc1", "mlp.fc2")),
    ]  # fmt: skip
    for q in "qkv":
        theirs = f"{prefix}.{layer}.{{i}}.attention.{q}_proj"
        rules += linear(theirs, f"{LAYER}mha.w{q}", f"{LAYER}mha.b{q}")
    return NameMap(name, (*rules, *head))


def of_head(theirs: str) -> tuple[Rule, ...]:
    """A classifier that is a linear layer."""
    return linear(theirs, "head.weights", "head.bias", "same")


BEFORE_AFTER = ("layernorm_before", "layernorm_after")

TRANSFORMERS = hugging_face(
    "transformers ViT", "vit", "layers", BEFORE_AFTER, of_head("classifier")
)
"""`ViTForImageClassification`, and `ViTModel` as `vit` beside a linear `classifier`."""

_DECODER = linear("decoder.0", "head.weights", "head.bias", "K D -> K D 1 1")
_MIM = hugging_face(
    "transformers ViTForMaskedImageModeling", "vit", "layers", BEFORE_AFTER, _DECODER
)
TRANSFORMERS_MIM = NameMap(_MIM.name, _MIM.rules, (Constant("vit.embeddings.mask_token", "1 1 D"),))
"""The decoder is a 1 x 1 convolution; without masked patches no mask token is used."""

_DINOV2 = hugging_face(
    "transformers Dinov2ForImageClassification", "dinov2", "encoder.layer", ("norm1", "norm2"),
    of_head("classifier"),
)  # fmt: skip
TRANSFORMERS_DINOV2 = NameMap(
    _DINOV2.name,
    (
        *_DINOV2.rules,
        *(
            Rule(f"dinov2.encoder.layer.{{i}}.layer_scale{n}.lambda1", f"{LAYER}layer_scale{n}")
            for n in (1, 2)
        ),
    ),
)
"""As ViT, with layer scale."""

TIMM = NameMap(
    "timm VisionTransformer",
    (
        Rule("cls_token", "cls_token", "row-1-1"),
        Rule("pos_embed", "pos_enc.pos", "rows-1"),
        *linear("patch_embed.proj", "patch_embed.kernel", "patch_embed.bias", "same"),
        *affine("norm", "final_norm_gamma", "final_norm_beta"),
        *block("blocks.{i}.", ("norm1", "norm2"), ("attn.proj", "mlp.fc1", "mlp.fc2")),
        Rule("blocks.{i}.attn.qkv.weight", QKV, "qkv-out-in"),
        Rule("blocks.{i}.attn.qkv.bias", QKV_BIAS, "qkv-bias"),
        *(Rule(f"blocks.{{i}}.ls{n}.gamma", f"{LAYER}layer_scale{n}") for n in (1, 2)),
        *of_head("head"),
    ),
)
"""q, k and v are one product; layer scale is `ls1` and `ls2`."""

_TORCHVISION_LAYER = "encoder.layers.encoder_layer_{i}."

TORCHVISION = NameMap(
    "torchvision VisionTransformer",
    (
        Rule("class_token", "cls_token", "row-1-1"),
        Rule("encoder.pos_embedding", "pos_enc.pos", "rows-1"),
        *linear("conv_proj", "patch_embed.kernel", "patch_embed.bias", "same"),
        *affine("encoder.ln", "final_norm_gamma", "final_norm_beta"),
        *block(_TORCHVISION_LAYER, ("ln_1", "ln_2"), ("self_attention.out_proj", "mlp.0", "mlp.3")),
        Rule(_TORCHVISION_LAYER + "self_attention.in_proj_weight", QKV, "qkv-out-in"),
        Rule(_TORCHVISION_LAYER + "self_attention.in_proj_bias", QKV_BIAS, "qkv-bias"),
        *of_head("heads.head"),
    ),
)
"""Attention is `torch.nn.MultiheadAttention`."""

_VIT_PYTORCH_LAYER = "transformer.layers.{i}."

VIT_PYTORCH_PLAIN = NameMap(
    "vit-pytorch ViT without its norms of patches",
    (
        Rule("cls_token", "cls_token", "row-1"),
        Rule("pos_embedding", "pos_enc.pos"),
        *linear(
            "to_patch_embedding.2", "patch_embed.kernel", "patch_embed.bias", "kernel-hwc-out-in"
        ),
        *affine("transformer.norm", "final_norm_gamma", "final_norm_beta"),
        *block(_VIT_PYTORCH_LAYER, ("0.norm", "1.net.0"), ("0.to_out.0", "1.net.1", "1.net.4")),
        Rule(_VIT_PYTORCH_LAYER + "0.to_qkv.weight", QKV, "qkv-out-in"),
        *of_head("mlp_head"),
    ),
)
"""Patches are rows of pixels, channels last, and go through a linear layer."""

VIT_PYTORCH = NameMap(
    "vit-pytorch ViT",
    VIT_PYTORCH_PLAIN.rules,
    (
        Constant("to_patch_embedding.1.weight", "(ph pw C)", 1.0),
        Constant("to_patch_embedding.1.bias", "(ph pw C)"),
        Constant("to_patch_embedding.3.weight", "D", 1.0),
        Constant("to_patch_embedding.3.bias", "D"),
    ),
)
"""A normalisation before and one after the patches' product, which the specification lacks."""

TORCH_PRE_NORM = NameMap(
    "torch.nn.TransformerEncoder, norm_first",
    (
        Rule("cls_token", "cls_token", "row-1-1"),
        Rule("pos_embed", "pos_enc.pos", "rows-1"),
        *linear("patch_embed", "patch_embed.kernel", "patch_embed.bias", "same"),
        *affine("encoder.norm", "final_norm_gamma", "final_norm_beta"),
        *block(LAYER, ("norm1", "norm2"), ("self_attn.out_proj", "linear1", "linear2")),
        Rule(LAYER + "self_attn.in_proj_weight", QKV, "qkv-out-in"),
        Rule(LAYER + "self_attn.in_proj_bias", QKV_BIAS, "qkv-bias"),
        *of_head("head"),
    ),
)
"""PyTorch's own modules."""

PRACTICAL_MAPS = {
    "transformers": TRANSFORMERS,
    "transformers-mim": TRANSFORMERS_MIM,
    "transformers-dinov2": TRANSFORMERS_DINOV2,
    "timm": TIMM,
    "torchvision": TORCHVISION,
    "vit-pytorch": VIT_PYTORCH,
    "vit-pytorch-plain": VIT_PYTORCH_PLAIN,
    "torch-pre-norm": TORCH_PRE_NORM,
}
"""Every map here, by a short name."""
