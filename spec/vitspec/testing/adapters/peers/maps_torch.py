"""The name maps of the practical family's peers in PyTorch: data only.

Rules for what a configuration lacks, such as a bias, are passed over. Projections are stored (in,
out) by us and (out, in) by PyTorch.
"""

from __future__ import annotations

from dataclasses import replace

from vitspec.testing.adapters.conventions import LAYER, PYTORCH
from vitspec.testing.adapters.name_maps import Constant, NameMap

BEFORE_AFTER = {"norm1": "layernorm_before", "norm2": "layernorm_after"}


def hugging_face(
    name: str, prefix: str, layer: str, norms: dict[str, str], **more: str | tuple[str, str]
) -> NameMap:
    """A model of transformers 5: embeddings, blocks with separate q, k and v, a final norm."""
    embeddings = f"{prefix}.embeddings."
    return PYTORCH.name_map(
        name, f"{prefix}.{layer}.{{i}}.",
        cls_token=embeddings + "cls_token", positions=embeddings + "position_embeddings",
        patches=embeddings + "patch_embeddings.projection", final_norm=f"{prefix}.layernorm",
        **norms, out="attention.o_proj", up="mlp.fc1", down="mlp.fc2",
        q="attention.q_proj", k="attention.k_proj", v="attention.v_proj",
        **more,
    )  # fmt: skip


TRANSFORMERS = hugging_face("transformers ViT", "vit", "layers", BEFORE_AFTER, head="classifier")
"""`ViTForImageClassification`, and `ViTModel` as `vit` beside a linear `classifier`."""

_MIM = hugging_face(
    "transformers ViTForMaskedImageModeling", "vit", "layers", BEFORE_AFTER,
    head=("decoder.0", "K D -> K D 1 1"),
)  # fmt: skip
TRANSFORMERS_MIM = replace(_MIM, constants=(Constant("vit.embeddings.mask_token", "1 1 D"),))
"""The decoder is a 1 x 1 convolution; without masked patches no mask token is used."""

TRANSFORMERS_DINOV2 = hugging_face(
    "transformers Dinov2ForImageClassification", "dinov2", "encoder.layer",
    {"norm1": "norm1", "norm2": "norm2"},
    head="classifier",
    layer_scale1="layer_scale1.lambda1", layer_scale2="layer_scale2.lambda1",
)  # fmt: skip
"""As ViT, with layer scale."""

TIMM = PYTORCH.name_map(
    "timm VisionTransformer", "blocks.{i}.",
    cls_token="cls_token", positions="pos_embed", patches="patch_embed.proj", final_norm="norm",
    norm1="norm1", norm2="norm2", out="attn.proj", up="mlp.fc1", down="mlp.fc2",
    qkv="attn.qkv.weight", qkv_bias="attn.qkv.bias",
    layer_scale1="ls1.gamma", layer_scale2="ls2.gamma",
    head="head",
)  # fmt: skip
"""q, k and v are one product; layer scale is `ls1` and `ls2`."""

TORCHVISION = PYTORCH.name_map(
    "torchvision VisionTransformer", "encoder.layers.encoder_layer_{i}.",
    cls_token="class_token", positions="encoder.pos_embedding",
    patches="conv_proj", final_norm="encoder.ln",
    norm1="ln_1", norm2="ln_2", out="self_attention.out_proj", up="mlp.0", down="mlp.3",
    qkv="self_attention.in_proj_weight", qkv_bias="self_attention.in_proj_bias",
    head="heads.head",
)  # fmt: skip
"""Attention is `torch.nn.MultiheadAttention`."""

VIT_PYTORCH_PLAIN = PYTORCH.name_map(
    "vit-pytorch ViT without its norms of patches", "transformer.layers.{i}.",
    cls_token=("cls_token", "row-1"), positions=("pos_embedding", "same"),
    patches=("to_patch_embedding.2", "kernel-hwc-out-in"), final_norm="transformer.norm",
    norm1="0.norm", norm2="1.net.0", out="0.to_out.0", up="1.net.1", down="1.net.4",
    qkv="0.to_qkv.weight",
    head="mlp_head",
)  # fmt: skip
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

TORCH_PRE_NORM = PYTORCH.name_map(
    "torch.nn.TransformerEncoder, norm_first", LAYER,
    cls_token="cls_token", positions="pos_embed",
    patches="patch_embed", final_norm="encoder.norm",
    norm1="norm1", norm2="norm2", out="self_attn.out_proj", up="linear1", down="linear2",
    qkv="self_attn.in_proj_weight", qkv_bias="self_attn.in_proj_bias",
    head="head",
)  # fmt: skip
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
