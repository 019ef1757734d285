"""config.json as a `VisionTransformerConfig`.

Missing keys have the defaults of transformers. What decides a model's function and cannot be said
in our configuration is refused by name, with what to do; keys that decide nothing are not read.
Some of a model's architecture is not in the file but in its tensors: whether a bare ViT has a
pooler and a mask token.

Source: transformers 5.23, `configuration_vit.py` and `configuration_dinov2.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitfast.checkpoints.errors import CheckpointError, quoted
from vitfast.checkpoints.fields import Fields
from vitfast.checkpoints.labels import Labels, read_labels
from vitfast.checkpoints.names import ARCHITECTURES, FAMILIES, GROUPS, Architecture, Family
from vitspec.errors import NotWellFormed
from vitspec.vision_transformer_config import Activation, DropoutRates, VisionTransformerConfig

ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
}
"""Our activations by the names of `hidden_act`.

The three forms of gelu_tanh differ in rounding, and in that `gelu_fast` has sqrt(2 / pi) to ten
digits: 4e-11 of the argument of tanh.
"""

REFUSED_TYPES: Mapping[str, str] = {
    "deit": "it has a distillation token; a DeiT without one has model_type vit",
    "dinov2_with_registers": "it has register tokens; use the same DINOv2 without registers",
    "dinov3_vit": "it has rotary positions and register tokens; use a DINOv2",
    "vit_mae": "its positions are fixed sines; fine-tuned ones are published as model_type vit",
    "vit_msn": "convert it with transformers: its ViTMSNModel has the tensors of a ViTModel",
    "beit": "it has relative position biases; use a ViT or a DINOv2",
}
"""Relatives that are known, and why they are refused."""


@dataclass(frozen=True)
class Description:
    """What config.json says: the class, our configuration, and the labels, if it has any."""

    architecture: Architecture
    config: VisionTransformerConfig
    labels: Labels | None


def read_config(given: Mapping[str, Any], stored: Mapping[str, object], where: str) -> Description:
    """The model that config.json describes.

    Args:
        given: the object in the file.
        stored: the tensors by name; only the names are read.
        where: begins the message of an error.

    Raises:
        CheckpointError: there is no such model; everything that is wrong is listed.
    """
    architecture = read_architecture(given, stored, where)
    fields = Fields(given)
    labels = read_labels(given, fields.problems)
    sizes = _sizes(fields)
    if architecture.family.model_type == "vit":
        own = _vit(fields, sizes, architecture, stored)
    else:
        own = _dinov2(fields, sizes, architecture)
    _refuse_what_is_not_specified(fields, sizes)
    if "classifier" in architecture.may_have:
        sizes["num_classes"] = _class_count(fields, labels)
    try:
        config = VisionTransformerConfig(**sizes, **own)
        fields.problems += config.violations()
    except NotWellFormed as error:
        fields.problems += error.violations
    if fields.problems:
        raise CheckpointError(where, fields.problems)
    return Description(architecture, config, labels)


def read_architecture(
    given: Mapping[str, Any], stored: Mapping[str, object], where: str
) -> Architecture:
    """The class of the model: as `architectures` names it, else as its tensors show."""
    family = _family(given, where)
    names = given.get("architectures")
    if names is None or names == []:
        for one in reversed([*ARCHITECTURES.values()]):
            heads = one.may_have & {"classifier", "decoder"}
            if one.family is family and all(holds(family, head, stored) for head in heads):
                return one
    known = [name for name, one in ARCHITECTURES.items() if one.family is family]
    if not (isinstance(names, list) and len(names) == 1 and names[0] in known):
        found = quoted(names[0]) if isinstance(names, list) and len(names) == 1 else quoted(names)
        raise CheckpointError(
            where,
            [f"architectures: expected one of {', '.join(known)}, got {found}; save the model as"
             " one of these with transformers"],
        )  # fmt: skip
    return ARCHITECTURES[names[0]]


def holds(family: Family, group: str, stored: Mapping[str, object]) -> bool:
    """Whether any tensor of this group (see `GROUPS`) is stored."""
    return any(family.holds(name, stored) for name in GROUPS[group])


def _family(given: Mapping[str, Any], where: str) -> Family:
    model_type = given.get("model_type")
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    reason = REFUSED_TYPES.get(model_type, "") if isinstance(model_type, str) else ""
    raise CheckpointError(
        where,
        [f"model_type: expected {' or '.join(FAMILIES)}, got {quoted(model_type)}"
         + (f": {reason}" if reason else "")],
    )  # fmt: skip


# ---- the fields --------------------------------------------------------------------------------


def _sizes(fields: Fields) -> dict[str, Any]:
    """What both families have, with the same defaults but for two, which are the families' own."""
    dinov2 = fields.given["model_type"] == "dinov2"
    image_h, image_w = fields.pair("image_size", 224)
    patch_h, patch_w = fields.pair("patch_size", 14 if dinov2 else 16)
    for key, default in (("initializer_range", 0.02), ("layerscale_value", 1.0)):
        fields.number(key, default)  # decides fresh weights only; of the right type nonetheless
    return {
        "image_h": image_h,
        "image_w": image_w,
        "patch_h": patch_h,
        "patch_w": patch_w,
        "in_channels": fields.natural("num_channels", 3),
        "embed_dim": fields.natural("hidden_size", 768),
        "head_count": fields.natural("num_attention_heads", 12),
        "num_layers": fields.natural("num_hidden_layers", 12),
        "num_classes": 0,
        "activation": _activation(fields),
        "layer_norm_eps": fields.number("layer_norm_eps", 1e-6 if dinov2 else 1e-12),
        "qkv_bias": fields.boolean("qkv_bias", True),
    }


