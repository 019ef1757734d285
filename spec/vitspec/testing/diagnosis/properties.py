"""A case as its properties, each of which can be changed alone.

`head_dim` and the number of rows of patches are properties; `embed_dim` and the images' height are
not, since they follow from these. So one thing at a time is changed, and nothing else with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vitspec.testing.families import AnyCase, Case, VisionTransformerCase
from vitspec.testing.families.options import OPTIONS
from vitspec.testing.families.practical import VALUES

Properties = Mapping[str, Any]

_ROWS, _COLUMNS = "the number of rows of patches", "the number of columns of patches"
_OVER_H, _OVER_W = "the number of rows of pixels left over", "... of columns of pixels left over"
_IMAGES, _POOL, _SIZE = "the number of images", "(pool, cls_token)", "the images' own grid"
_BEYOND = "the number of features beyond whole heads"
_SIZES = ("patch_h", "patch_w", "hidden_dim", "num_layers", "num_classes", "head_count")
_SWITCHES = ("activation", "layer_norm_eps", "qkv_bias", "output_bias", "layer_scale")

PLAIN = {
    "num_layers": 1, "head_dim": 4, "head_count": 1, "hidden_dim": 8, _ROWS: 2, _COLUMNS: 2,
    "height": 4, "width": 4, "num_classes": 2, "patch_h": 2, "patch_w": 2, "stride": 2,
    "padding": 0, "in_channels": 1, _IMAGES: 1, _OVER_H: 0, _OVER_W: 0, _BEYOND: 0,
    "layer_scale": False, _SIZE: None, "values": "normal", "scale": 1.0, _POOL: ("cls", True),
    "qkv_bias": True, "output_bias": True, "activation": "gelu", "layer_norm_eps": 1e-6,
}  # fmt: skip
"""What is least special of each; first what makes a model small."""

_CHOICES = {name: tuple(one[name] for one in group) for group in OPTIONS for name in group[0]}
CHOICES: dict[str, tuple[Any, ...]] = {
    **{name: _CHOICES[name] for name in _SWITCHES},
    _POOL: tuple((one["pool"], one["cls_token"]) for group in OPTIONS for one in group
                 if "pool" in one),
    "values": VALUES,
    "scale": (1.0, 0.1, 0.01),
}  # fmt: skip
"""The values of what is no number."""


def others(name: str, value: Any) -> tuple[Any, ...]:
    """Other values that a property may have, the most telling first."""
    if name in CHOICES:
        return tuple(one for one in CHOICES[name] if one != value)
    if name == _SIZE:
        return () if value is None else (None,)
    return tuple(n for n in (value + 1, value - 1) if n >= (name not in _MAY_BE_0))


_MAY_BE_0 = ("padding", _OVER_H, _OVER_W, _BEYOND)


def properties(case: AnyCase) -> dict[str, Any]:
    """Every property of a case."""
    c: Any = case.config
    found: dict[str, Any] = {name: getattr(c, name) for name in _SIZES}
    found |= {"head_dim": c.embed_dim // c.head_count, _IMAGES: case.batch}
    if isinstance(case, Case):
        found |= {name: getattr(case, name) for name in ("height", "width", "in_channels", "scale")}
        return found | {
            "stride": c.stride, "padding": c.padding, _BEYOND: c.embed_dim % c.head_count
        }  # fmt: skip
    rows, columns = c.grid
    own = None if case.image_size is None else c.grid_of(*case.image_size)
    return found | {name: getattr(c, name) for name in (*_SWITCHES, "in_channels")} | {
        _ROWS: rows, _COLUMNS: columns, _OVER_H: c.image_h % c.patch_h,
        _OVER_W: c.image_w % c.patch_w, _POOL: (c.pool, c.cls_token), "values": case.values,
        _SIZE: own,
    }  # fmt: skip


def with_property(case: AnyCase, name: str, value: Any) -> AnyCase:
    """The case with one property changed; what is left over stays smaller than a patch."""
    p = properties(case) | {name: value}
    sizes = {size: p[size] for size in _SIZES} | {"embed_dim": p["head_count"] * p["head_dim"]}
    if isinstance(case, Case):
        sizes["embed_dim"] += min(p[_BEYOND], p["head_count"] - 1)
        own = replace(case.config, **sizes, stride=p["stride"], padding=p["padding"])
        same = {key: p[key] for key in ("height", "width", "in_channels", "scale")}
        return replace(case, config=own, batch=p[_IMAGES], **same)
    assert isinstance(case, VisionTransformerCase)
    pool, cls_token = p[_POOL]
    config = replace(
        case.config, **sizes, **{switch: p[switch] for switch in _SWITCHES},
        in_channels=p["in_channels"], pool=pool, cls_token=cls_token,
        image_h=p[_ROWS] * p["patch_h"] + min(p[_OVER_H], p["patch_h"] - 1),
        image_w=p[_COLUMNS] * p["patch_w"] + min(p[_OVER_W], p["patch_w"] - 1),
    )  # fmt: skip
    grid = p[_SIZE]
    size = None if grid is None else (grid[0] * p["patch_h"], grid[1] * p["patch_w"])
    return replace(case, config=config, batch=p[_IMAGES], values=p["values"], image_size=size)
