"""Name maps of the JAX peers of the practical family: data only."""

from __future__ import annotations

from vitspec.testing.adapters.maps import ALL_LAYERS, LAYER
from vitspec.testing.adapters.name_maps import Constant, NameMap, Rule

HEAD = (Rule("head.kernel", "head.weights", "transpose"), Rule("head.bias", "head.bias"))

NNX_TUTORIAL = NameMap(
    "the NNX tutorial's modules",
    (
        Rule("patch_embed.kernel", "patch_embed.kernel", "kernel-hwio"),
        Rule("patch_embed.bias", "patch_embed.bias"),
        Rule("pos_embed", "pos_enc.pos"),
        *(
            Rule(f"blocks.{{i}}.attn.{name}.{theirs}", f"{LAYER}mha.{ours}{letter}")
            for name, letter in (
                ("q_proj", "q"),
                ("k_proj", "k"),
                ("v_proj", "v"),
                ("out_proj", "o"),
            )
            for theirs, ours in (("kernel", "w"), ("bias", "b"))
        ),
        *(
            Rule(f"blocks.{{i}}.{name}.{theirs}", f"{LAYER}ffn.{ours}{number}")
            for number, name in ((1, "ff1"), (2, "ff2"))
            for theirs, ours in (("kernel", "w"), ("bias", "b"))
        ),
        *(
            Rule(f"blocks.{{i}}.ln{number}.{theirs}", f"{LAYER}norm{number}_{ours}")
            for number in (1, 2)
            for theirs, ours in (("scale", "gamma"), ("bias", "beta"))
        ),
        Rule("ln.scale", "final_norm_gamma"),
        Rule("ln.bias", "final_norm_beta"),
        *HEAD,
    ),
)
"""`vitspec.testing.adapters.peers.textbooks.nnx_tutorial_module`."""

D2L = NameMap(
    "D2L's ViT (JAX)",
    (
        Rule("patch_embedding.conv.kernel", "patch_embed.kernel", "kernel-hwio"),
        Rule("patch_embedding.conv.bias", "patch_embed.bias"),
        Rule("cls_token", "cls_token", "row-1-1"),
        Rule("pos_embed", "pos_enc.pos", "rows-1"),
        *(
            Rule(f"blks_{{i}}.attention.W_{letter}.{theirs}", f"{LAYER}mha.{ours}{letter}")
            for letter in "qkvo"
            for theirs, ours in (("kernel", "w"), ("bias", "b"))
        ),
        *(
            Rule(f"blks_{{i}}.mlp.Dense_{number - 1}.{theirs}", f"{LAYER}ffn.{ours}{number}")
            for number in (1, 2)
            for theirs, ours in (("kernel", "w"), ("bias", "b"))
        ),
        *(
            Rule(f"blks_{{i}}.LayerNorm_{number - 1}.{theirs}", f"{LAYER}norm{number}_{ours}")
            for number in (1, 2)
            for theirs, ours in (("scale", "gamma"), ("bias", "beta"))
        ),
        Rule("head.layers_0.scale", "final_norm_gamma"),
        Rule("head.layers_0.bias", "final_norm_beta"),
        Rule("head.layers_1.kernel", "head.weights", "transpose"),
        Rule("head.layers_1.bias", "head.bias"),
    ),
)
"""`vitspec.testing.adapters.peers.textbooks.d2l_module`."""


def _attention(prefix: str, our_layer: str = LAYER, stack: str = "") -> tuple[Rule, ...]:
    """Flax's `MultiHeadAttention`; `stack` is "L " where all layers lie on a first axis."""

    def layout(ours: str, theirs: str) -> str:
        return f"{stack}{ours} -> {stack}{theirs}"

    heads = [
        Rule(f"{prefix}.{name}.{theirs}", f"{our_layer}mha.{ours}{name[0]}", how)
        for name in ("query", "key", "value")
        for theirs, ours, how in (
            ("kernel", "w", layout("D (H d)", "D H d")),
            ("bias", "b", layout("(H d)", "H d")),
        )
    ]
    out = Rule(f"{prefix}.out.kernel", f"{our_layer}mha.wo", layout("(H d) D", "H d D"))
    return (*heads, out, Rule(f"{prefix}.out.bias", f"{our_layer}mha.bo"))


