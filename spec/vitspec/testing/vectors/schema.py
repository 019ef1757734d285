"""The JSON Schema of `case.json`, and the names of the formats."""

from __future__ import annotations

from typing import Any

from vitspec.testing.precision import PRECISIONS

CASE = "vitspec-vector/1"
INDEX = "vitspec-vectors/1"
EXPORT = "vitspec-vectors-export/1"

_NATURAL = {"type": "integer", "minimum": 0}
_NOT_NEGATIVE = {"type": "number", "minimum": 0}
_NAMES = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
_CONFIG = (
    "patch_h", "patch_w", "stride", "padding", "embed_dim", "hidden_dim", "head_count",
    "num_layers", "num_classes",
)  # fmt: skip
_IMAGE = ("in_channels", "height", "width")


def _object(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    closed = {"type": "object", "additionalProperties": False}
    return {**closed, "properties": properties, "required": sorted(properties), **more}


def _map(values: Any, names: Any = None) -> dict[str, Any]:
    named = {"propertyNames": names} if names else {}
    return {"type": "object", "additionalProperties": values, **named}


_DTYPE = {"enum": list(PRECISIONS)}
_SHAPES = _map({"type": "array", "items": _NATURAL})
_PRICE = _object(dict.fromkeys(("norm", "max", "row", "slice"), _NOT_NEGATIVE))
_COMMON = {
    "schema": {"const": CASE},
    "id": {"type": "string", "pattern": "^(basic|edge|adversarial|ill-formed)-[a-z0-9-]+$"},
    "description": {"type": "string"},
}
_GRADED = {
    "category": {"enum": ["basic", "edge", "adversarial"]},
    "judges": {"enum": ["function", "accuracy"]},
    "flags": _NAMES,
    "inputs": _SHAPES,
    "outputs": _SHAPES,
    "tolerance": _map(_map(_PRICE), _DTYPE),
    "kill_margin": _map(_map({"type": "number", "exclusiveMinimum": 1}), _DTYPE),
}
_MODEL = {"kind": {"const": "model"}, "spec": {"enum": ["vit", "vit-cls"]}}

CASE_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "A test vector of vitspec",
    "oneOf": [
        _object(
            {
                **_COMMON, **_GRADED, **_MODEL,
                "config": _object(dict.fromkeys(_CONFIG, _NATURAL)),
                "image": _object(dict.fromkeys(_IMAGE, _NATURAL)),
            }
        ),
        _object(
            {
                **_COMMON, **_GRADED,
                "kind": {"const": "layer"},
                "layer": {"type": "string"},
                "settings": _map(_NATURAL),
            }
        ),
        _object(
            {
                **_COMMON, **_MODEL,
                "category": {"const": "ill-formed"},
                # What must be rejected may hold anything.
                "config": _object(dict.fromkeys(_CONFIG, True)),
                "image": _object(dict.fromkeys(_IMAGE, True)),
                "violations": {**_NAMES, "minItems": 1},
            }
        ),
    ],
}  # fmt: skip
"""What a `case.json` of this package is; the exported ones lack tolerance, margins and flags."""
