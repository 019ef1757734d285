"""The practical family's options, each with the values that small cases have."""

from __future__ import annotations

from typing import Any, get_args

from vitspec.vision_transformer_config import Activation

POOLS = (("cls", True), ("mean", True), ("mean", False), ("cls_mean", True))
"""What is classified, and whether there is a CLS token."""

OPTIONS: tuple[tuple[dict[str, Any], ...], ...] = (
    tuple({"activation": name} for name in get_args(Activation)),
    tuple({"layer_norm_eps": eps} for eps in (1e-12, 1e-6, 1e-5)),
    tuple({"pool": pool, "cls_token": cls_token} for pool, cls_token in POOLS),
    *(({name: True}, {name: False}) for name in ("qkv_bias", "output_bias", "layer_scale")),
)
