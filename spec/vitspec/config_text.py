"""Configurations as the text of a command's argument, there and back.

| text | is |
| --- | --- |
| `base`, `large` | one of Lean's named configurations |
| `embed_dim=6,head_count=2` | `base` with changes; `large,num_layers=2` likewise |
| `model.json` | a file with an object of the same keys |
| `hf-vit-base,num_layers=2,qkv_bias=false` | a preset of the practical family, with changes |
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from vitspec.config import (
    ViTConfig,
    natural_problem,
    vit_base_patch16_config,
    vit_large_patch16_config,
)
from vitspec.errors import NotWellFormed
from vitspec.geometry import patch_count
from vitspec.models.parameters import check_model
from vitspec.presets import PRESETS, REFUSED, preset
from vitspec.shapes import Model, has_cls
from vitspec.vision_transformer_config import VisionTransformerConfig

Config = ViTConfig | VisionTransformerConfig

LEAN_PRESETS = {"base": vit_base_patch16_config, "large": vit_large_patch16_config}

_SIZE = {"in_channels": 3, "height": 224, "width": 224}
"""Of the images, where a text of the Lean mirror says nothing else."""

_LEAN = {one.name: str(one.type) for one in fields(ViTConfig)}
_LEAN |= dict.fromkeys(_SIZE, "int") | {"spec": "str"}
_PRACTICAL = {one.name: str(one.type) for one in fields(VisionTransformerConfig)}
del _PRACTICAL["dropout"]  # which is several numbers
"""The keys of each family's texts, and the types of their values."""

_MAX_BYTES = 10**6
"""Of a configuration file: a larger one is something else."""


# ---- a text of either family -------------------------------------------------------------------


def read_config(text: str) -> Config:
    """The configuration that a text describes; it is well-formed and has a classifier.

    Raises:
        NotWellFormed: it breaks a rule; every broken rule is listed.
        ValueError: the text, or the file that it names, cannot be read as one.
        OSError: the file cannot be read at all.

    >>> read_config("d2l,num_layers=1").num_layers, read_config("num_layers=1").head_count
    (1, 12)
    """
    return parse_practical_config(text) if is_practical(text) else parse_config(text).config


def config_argument(config: Config) -> str:
    """The shortest text from which `read_config` makes this configuration.

    It has the fewest changes, to whichever preset that takes. A ViT that finds no token on images
    of 224 x 224 is said to be of the kind that needs none.

    Raises:
        NotWellFormed: it is not, or it has no classifier; no text describes it.
        ValueError: a field differs from every preset's, and no text can say so.

    >>> config_argument(ViTConfig(embed_dim=6, head_count=2))
    'embed_dim=6,head_count=2'
    >>> config_argument(replace(PRESETS["d2l"], layer_norm_eps=1e-5, qkv_bias=True))
    'd2l,layer_norm_eps=1e-05,qkv_bias=true'
    """
    config.check_well_formed()
    if isinstance(config, ViTConfig):
        text = _shortest(config, LEAN_PRESETS, _LEAN).removeprefix("base,")  # the default
        return text if patch_count(config, 224, 224) else f"{text},spec=vit-cls"
    text = _shortest(config, PRESETS, _PRACTICAL)
    _check_classifier(config, text)
    return text


def _shortest(config: Config, presets: Mapping[str, Config], types: Mapping[str, str]) -> str:
    """The preset with the fewest changes, and these."""
    texts: list[str] = []
    unsaid: list[list[str]] = []
    for name, one in presets.items():
        changes = {key: v for key, v in vars(config).items() if v != getattr(one, key)}
        written = {key: _written(v) for key, v in changes.items() if key in types}
        read = {key: _value(types[key], text) for key, text in written.items()}
        if read == changes:
            texts.append(",".join([name, *(f"{key}={text}" for key, text in written.items())]))
        else:
            unsaid.append([key for key, v in changes.items() if read.get(key) != v])
    if not texts:
        fewest = min(unsaid, key=len)
        raise ValueError(
            f"{', '.join(fewest)}: it is no preset's, and a text cannot say it: {config!r}"
        )
    return min(texts, key=lambda text: (text.count("="), len(text)))


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    # NumPy's floats are floats too, but print in another way.
    return repr(float(value)) if isinstance(value, float) else str(value)


# ---- the Lean mirror ---------------------------------------------------------------------------


