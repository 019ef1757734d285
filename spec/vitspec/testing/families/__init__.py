"""The families of models that can be graded, by the name that an implementation claims.

`vit` and `vit-cls` mirror Lean (`ViTConfig`, families/lean.py); `vision-transformer` is the
practical family (`VisionTransformerConfig`, families/practical.py), whose configuration has the
size of the images in it.
"""

from __future__ import annotations

from vitspec.config import ViTConfig
from vitspec.testing.families.family import (
    KINK_MARGIN,
    ORIENTATIONS,
    DrawnCase,
    Family,
    nearest_gap,
    off_kinks,
)
from vitspec.testing.families.lean import MODELS, Case, LeanFamily
from vitspec.testing.families.practical import PracticalFamily, VisionTransformerCase
from vitspec.vision_transformer_config import VisionTransformerConfig

__all__ = [
    "FAMILIES",
    "KINK_MARGIN",
    "MODELS",
    "ORIENTATIONS",
    "AnyCase",
    "Case",
    "Config",
    "DrawnCase",
    "Family",
    "LeanFamily",
    "PracticalFamily",
    "VisionTransformerCase",
    "nearest_gap",
    "off_kinks",
]

Config = ViTConfig | VisionTransformerConfig
AnyCase = Case | VisionTransformerCase

FAMILIES: dict[str, Family] = {
    one.name: one for one in (*(LeanFamily(name) for name in MODELS), PracticalFamily())
}
"""Every family that can be graded."""
