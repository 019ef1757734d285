"""`preprocessor_config.json`: its forms, old and new, and what may stand in it.

The keys and their defaults are those of transformers' processors of three names (Apache-2.0), of
which these are facts: ViT's, DeiT's, and BiT's, which DINOv2 uses. Old files call the processor a
feature extractor or not at all, give sizes as one number, and do not say how to rescale.
"""

from __future__ import annotations

import json
import math
import re
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np

from vitspec.errors import NotWellFormed

FILE_NAME = "preprocessor_config.json"

HALF = (0.5, 0.5, 0.5)

DEFAULTS: dict[str, dict[str, Any]] = {
    "ViT": {
        "do_resize": True,
        "size": {"height": 224, "width": 224},
        "resample": 2,
        "do_center_crop": False,
        "crop_size": None,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": HALF,
        "image_std": HALF,
        "do_convert_rgb": False,
    }
}
DEFAULTS["DeiT"] = DEFAULTS["ViT"] | {
    "size": {"height": 256, "width": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
}
DEFAULTS["Bit"] = DEFAULTS["DeiT"] | {
    "size": {"shortest_edge": 224},
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
    "do_convert_rgb": True,
}
"""What a key means that a file lacks, by processor."""

NAMES = re.compile(r"(ViT|DeiT|Bit)(?:ImageProcessor(?:Fast|Pil)?|FeatureExtractor)")

KIND_OF_MODEL = {"dinov2": "Bit", "dinov2_with_registers": "Bit", "deit": "DeiT"}
"""Which processor goes with a model, by the `model_type` of its config.json; ViT's with others."""

SWITCHES = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
REFUSED_SWITCHES = ("do_pad", "do_flip_channel_order")
RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's filters, by number."""

LARGEST_SIDE = 65_535


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        FileNotFoundError: there is no such file.
        NotWellFormed: it holds something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(
            f"there is no {path}; name a directory with a {path.name}, or such a file"
        ) from error
    except (ValueError, RecursionError) as error:
        raise NotWellFormed(str(path), [f"must be JSON in UTF-8: {error}"]) from error
    if not isinstance(data, dict):
        raise NotWellFormed(str(path), [f"must be a JSON object, got {_kind_of(data)}"])
    return data


def kind_beside(path: Path) -> str:
    """The processor of the model whose config.json is in the same directory; ViT's if none is."""
    beside = path.with_name("config.json")
    model = read_json(beside).get("model_type") if beside.is_file() else None
    return KIND_OF_MODEL.get(model, "ViT") if isinstance(model, str) else "ViT"


def named(data: dict[str, Any]) -> Any:
    """What the file calls the processor; None if it does not."""
    name = data.get("image_processor_type")
    return data.get("feature_extractor_type") if name is None else name


def from_json(data: dict[str, Any], kind: str = "ViT") -> tuple[dict[str, Any], list[str]]:
    """A processor's fields from the contents of the file, and what is wrong with them.

    Keys that are null or absent have their default; those that decide no pixel are passed over.

    Args:
        data: the file's contents.
        kind: which processor it is if the file does not say.
    """
    problems = []
    name = named(data)
    match = NAMES.fullmatch(name) if isinstance(name, str) else None
    if match:
        kind = match[1]
    elif name is not None:
        known = ", ".join(f"{known}ImageProcessor" for known in DEFAULTS)
        problems.append(f"image_processor_type: expected one of {known}, got {name!r}")
    for switch in REFUSED_SWITCHES:
        if data.get(switch) not in (None, False):
            problems.append(f"{switch}: must be false here, got {data[switch]!r}")
    values = DEFAULTS[kind] | {
        key: data[key] for key in DEFAULTS[kind] if data.get(key) is not None
    }
    square = data.get("default_to_square")
    square = square if isinstance(square, bool) else kind != "Bit"
    if _is_integer(values["size"]) and not square:
        values["size"] = {"shortest_edge": values["size"]}
    return {"image_processor_type": f"{kind}ImageProcessor"} | values, problems


def to_json(values: dict[str, Any]) -> dict[str, Any]:
    """The file's contents: what transformers writes for this processor."""
    name = values["image_processor_type"]
    match = NAMES.fullmatch(name)
    defaults = DEFAULTS[match[1] if match else "ViT"]
    written = {
        key: list(value) if isinstance(value, tuple) else copy(value)
        for key, value in values.items()
        if key in defaults and not (value is None or (value is False and not defaults[key]))
    }
    return {"image_processor_type": name} | written


def canonical(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The fields in one form each, and everything that is wrong with them."""
    found, problems = dict(values), []
    name = values["image_processor_type"]
    match = NAMES.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        problems.append(
            f"image_processor_type: expected a name such as ViTImageProcessor, {name!r}"
        )
    else:
        found["image_processor_type"] = f"{match[1]}ImageProcessor"
    for switch in SWITCHES:
        if not isinstance(values[switch], bool):
            problems.append(f"{switch}: must be true or false, got {values[switch]!r}")
    found["size"] = _size("size", values["size"], problems, ("height", "width", "shortest_edge"))
    if values["crop_size"] is not None:
        found["crop_size"] = _size("crop_size", values["crop_size"], problems, ("height", "width"))
    elif values["do_center_crop"] is True:
        problems.append("crop_size: do_center_crop needs it, as height and width")
    if not _is_integer(values["resample"]) or not 0 <= values["resample"] < len(RESAMPLING):
        filters = ", ".join(f"{number} {one}" for number, one in enumerate(RESAMPLING))
        problems.append(f"resample: expected one of {filters}, got {values['resample']!r}")
    if not is_finite(values["rescale_factor"]) or values["rescale_factor"] <= 0:
        problems.append(
            f"rescale_factor: must be a positive number, got {values['rescale_factor']!r}"
        )
    _moments(found, problems)
    if not problems and not np.isfinite(level_table(found)).all():
        problems.append("rescale_factor, image_mean, image_std: their pixels overflow float32")
    return found, problems


def level_table(values: dict[str, Any]) -> Any:
    """What each of 256 grey levels becomes in each channel: float32, (256, C).

    In the order and precision of transformers: rescaled in float64, rounded to float32, then
    normalised in float32.
    """
    levels = np.arange(256, dtype=np.float64)
    with np.errstate(all="ignore"):
        if values["do_rescale"]:
            levels = levels * values["rescale_factor"]
        table = np.repeat(levels.astype(np.float32)[:, None], len(values["image_mean"]), axis=1)
        if values["do_normalize"]:
            mean, std = (np.array(values[key], np.float32) for key in ("image_mean", "image_std"))
            table = (table - mean) / std
    return table


def _size(name: str, value: Any, problems: list[str], keys: tuple[str, ...]) -> Any:
    """The size as the file has it today, or a problem more."""
    given = value
    if _is_integer(value):
        value = (value, value)
    if isinstance(value, list | tuple) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    if isinstance(value, dict):
        value = {key: side for key, side in value.items() if side is not None}
        expected = (set(keys[:2]), set(keys[2:]) or None)
        if set(value) in expected and all(
            _is_integer(side) and 0 < side <= LARGEST_SIDE for side in value.values()
        ):
            return value
    forms = '{"height": H, "width": W}' + (' or {"shortest_edge": S}' if len(keys) > 2 else "")
    problems.append(f"{name}: expected {forms}, integers from 1 to {LARGEST_SIDE}, got {given!r}")
    return value


def _moments(found: dict[str, Any], problems: list[str]) -> None:
    """Puts mean and standard deviation as tuples of one length, 1 or 3."""
    good = True
    for key, least in {"image_mean": -math.inf, "image_std": 0}.items():
        value = found[key]
        value = tuple(value) if isinstance(value, list | tuple) else (value,) * 3
        if len(value) not in (1, 3) or not all(is_finite(one) and one > least for one in value):
            what = "positive numbers" if least == 0 else "numbers"
            problems.append(f"{key}: must be 3 {what}, or 1 for grey, got {found[key]!r}")
            good = False
        found[key] = value
    if not good:
        return
    channels = len(found["image_mean"])
    if channels != len(found["image_std"]):
        problems.append(
            f"image_mean, image_std: have {channels} and {len(found['image_std'])} channels"
        )
    if channels == 1 and found["do_convert_rgb"] is True:
        problems.append("do_convert_rgb: image_mean has one channel, which is grey")


def is_finite(value: Any) -> bool:
    """Whether it is a number that float32 holds, and no Boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 3e38


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _kind_of(data: Any) -> str:
    kinds = {list: "an array", str: "a string", type(None): "null", bool: "a Boolean"}
    return kinds.get(type(data), "a number")
