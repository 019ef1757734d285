"""Recipes by name: a model and how it is trained from nothing, for data sets that a laptop can do.

| name | model | for |
| --- | --- | --- |
| `digits` | patches of 2 x 2 at 8 x 8, 64 wide, 4 heads, 4 blocks | scikit-learn's digits |
| `fashion-mnist-small` | patches of 7 x 7 at 28 x 28, 96 wide, 4 heads, 4 blocks | Fashion-MNIST |
| `d2l` | Dive into Deep Learning's ViT: SGD at a constant rate | Fashion-MNIST at 96 x 96 |

Any other preset of `vitspec.presets` is trained with `GENERAL`, a checkpoint with `FINE_TUNING`.
The settings of the small ones were found by trying (docs/training.md has what they reach).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vitspec.config_text import changed
from vitspec.presets import PRESETS, preset
from vitspec.vision_transformer_config import VisionTransformerConfig

GENERAL: Mapping[str, Any] = {
    "epochs": 100.0, "batch_size": 128, "learning_rate": 1e-3, "schedule": "cosine",
    "warmup_steps": 200, "weight_decay": 0.05, "clip_norm": 1.0, "label_smoothing": 0.1,
}  # fmt: skip
"""AdamW as ViTs are usually trained from nothing."""

FINE_TUNING: Mapping[str, Any] = {
    "epochs": 10.0, "batch_size": 128, "learning_rate": 1e-4, "schedule": "cosine",
    "warmup_steps": 50, "weight_decay": 0.01, "clip_norm": 1.0,
}  # fmt: skip

_SMALL = VisionTransformerConfig(
    image_h=28, image_w=28, in_channels=1, patch_h=7, patch_w=7, embed_dim=96, hidden_dim=192,
    head_count=4, num_layers=4, num_classes=10, layer_norm_eps=1e-6,
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """A model, and how it is trained.

    Attributes:
        model: its configuration, before it is adapted to the data.
        training: fields of a `TrainConfig`.
        augmentation: fields of a `vitfast.data.Augmentation`.
        position_scale: standard deviation of the initial positions. The usual 0.02 is lost beside
            tokens of patches, whose entries are about 1, and a small model then takes many epochs
            to find out where a patch is: on the digits, 15 epochs reach 72 % with 0.02 and 94 %
            with 0.5.
    """

    model: VisionTransformerConfig
    training: Mapping[str, Any]
    augmentation: Mapping[str, Any] = field(default_factory=dict)
    position_scale: float = 0.02


RECIPES: Mapping[str, Recipe] = {
    "digits": Recipe(
        replace(_SMALL, image_h=8, image_w=8, patch_h=2, patch_w=2, embed_dim=64, hidden_dim=128),
        {**GENERAL, "epochs": 20.0, "batch_size": 64, "learning_rate": 2e-3, "warmup_steps": 50},
        position_scale=0.5,
    ),
    "fashion-mnist-small": Recipe(
        _SMALL,
        {**GENERAL, "epochs": 20.0, "learning_rate": 2e-3},
        {"crop_padding": 2, "horizontal_flip": True},
        position_scale=0.5,
    ),
    "d2l": Recipe(
        PRESETS["d2l"],
        {"epochs": 10.0, "batch_size": 128, "optimizer": "sgd", "learning_rate": 0.1},
    ),
}

DEFAULTS = {"digits": "digits", "fashion-mnist": "fashion-mnist-small"}
"""The recipe of a data set, by its name or its directory's; of any other it is `OTHERWISE`."""

OTHERWISE = "deit-tiny"


def recipe(text: str) -> Recipe:
    """That of a recipe's or a preset's name, and perhaps changes to the model.

    Args:
        text: NAME or NAME,field=value,field=value.

    Raises:
        ValueError: the name or a field is unknown; the known ones are listed.
        NotWellFormed: a value is of another type than its field.

    >>> recipe("digits,num_layers=2").model.num_layers
    2
    """
    name, *changes = [item.strip() for item in text.split(",")]
    if name in RECIPES:
        found = RECIPES[name]
    else:
        try:
            found = Recipe(preset(name), GENERAL)
        except ValueError as error:
            if name in PRESETS or "expected one of" not in str(error):
                raise
            known = ", ".join(dict.fromkeys((*RECIPES, *PRESETS)))
            raise ValueError(f"preset {name!r}: expected one of {known}") from None
    return replace(found, model=changed(found.model, changes))


def default_recipe(dataset_name: str) -> str:
    """The name of the recipe for a data set of this name, or in a directory of this name."""
    return DEFAULTS.get(dataset_name, OTHERWISE)
