"""The name maps of the practical family's JAX peers: data only.

Flax and Keras store projections (in, out), as we do; equimo stores and names them as PyTorch does.
Rules for what a configuration lacks, such as a bias, are passed over.
"""

from __future__ import annotations

from vitspec.testing.adapters.conventions import FLAX, KERAS, PYTORCH, multi_head
from vitspec.testing.adapters.name_maps import Constant, NameMap, Rule
from vitspec.testing.adapters.peers.maps_torch import BEFORE_AFTER

NNX_TUTORIAL = FLAX.name_map(
    "the NNX tutorial's modules", "blocks.{i}.",
    patches="patch_embed", positions=("pos_embed", "same"),
    q="attn.q_proj", k="attn.k_proj", v="attn.v_proj", out="attn.out_proj",
    norm1="ln1", up="ff1", norm2="ln2", down="ff2",
    final_norm="ln", head="head",
)  # fmt: skip
"""`vitspec.testing.adapters.peers.textbooks.nnx_tutorial_module`."""

D2L = FLAX.name_map(
    "D2L's ViT (JAX)", "blks_{i}.",
    patches="patch_embedding.conv", cls_token="cls_token", positions="pos_embed",
    q="attention.W_q", k="attention.W_k", v="attention.W_v", out="attention.W_o",
    norm1="LayerNorm_0", up="mlp.Dense_0", norm2="LayerNorm_1", down="mlp.Dense_1",
    final_norm="head.layers_0", head="head.layers_1",
)  # fmt: skip
"""`vitspec.testing.adapters.peers.textbooks.d2l_module`."""

JIMM = NameMap(
    "jimm's VisionTransformer",
    FLAX.rules(
        "encoder.encoder.layers.",
        patches="encoder.patch_embeddings",
        cls_token="encoder.cls_token", positions="encoder.position_embeddings",
        **multi_head("attn"),
        norm1="norm1", up="mlp.layers.0", norm2="norm2", down="mlp.layers.3",
        final_norm="encoder.ln_post", head="classifier",
    ),
    (Constant("encoder.vision_position_ids", "1 n"),),
)  # fmt: skip
"""`vitspec.testing.adapters.peers.jimm`: blocks stacked, as jimm scans over them."""

BIG_VISION = FLAX.name_map(
    "big_vision's ViT", "Transformer.encoderblock_{i}.",
    patches="embedding", positions="pos_embedding",
    **multi_head("MultiHeadDotProductAttention_0"),
    norm1="LayerNorm_0", up="MlpBlock_0.Dense_0",
    norm2="LayerNorm_1", down="MlpBlock_0.Dense_1",
    final_norm="Transformer.encoder_norm", head="head",
)  # fmt: skip
"""`vitspec.testing.adapters.peers.big_vision`, pooled by the mean ("gap")."""

BONSAI = FLAX.name_map(
    "bonsai's ViTClassificationModel", "layers.{i}.",
    patches="pos_embeddings.projection",
    cls_token="pos_embeddings.cls_token", positions="pos_embeddings.pos_embeddings",
    **multi_head("attention"),
    norm1=BEFORE_AFTER["norm1"], up="linear1", norm2=BEFORE_AFTER["norm2"], down="linear2",
    final_norm="ln", head="classifier",
)  # fmt: skip
"""`vitspec.testing.adapters.peers.bonsai`."""

FLAX_VIT = FLAX.name_map(
    "transformers' FlaxViTForImageClassification", "model.vit.encoder.layer.{i}.",
    patches="model.vit.embeddings.patch_embeddings.projection",
    cls_token="model.vit.embeddings.cls_token",
    positions="model.vit.embeddings.position_embeddings",
    q="attention.attention.query", k="attention.attention.key", v="attention.attention.value",
    out="attention.output.dense",
    norm1=BEFORE_AFTER["norm1"], up="intermediate.dense",
    norm2=BEFORE_AFTER["norm2"], down="output.dense",
    final_norm="model.vit.layernorm", head="model.classifier",
)  # fmt: skip
"""`vitspec.testing.adapters.peers.flax_vit`."""

EQUIMO = NameMap(
    "equimo's VisionTransformer",
    (
        Rule("patch_embed.proj.weight", "patch_embed.kernel"),
        Rule("patch_embed.proj.bias", "patch_embed.bias", "D -> D 1 1"),
        *PYTORCH.rules(
            "blocks.0.blocks.{i}.",
            cls_token=("cls_token", "row-1"), positions=("global_pos_embed.weight", "same"),
            norm1="prenorm", norm2="norm", out="attn.proj", up="mlp.fc1", down="mlp.fc2",
            qkv="attn.qkv.weight", qkv_bias="attn.qkv.bias",
            layer_scale1="ls1.gamma", layer_scale2="ls2.gamma",
            final_norm="norm", head="head",
        ),
    ),
)  # fmt: skip
"""`vitspec.testing.adapters.peers.equimo`."""

KERAS_HUB = KERAS.name_map(
    "keras-hub's ViTImageClassifier", "vit_encoder.encoder_layers.{i}.",
    patches="vit_patching_and_embedding.patch_embedding",
    cls_token="vit_patching_and_embedding.class_token",
    positions=("vit_patching_and_embedding.position_embedding.embeddings", "same"),
    **multi_head("mha", out="attention_output"),
    up="mlp.dense_1", down="mlp.dense_2", norm1="ln_1", norm2="ln_2",
    final_norm="vit_encoder.ln", head="predictions",
)  # fmt: skip
"""`vitspec.testing.adapters.peers.keras_hub`."""