def _activation(fields: Fields) -> Activation:
    name = fields.text("hidden_act", "gelu")
    if name not in ACTIVATIONS:
        fields.problems.append(
            f"hidden_act: expected one of {', '.join(ACTIVATIONS)}, got {quoted(name)}"
        )
    return ACTIVATIONS.get(name, "gelu")


def _vit(
    fields: Fields, sizes: dict[str, Any], architecture: Architecture, stored: Mapping[str, object]
) -> dict[str, Any]:
    hidden = fields.number("hidden_dropout_prob", 0.0)
    attention = fields.number("attention_probs_dropout_prob", 0.0)
    pooler_dim = fields.natural_or_null("pooler_output_size", sizes["embed_dim"])
    pooler_act, stride = fields.text("pooler_act", "tanh"), fields.natural("encoder_stride", 16)
    groups = {g for g in architecture.may_have if holds(architecture.family, g, stored)}
    decodes = "decoder" in architecture.may_have
    if "pooler" in groups and pooler_act != "tanh":
        fields.problems.append(
            f"pooler_act: expected 'tanh', got {quoted(pooler_act)}; save the model with"
            " add_pooling_layer=False"
        )
    return {
        "hidden_dim": fields.natural("intermediate_size", 3072),
        "mask_token": decodes or "mask token" in groups,
        "pooler_dim": pooler_dim if "pooler" in groups else 0,
        "decoder_stride": stride if decodes else 0,
        "dropout": DropoutRates(
            embedding=hidden, attention=attention, projection=hidden, output=hidden
        ),
    }


def _dinov2(fields: Fields, sizes: dict[str, Any], architecture: Architecture) -> dict[str, Any]:
    hidden = fields.number("hidden_dropout_prob", 0.0)
    attention = fields.number("attention_probs_dropout_prob", 0.0)
    ratio = fields.number("mlp_ratio", 4.0)
    hidden_dim = sizes["embed_dim"] * ratio
    if not 0 <= ratio < 2**20:
        fields.problems.append(f"mlp_ratio: expected a positive number, got {ratio:g}")
        hidden_dim = 1
    if fields.boolean("use_swiglu_ffn", False):
        fields.problems.append(
            "use_swiglu_ffn: true is a gated feed-forward (DINOv2 giant), which is not specified"
            " here; use the small, base or large model"
        )
    if fields.number("drop_path_rate", 0.0):
        fields.problems.append(
            "drop_path_rate: DINOv2 drops every block alike, our stochastic depth grows with depth;"
            " set it to 0 in config.json (it only matters in training), or pass config="
        )
    return {
        "hidden_dim": int(hidden_dim),
        "layer_scale": True,
        "mask_token": fields.boolean("use_mask_token", True),
        "pool": "cls_mean" if "classifier" in architecture.may_have else "cls",
        "dropout": DropoutRates(embedding=hidden, attention=attention),
    }


def _refuse_what_is_not_specified(fields: Fields, sizes: Mapping[str, Any]) -> None:
    given, heads = fields.given, sizes["head_count"]
    head_dim = given.get("head_dim")
    if head_dim is not None and heads and head_dim != sizes["embed_dim"] // heads:
        fields.problems.append(
            f"head_dim: expected hidden_size / num_attention_heads, got {quoted(head_dim)}"
        )
    for key, what in {
        "num_register_tokens": "register tokens are not specified here; use a model without them",
        "quantization_config": "quantised weights are not read; save the model in a float type",
        "pruned_heads": "pruned heads change the shapes; save the model before pruning",
    }.items():
        if given.get(key):
            fields.problems.append(f"{key}: {what}")


def _class_count(fields: Fields, labels: Labels | None) -> int:
    """len(id2label); without it `num_labels`, by default 2, as in transformers."""
    if fields.given.get("num_labels") is None:
        return 2 if labels is None else len(labels.names)
    count = fields.natural("num_labels", 2)
    if labels is not None and len(labels.names) != count:
        fields.problems.append(
            f"num_labels: {count}, but id2label has {len(labels.names)} classes; remove one of them"
        )
    return count