def parse_config(text: str) -> Model:
    """The model of the Lean mirror that a text describes.

    The keys are the fields of `ViTConfig`, `in_channels`, `height`, `width` (3 x 224 x 224 if
    absent) and `spec` (`vit` if absent); other fields are those of `base`.

    Raises:
        NotWellFormed: there is no such model; every broken rule is listed.
        ValueError: the text, or the file, cannot be read as one.
        OSError: the file cannot be read at all.

    >>> parse_config("large,num_classes=10,spec=vit-cls")[1:]
    ('vit-cls', 3, 224, 224)
    """
    values = _read_json(Path(text)) if _is_path(text) else _read_text(text)
    spec = values.pop("spec", "vit")
    cls = has_cls(spec)
    problems = {name: natural_problem(value) for name, value in values.items()}
    if any(problems.values()):
        broken = [f"nat: {name} {problem}" for name, problem in problems.items() if problem]
        raise NotWellFormed(text, broken)
    size = {name: values.pop(name, default) for name, default in _SIZE.items()}
    model = Model(ViTConfig(**values), spec, **size)
    check_model(model.config, **size, cls=cls)
    return model


def _read_text(text: str) -> dict[str, Any]:
    first, *changes = _items(text)
    if first not in LEAN_PRESETS:
        first, changes = "base", [first, *changes]
    expected = f"{' or '.join(LEAN_PRESETS)}, key=value,key=value or a JSON file"
    return asdict(LEAN_PRESETS[first]) | _changes(changes, _LEAN, expected)


def _is_path(text: str) -> bool:
    if text.endswith(".json"):
        return True
    if "=" in text or _items(text)[0] in LEAN_PRESETS:  # whatever files are called so
        return False
    try:
        return bool(text) and Path(text).exists()
    except (OSError, ValueError):  # too long for a path, or a null byte
        return False


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{path}: more than {_MAX_BYTES:,} bytes, which is no configuration")
    try:
        values = json.loads(path.read_text("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, or nested without end
        raise ValueError(f"{path}: not a JSON file of a configuration: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected an object of fields, got {type(values).__name__}")
    _check_known(values, _LEAN)
    return values


# ---- the practical family ----------------------------------------------------------------------


def is_practical(text: str) -> bool:
    """Whether a text begins with the name of a preset of the practical family."""
    return _items(text)[0] in (*PRESETS, *REFUSED)


def parse_practical_config(text: str) -> VisionTransformerConfig:
    """The configuration that a text describes; it is well-formed and has a classifier.

    Raises:
        NotWellFormed: it breaks a rule; every broken rule is listed.
        ValueError: the text cannot be read as one, or the preset is refused.

    >>> parse_practical_config("d2l,num_layers=1,qkv_bias=true").qkv_bias
    True
    """
    name, *changes = _items(text)
    config = changed(preset(name), changes)
    config.check_well_formed()
    _check_classifier(config, text)
    return config


def changed(config: VisionTransformerConfig, changes: Sequence[str]) -> VisionTransformerConfig:
    """The configuration with these changes, each "field=value"; it need not be well-formed.

    Raises:
        NotWellFormed: a value is of another type than its field.
        ValueError: a change cannot be read, or its field is unknown or given twice.
    """
    return replace(config, **_changes(changes, _PRACTICAL, "PRESET,key=value,key=value"))


def _check_classifier(config: VisionTransformerConfig, text: str) -> None:
    if not config.num_classes:
        raise NotWellFormed(
            text, ["num_classes: the check is of logits and needs a classifier: add num_classes=10"]
        )


# ---- key=value ---------------------------------------------------------------------------------


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",")]


def _changes(items: Sequence[str], types: Mapping[str, str], expected: str) -> dict[str, Any]:
    """The values that are written as `key=value`, each of its key's type."""
    pairs = []
    for item in items:
        key, equals, value = (part.strip() for part in item.partition("="))
        if not (key and equals and value):
            among = f" in {','.join(items)!r}" if len(items) > 1 else ""
            raise ValueError(f"expected {expected}; got {item!r}{among}")
        pairs.append((key, value))
    written = _once(pairs)
    _check_known(written, types)
    return {key: _value(types[key], value) for key, value in written.items()}


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key} is given twice")
        found[key] = value
    return found


def _check_known(given: Iterable[str], known: Iterable[str]) -> None:
    unknown = []
    for name in (name for name in given if name not in known):
        hint = difflib.get_close_matches(name, known, n=1)
        unknown.append(f"{name!r} (did you mean {hint[0]}?)" if hint else repr(name))
    if unknown:
        raise ValueError(f"unknown field {', '.join(unknown)}; known are {', '.join(known)}")


def _value(kind: str, text: str) -> Any:
    """The value that is written, or else the text, of which the configuration will complain."""
    if kind == "bool":
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return {"int": int, "float": float}.get(kind, str)(text)
    except ValueError:
        return text
