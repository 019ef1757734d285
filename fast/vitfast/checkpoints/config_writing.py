"""A `VisionTransformerConfig` as config.json, with the keys that transformers 5.23 writes.

What its classes cannot compute is refused before anything is written. Two things that a bare ViT
may have are not in its config.json: to load it in transformers, a model without a pooler needs
`add_pooling_layer=False`, one with a mask token `use_mask_token=True`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vitfast.checkpoints.errors import CheckpointError
from vitfast.checkpoints.labels import Labels
from vitfast.checkpoints.names import ARCHITECTURES, Architecture
from vitspec.vision_transformer_config import DropoutRates, VisionTransformerConfig

HIDDEN_ACT: Mapping[str, str] = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
}
FORMAT_VERSION = "5.23.0"
"""The version of transformers whose format this is."""


def natural_architecture(config: VisionTransformerConfig) -> Architecture:
    """The class that a model of this configuration is."""
    if config.decoder_stride:
        return ARCHITECTURES["ViTForMaskedImageModeling"]
    stem = "Dinov2" if config.layer_scale else "ViT"
    return ARCHITECTURES[stem + ("ForImageClassification" if config.num_classes else "Model")]


def config_problems(config: VisionTransformerConfig, architecture: Architecture) -> list[str]:
    """Why a model of this configuration is none of this class; empty if it is one."""
    c, dinov2 = config, architecture.family.model_type == "dinov2"
    has = {
        "classifier": c.num_classes > 0, "pooler": c.pooler_dim > 0,
        "decoder": c.decoder_stride > 0, "mask token": c.mask_token,
    }  # fmt: skip
    pool = "cls_mean" if dinov2 else "cls"
    rates, kind = c.dropout, architecture.name
    sayable = DropoutRates(embedding=rates.embedding, attention=rates.attention)
    if not dinov2:
        sayable = replace(sayable, projection=rates.embedding, output=rates.embedding)
    rules = {
        f"layer_scale must be {dinov2}": c.layer_scale == dinov2,
        "output_bias must be True": c.output_bias,
        "cls_token must be True": c.cls_token,
        f"pool must be {pool!r}, got {c.pool!r}": c.pool == pool or not c.num_classes,
        "hidden_dim must be a multiple of embed_dim": not dinov2 or c.hidden_dim % c.embed_dim == 0,
        "decoder_stride and mask_token are needed": (c.decoder_stride > 0 and c.mask_token)
        or "decoder" not in architecture.may_have,
        f"the dropout rates must be {sayable}": rates == sayable,
    }
    problems = [f"{kind}: {rule}" for rule, holds in rules.items() if not holds]
    extra = [group for group in has if has[group] and group not in architecture.may_have]
    return problems + [f"{kind} has no {group}" for group in extra]


def write_config(
    config: VisionTransformerConfig, architecture: Architecture, labels: Labels | None, dtype: str
) -> dict[str, Any]:
    """The object to write into config.json.

    Raises:
        CheckpointError: no model of this class computes this; every reason is listed.
    """
    problems = [*config.violations(), *config_problems(config, architecture)]
    count = config.num_classes if "classifier" in architecture.may_have else None
    if labels is not None and count is not None and len(labels.names) != count:
        problems.append(f"labels: expected {count} names, got {len(labels.names)}")
    if problems:
        raise CheckpointError("this configuration cannot be saved", problems)
    if labels is None:
        labels = Labels.default(2 if count is None else count)
    written = _common(config) | {
        "architectures": [architecture.name],
        "model_type": architecture.family.model_type,
        "dtype": dtype,
        "transformers_version": FORMAT_VERSION,
    }
    if labels != Labels.default(2):  # what transformers leaves out, and takes if it is missing
        written["id2label"] = {str(k): name for k, name in enumerate(labels.names)}
        written["label2id"] = dict(labels.ids)
    return written | (_dinov2(config) if config.layer_scale else _vit(config))


def _common(config: VisionTransformerConfig) -> dict[str, Any]:
    c = config
    return {
        "attention_probs_dropout_prob": c.dropout.attention,
        "hidden_act": HIDDEN_ACT[c.activation],
        "hidden_dropout_prob": c.dropout.embedding,
        "hidden_size": c.embed_dim,
        "image_size": c.image_h if c.image_h == c.image_w else [c.image_h, c.image_w],
        "initializer_range": 0.02,
        "layer_norm_eps": float(c.layer_norm_eps),
        "num_attention_heads": c.head_count,
        "num_channels": c.in_channels,
        "num_hidden_layers": c.num_layers,
        "patch_size": c.patch_h if c.patch_h == c.patch_w else [c.patch_h, c.patch_w],
        "qkv_bias": c.qkv_bias,
    }


def _vit(config: VisionTransformerConfig) -> dict[str, Any]:
    return {
        "encoder_stride": config.decoder_stride or 16,
        "intermediate_size": config.hidden_dim,
        "pooler_act": "tanh",
        "pooler_output_size": config.pooler_dim or config.embed_dim,
    }


def _dinov2(config: VisionTransformerConfig) -> dict[str, Any]:
    stages = ["stem", *(f"stage{i + 1}" for i in range(config.num_layers))]
    return {
        "apply_layernorm": True,
        "drop_path_rate": 0.0,
        "layerscale_value": 1.0,
        "mlp_ratio": config.hidden_dim // config.embed_dim,
        "out_features": stages[-1:],
        "out_indices": [config.num_layers],
        "reshape_hidden_states": True,
        "stage_names": stages,
        "use_mask_token": config.mask_token,
        "use_swiglu_ffn": False,
    }