JIMM = NameMap(
    "jimm's VisionTransformer",
    (
        Rule("encoder.patch_embeddings.kernel", "patch_embed.kernel", "kernel-hwio"),
        Rule("encoder.patch_embeddings.bias", "patch_embed.bias"),
        Rule("encoder.cls_token", "cls_token", "row-1-1"),
        Rule("encoder.position_embeddings", "pos_enc.pos", "rows-1"),
        *_attention("encoder.encoder.layers.attn", ALL_LAYERS, "L "),
        *(
            Rule(f"encoder.encoder.layers.mlp.layers.{index}.{theirs}", f"{ALL_LAYERS}ffn.{ours}")
            for index, number in ((0, 1), (3, 2))
            for theirs, ours in (("kernel", f"w{number}"), ("bias", f"b{number}"))
        ),
        *(
            Rule(
                f"encoder.encoder.layers.norm{number}.{theirs}", f"{ALL_LAYERS}norm{number}_{ours}"
            )
            for number in (1, 2)
            for theirs, ours in (("scale", "gamma"), ("bias", "beta"))
        ),
        Rule("encoder.ln_post.scale", "final_norm_gamma"),
        Rule("encoder.ln_post.bias", "final_norm_beta"),
        Rule("classifier.kernel", "head.weights", "transpose"),
        Rule("classifier.bias", "head.bias"),
    ),
    (Constant("encoder.vision_position_ids", "1 n"),),
)
"""`vitspec.testing.adapters.peers.jimm`: blocks stacked, as jimm scans over them."""

BIG_VISION = NameMap(
    "big_vision's ViT",
    (
        Rule("embedding.kernel", "patch_embed.kernel", "kernel-hwio"),
        Rule("embedding.bias", "patch_embed.bias"),
        Rule("pos_embedding", "pos_enc.pos", "rows-1"),
        *_attention("Transformer.encoderblock_{i}.MultiHeadDotProductAttention_0"),
        *(
            Rule(
                f"Transformer.encoderblock_{{i}}.MlpBlock_0.Dense_{number - 1}.{theirs}",
                f"{LAYER}ffn.{ours}{number}",
            )
            for number in (1, 2)
            for theirs, ours in (("kernel", "w"), ("bias", "b"))
        ),
        *(
            Rule(
                f"Transformer.encoderblock_{{i}}.LayerNorm_{number - 1}.{theirs}",
                f"{LAYER}norm{number}_{ours}",
            )
            for number in (1, 2)
            for theirs, ours in (("scale", "gamma"), ("bias", "beta"))
        ),
        Rule("Transformer.encoder_norm.scale", "final_norm_gamma"),
        Rule("Transformer.encoder_norm.bias", "final_norm_beta"),
        *HEAD,
    ),
)
"""`vitspec.testing.adapters.peers.big_vision`, pooled by the mean ("gap")."""

BONSAI = NameMap(
    "bonsai's ViTClassificationModel",
    (
        Rule("pos_embeddings.projection.kernel", "patch_embed.kernel", "kernel-hwio"),
        Rule("pos_embeddings.projection.bias", "patch_embed.bias"),
        Rule("pos_embeddings.cls_token", "cls_token", "row-1-1"),
        Rule("pos_embeddings.pos_embeddings", "pos_enc.pos", "rows-1"),
        *_attention("layers.{i}.attention"),
        *(
            Rule(f"layers.{{i}}.linear{number}.{theirs}", f"{LAYER}ffn.{ours}{number}")
            for number in (1, 2)
            for theirs, ours in (("kernel", "w"), ("bias", "b"))
        ),
        *(
            Rule(f"layers.{{i}}.layernorm_{name}.{theirs}", f"{LAYER}norm{number}_{ours}")
            for number, name in ((1, "before"), (2, "after"))
            for theirs, ours in (("scale", "gamma"), ("bias", "beta"))
        ),
        Rule("ln.scale", "final_norm_gamma"),
        Rule("ln.bias", "final_norm_beta"),
        Rule("classifier.kernel", "head.weights", "transpose"),
        Rule("classifier.bias", "head.bias"),
    ),
)
"""`vitspec.testing.adapters.peers.bonsai`."""

_OF_VIT = "model.vit.encoder.layer.{i}."

FLAX_VIT = NameMap(
    "transformers' FlaxViTForImageClassification",
    (
        Rule(
            "model.vit.embeddings.patch_embeddings.projection.kernel",
            "patch_embed.kernel",
            "kernel-hwio",
        ),
        Rule("model.vit.embeddings.patch_embeddings.projection.bias", "patch_embed.bias"),
        Rule("model.vit.embeddings.cls_token", "cls_token", "row-1-1"),
        Rule("model.vit.embeddings.position_embeddings", "pos_enc.pos", "rows-1"),
        *(
            Rule(f"{_OF_VIT}{name}.{theirs}", f"{LAYER}{ours}")
            for name, weight, bias in (
                ("attention.attention.query", "mha.wq", "mha.bq"),
                ("attention.attention.key", "mha.wk", "mha.bk"),
                ("attention.attention.value", "mha.wv", "mha.bv"),
                ("attention.output.dense", "mha.wo", "mha.bo"),
                ("intermediate.dense", "ffn.w1", "ffn.b1"),
                ("output.dense", "ffn.w2", "ffn.b2"),
            )
            for theirs, ours in (("kernel", weight), ("bias", bias))
        ),
        *(
            Rule(f"{_OF_VIT}layernorm_{name}.{theirs}", f"{LAYER}norm{number}_{ours}")
            for number, name in ((1, "before"), (2, "after"))
            for theirs, ours in (("scale", "gamma"), ("bias", "beta"))
        ),
        Rule("model.vit.layernorm.scale", "final_norm_gamma"),
        Rule("model.vit.layernorm.bias", "final_norm_beta"),
        Rule("model.classifier.kernel", "head.weights", "transpose"),
        Rule("model.classifier.bias", "head.bias"),
    ),
)
"""`vitspec.testing.adapters.peers.flax_vit`."""

