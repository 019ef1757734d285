"""The name maps of the practical family's JAX peers: data only.

Flax and Keras store projections (in, out), as we do; equimo stores and names them as PyTorch does.
Rules for what a configuration lacks, such as a bias, are passed over.
"""

from __future__ import annotations

from vitspec.testing.adapters import practical_maps as as_pytorch
from vitspec.testing.adapters.maps import ALL_LAYERS, LAYER, QKV
from vitspec.testing.adapters.name_maps import Constant, NameMap, Rule


def affine(theirs: str, gamma: str, beta: str) -> tuple[Rule, Rule]:
    """The two parameters of a normalisation."""
    return Rule(f"{theirs}.scale", gamma), Rule(f"{theirs}.bias", beta)


def linear(theirs: str, weights: str, bias: str, layout: str = "same") -> tuple[Rule, Rule]:
    """The two parameters of a layer; the layout is the weights'."""
    return Rule(f"{theirs}.kernel", weights, layout), Rule(f"{theirs}.bias", bias)


def patches(theirs: str) -> tuple[Rule, Rule]:
    """The convolution that embeds the patches."""
    return linear(theirs, "patch_embed.kernel", "patch_embed.bias", "kernel-hwio")


def tokens(cls_token: str, positions: str) -> tuple[Rule, Rule]:
    """The CLS token and the positions, with leading axes for the batch."""
    return Rule(cls_token, "cls_token", "row-1-1"), Rule(positions, "pos_enc.pos", "rows-1")


def projections(layer: str, names: tuple[str, str, str, str]) -> tuple[Rule, ...]:
    """Queries, keys, values and the attention's output, each a layer of its own."""
    pairs = zip(names, "qkvo", strict=True)
    return sum((linear(layer + n, f"{LAYER}mha.w{q}", f"{LAYER}mha.b{q}") for n, q in pairs), ())


def multi_head(theirs: str, out: str = "out", ours: str = LAYER) -> tuple[Rule, ...]:
    """Flax's or Keras's attention, with an axis for the heads.

    Args:
        theirs: the name of the module.
        out: the name of its output.
        ours: what precedes our names; for all layers at once, theirs lie on a first axis.
    """
    stack = "L " if ours == ALL_LAYERS else ""
    into, bias, out_of = (
        f"{stack}{left} -> {stack}{right}"
        for left, right in (("D (H d)", "D H d"), ("(H d)", "H d"), ("(H d) D", "H d D"))
    )
    rules = [*linear(f"{theirs}.{out}", f"{ours}mha.wo", f"{ours}mha.bo", out_of)]
    for name in ("query", "key", "value"):
        rules += [
            Rule(f"{theirs}.{name}.kernel", f"{ours}mha.w{name[0]}", into),
            Rule(f"{theirs}.{name}.bias", f"{ours}mha.b{name[0]}", bias),
        ]
    return tuple(rules)


def block(
    layer: str, norms: tuple[str, str], layers: tuple[str, str], ours: str = LAYER
) -> tuple[Rule, ...]:
    """Both normalisations, and the two products of the feed-forward.

    Args:
        layer: what precedes their names.
        norms: names of the normalisations.
        layers: names of the products.
        ours: what precedes our names.
    """
    rules: list[Rule] = []
    for i, (norm, product) in enumerate(zip(norms, layers, strict=True), 1):
        rules += affine(layer + norm, f"{ours}norm{i}_gamma", f"{ours}norm{i}_beta")
        rules += linear(layer + product, f"{ours}ffn.w{i}", f"{ours}ffn.b{i}")
    return tuple(rules)


def end(norm: str, head: str) -> tuple[Rule, ...]:
    """The final normalisation and the classifier."""
    return (
        *affine(norm, "final_norm_gamma", "final_norm_beta"),
        *linear(head, "head.weights", "head.bias", "transpose"),
    )


NNX_TUTORIAL = NameMap(
    "the NNX tutorial's modules",
    (
        *patches("patch_embed"),
        Rule("pos_embed", "pos_enc.pos"),
        *projections("blocks.{i}.attn.", ("q_proj", "k_proj", "v_proj", "out_proj")),
        *block("blocks.{i}.", ("ln1", "ln2"), ("ff1", "ff2")),
        *end("ln", "head"),
    ),
)
"""`vitspec.testing.adapters.peers.textbooks.nnx_tutorial_module`."""

D2L = NameMap(
    "D2L's ViT (JAX)",
    (
        *patches("patch_embedding.conv"),
        *tokens("cls_token", "pos_embed"),
        *projections("blks_{i}.attention.", ("W_q", "W_k", "W_v", "W_o")),
        *block("blks_{i}.", ("LayerNorm_0", "LayerNorm_1"), ("mlp.Dense_0", "mlp.Dense_1")),
        *end("head.layers_0", "head.layers_1"),
    ),
)
"""`vitspec.testing.adapters.peers.textbooks.d2l_module`."""

_JIMM_LAYERS = "encoder.encoder.layers."

