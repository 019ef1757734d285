"""The argument of `--config` that is a configuration of the practical family.

It is the name of a preset (`vitspec.presets`), and perhaps changes to it:

    hf-vit-base,num_layers=2,layer_norm_eps=1e-6,qkv_bias=false
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from vitspec.errors import NotWellFormed
from vitspec.presets import PRESETS, REFUSED, preset
from vitspec.vision_transformer_config import VisionTransformerConfig

_TYPES = {one.name: str(one.type) for one in fields(VisionTransformerConfig)}
_KNOWN = [name for name in _TYPES if name != "dropout"]
_SWITCHES = {"true": True, "false": False}


def is_practical(text: str) -> bool:
    """Whether an argument begins with the name of a preset."""
    return text.split(",")[0].strip() in (*PRESETS, *REFUSED)


def parse_practical_config(text: str) -> VisionTransformerConfig:
    """The configuration that an argument describes; it is well-formed and has a classifier.

    Raises:
        NotWellFormed: it breaks a rule; every broken rule is listed.
        ValueError: the text cannot be read as one, or the preset is refused.

    >>> parse_practical_config("d2l,num_layers=1,qkv_bias=true").qkv_bias
    True
    """
    name, *changes = [item.strip() for item in text.split(",")]
    config = changed(preset(name), changes)
    config.check_well_formed()
    if not config.num_classes:
        raise NotWellFormed(
            text, ["num_classes: the check is of logits and needs a classifier: add num_classes=10"]
        )
    return config


def changed(config: VisionTransformerConfig, changes: Sequence[str]) -> VisionTransformerConfig:
    """The configuration with these changes, each "field=value"; it need not be well-formed.

    Raises:
        NotWellFormed: a value is of another type than its field.
        ValueError: a change cannot be read, or its field is unknown or given twice.
    """
    given: dict[str, Any] = {}
    for item in changes:
        key, equals, value = (part.strip() for part in item.partition("="))
        if not (key and equals and value):
            raise ValueError(
                f"expected PRESET,key=value,key=value; got {item!r} in {','.join(changes)!r}"
            )
        if key not in _KNOWN:
            hint = difflib.get_close_matches(key, _KNOWN, n=1)
            near = f" (did you mean {hint[0]}?)" if hint else ""
            raise ValueError(f"unknown field {key!r}{near}; known are {', '.join(_KNOWN)}")
        if key in given:
            raise ValueError(f"{key} is given twice, in {','.join(changes)!r}")
        given[key] = _value(key, value)
    return replace(config, **given)


def _value(key: str, text: str) -> Any:
    kind = _TYPES[key]
    if kind == "bool":
        return _SWITCHES.get(text.lower(), text)  # the configuration complains of anything else
    if kind in ("int", "float"):
        try:
            return int(text) if kind == "int" else float(text)
        except ValueError:
            return text
    return text