_OF_BLOCK = "blocks.0.blocks.{i}."

EQUIMO = NameMap(
    "equimo's VisionTransformer",
    (
        Rule("patch_embed.proj.weight", "patch_embed.kernel"),
        Rule("patch_embed.proj.bias", "patch_embed.bias", "D -> D 1 1"),
        Rule("cls_token", "cls_token", "row-1"),
        Rule("global_pos_embed.weight", "pos_enc.pos"),
        Rule(f"{_OF_BLOCK}attn.qkv.weight", tuple(f"{LAYER}mha.w{x}" for x in "qkv"), "qkv-out-in"),
        Rule(f"{_OF_BLOCK}attn.qkv.bias", tuple(f"{LAYER}mha.b{x}" for x in "qkv"), "qkv-bias"),
        Rule(f"{_OF_BLOCK}attn.proj.weight", f"{LAYER}mha.wo", "transpose"),
        Rule(f"{_OF_BLOCK}attn.proj.bias", f"{LAYER}mha.bo"),
        *(
            Rule(f"{_OF_BLOCK}mlp.fc{number}.weight", f"{LAYER}ffn.w{number}", "transpose")
            for number in (1, 2)
        ),
        *(Rule(f"{_OF_BLOCK}mlp.fc{number}.bias", f"{LAYER}ffn.b{number}") for number in (1, 2)),
        *(
            Rule(f"{_OF_BLOCK}{name}.{theirs}", f"{LAYER}norm{number}_{ours}")
            for number, name in ((1, "prenorm"), (2, "norm"))
            for theirs, ours in (("weight", "gamma"), ("bias", "beta"))
        ),
        *(Rule(f"{_OF_BLOCK}ls{number}.gamma", f"{LAYER}layer_scale{number}") for number in (1, 2)),
        Rule("norm.weight", "final_norm_gamma"),
        Rule("norm.bias", "final_norm_beta"),
        Rule("head.weight", "head.weights"),
        Rule("head.bias", "head.bias"),
    ),
)
"""`vitspec.testing.adapters.peers.equimo`."""

_OF_ENCODER = "vit_encoder.encoder_layers.{i}."

KERAS_HUB = NameMap(
    "keras-hub's ViTImageClassifier",
    (
        Rule(
            "vit_patching_and_embedding.patch_embedding.kernel", "patch_embed.kernel", "kernel-hwio"
        ),
        Rule("vit_patching_and_embedding.patch_embedding.bias", "patch_embed.bias"),
        Rule("vit_patching_and_embedding.class_token", "cls_token", "row-1-1"),
        Rule("vit_patching_and_embedding.position_embedding.embeddings", "pos_enc.pos"),
        *(
            Rule(f"{_OF_ENCODER}mha.{name}.{theirs}", f"{LAYER}mha.{ours}{name[0]}", layout)
            for name in ("query", "key", "value")
            for theirs, ours, layout in (("kernel", "w", "heads-in"), ("bias", "b", "heads-bias"))
        ),
        Rule(f"{_OF_ENCODER}mha.attention_output.kernel", f"{LAYER}mha.wo", "heads-out"),
        Rule(f"{_OF_ENCODER}mha.attention_output.bias", f"{LAYER}mha.bo"),
        *(
            Rule(f"{_OF_ENCODER}mlp.dense_{number}.{theirs}", f"{LAYER}ffn.{ours}{number}")
            for number in (1, 2)
            for theirs, ours in (("kernel", "w"), ("bias", "b"))
        ),
        *(
            Rule(f"{_OF_ENCODER}ln_{number}.{name}", f"{LAYER}norm{number}_{name}")
            for number in (1, 2)
            for name in ("gamma", "beta")
        ),
        Rule("vit_encoder.ln.gamma", "final_norm_gamma"),
        Rule("vit_encoder.ln.beta", "final_norm_beta"),
        Rule("predictions.kernel", "head.weights", "transpose"),
        Rule("predictions.bias", "head.bias"),
    ),
)
"""`vitspec.testing.adapters.peers.keras_hub`."""