JIMM = NameMap(
    "jimm's VisionTransformer",
    (
        *patches("encoder.patch_embeddings"),
        *tokens("encoder.cls_token", "encoder.position_embeddings"),
        *multi_head(_JIMM_LAYERS + "attn", ours=ALL_LAYERS),
        *block(_JIMM_LAYERS, ("norm1", "norm2"), ("mlp.layers.0", "mlp.layers.3"), ALL_LAYERS),
        *end("encoder.ln_post", "classifier"),
    ),
    (Constant("encoder.vision_position_ids", "1 n"),),
)
"""`vitspec.testing.adapters.peers.jimm`: blocks stacked, as jimm scans over them."""

_BIG_VISION_LAYER = "Transformer.encoderblock_{i}."

BIG_VISION = NameMap(
    "big_vision's ViT",
    (
        *patches("embedding"),
        Rule("pos_embedding", "pos_enc.pos", "rows-1"),
        *multi_head(_BIG_VISION_LAYER + "MultiHeadDotProductAttention_0"),
        *block(
            _BIG_VISION_LAYER,
            ("LayerNorm_0", "LayerNorm_1"),
            ("MlpBlock_0.Dense_0", "MlpBlock_0.Dense_1"),
        ),
        *end("Transformer.encoder_norm", "head"),
    ),
)
"""`vitspec.testing.adapters.peers.big_vision`, pooled by the mean ("gap")."""

BONSAI = NameMap(
    "bonsai's ViTClassificationModel",
    (
        *patches("pos_embeddings.projection"),
        *tokens("pos_embeddings.cls_token", "pos_embeddings.pos_embeddings"),
        *multi_head("layers.{i}.attention"),
        *block("layers.{i}.", as_pytorch.BEFORE_AFTER, ("linear1", "linear2")),
        *end("ln", "classifier"),
    ),
)
"""`vitspec.testing.adapters.peers.bonsai`."""

_FLAX_VIT_LAYER = "model.vit.encoder.layer.{i}."

FLAX_VIT = NameMap(
    "transformers' FlaxViTForImageClassification",
    (
        *patches("model.vit.embeddings.patch_embeddings.projection"),
        *tokens("model.vit.embeddings.cls_token", "model.vit.embeddings.position_embeddings"),
        *projections(
            _FLAX_VIT_LAYER + "attention.",
            ("attention.query", "attention.key", "attention.value", "output.dense"),
        ),
        *block(_FLAX_VIT_LAYER, as_pytorch.BEFORE_AFTER, ("intermediate.dense", "output.dense")),
        *end("model.vit.layernorm", "model.classifier"),
    ),
)
"""`vitspec.testing.adapters.peers.flax_vit`."""

_EQUIMO_LAYER = "blocks.0.blocks.{i}."

EQUIMO = NameMap(
    "equimo's VisionTransformer",
    (
        Rule("patch_embed.proj.weight", "patch_embed.kernel"),
        Rule("patch_embed.proj.bias", "patch_embed.bias", "D -> D 1 1"),
        Rule("cls_token", "cls_token", "row-1"),
        Rule("global_pos_embed.weight", "pos_enc.pos"),
        *as_pytorch.block(_EQUIMO_LAYER, ("prenorm", "norm"), ("attn.proj", "mlp.fc1", "mlp.fc2")),
        Rule(_EQUIMO_LAYER + "attn.qkv.weight", QKV, "qkv-out-in"),
        Rule(_EQUIMO_LAYER + "attn.qkv.bias", as_pytorch.QKV_BIAS, "qkv-bias"),
        *(Rule(f"{_EQUIMO_LAYER}ls{n}.gamma", f"{LAYER}layer_scale{n}") for n in (1, 2)),
        *as_pytorch.affine("norm", "final_norm_gamma", "final_norm_beta"),
        *as_pytorch.of_head("head"),
    ),
)
"""`vitspec.testing.adapters.peers.equimo`."""

_KERAS_HUB_LAYER = "vit_encoder.encoder_layers.{i}."

KERAS_HUB = NameMap(
    "keras-hub's ViTImageClassifier",
    (
        *patches("vit_patching_and_embedding.patch_embedding"),
        Rule("vit_patching_and_embedding.class_token", "cls_token", "row-1-1"),
        Rule("vit_patching_and_embedding.position_embedding.embeddings", "pos_enc.pos"),
        *multi_head(_KERAS_HUB_LAYER + "mha", out="attention_output"),
        *linear(_KERAS_HUB_LAYER + "mlp.dense_1", LAYER + "ffn.w1", LAYER + "ffn.b1"),
        *linear(_KERAS_HUB_LAYER + "mlp.dense_2", LAYER + "ffn.w2", LAYER + "ffn.b2"),
        Rule(_KERAS_HUB_LAYER + "ln_1.gamma", LAYER + "norm1_gamma"),
        Rule(_KERAS_HUB_LAYER + "ln_1.beta", LAYER + "norm1_beta"),
        Rule(_KERAS_HUB_LAYER + "ln_2.gamma", LAYER + "norm2_gamma"),
        Rule(_KERAS_HUB_LAYER + "ln_2.beta", LAYER + "norm2_beta"),
        Rule("vit_encoder.ln.gamma", "final_norm_gamma"),
        Rule("vit_encoder.ln.beta", "final_norm_beta"),
        *linear("predictions", "head.weights", "head.bias", "transpose"),
    ),
)
"""`vitspec.testing.adapters.peers.keras_hub`."""
