"""Configurations and their well-formedness: `ViTConfig`, `TransformerStackConfig`.

Lean: `ViTConfig`, `ViTConfig.WF`, `vitBasePatch16Config`, `vitLargePatch16Config`
(`NN/Spec/Models/Vit.lean`) and `TransformerLayerConfig`, `TransformerStackConfig`,
`transformerBaseConfig`, `transformerBigConfig` (`NN/Spec/Models/Transformer.lean`).

Every rule carries the name of its Lean fact. That name is permanent: it stands in the error, in the
tests and in `docs/specification.md`.

The fields are natural numbers. In Lean their type says so; here the constructor does, under the
rule `nat`. The image's channels, height and width are not part of a configuration: they belong to
the model.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, fields
from typing import Any

from vitspec.errors import NotWellFormed

MAX_FIELD = 2**31 - 1
"""The largest value of a field: beyond it no array that the field sizes can be indexed."""


class _NaturalFields:
    """A dataclass whose fields are all natural numbers, normalised to Python integers."""

    def __post_init__(self) -> None:
        problems = []
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            problem = natural_problem(value)
            if problem:
                problems.append(f"nat: {field.name} {problem}")
            else:
                object.__setattr__(self, field.name, operator.index(value))
        if problems:
            raise NotWellFormed(type(self).__name__, problems)


def natural_problem(value: Any) -> str | None:
    """What keeps `value` from being a natural number that can size an array; None if nothing."""
    expected = f"must be an integer from 0 to {MAX_FIELD}"
    shown = _shown(value)
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return f"{expected}, got {shown} ({type(value).__name__})"
    try:
        number = operator.index(value)
    except TypeError:  # such as an array of several numbers
        return f"{expected}, got {shown} ({type(value).__name__})"
    return None if 0 <= number <= MAX_FIELD else f"{expected}, got {shown}"


def _shown(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 128:  # Python refuses to print the longest
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


@dataclass(frozen=True)
class ViTConfig(_NaturalFields):
    """The architecture of a ViT; the defaults are ViT-Base/16.

    Attributes:
        patch_h, patch_w: patch height and width, in pixels: the kernel of the patch embedding.
        stride: step between patches, in pixels, the same on both axes.
        padding: zeros added on each of the four sides, in pixels.
        embed_dim: width D of a token.
        hidden_dim: width F of the feed-forward's hidden layer.
        head_count: number of attention heads.
        num_layers: number of encoder layers.
        num_classes: number K of logits.

    Raises:
        NotWellFormed: a field is not a natural number (rule `nat`).

    >>> ViTConfig().head_dim
    64
    >>> ViTConfig(patch_h=0, num_classes=0).violations()
    ('patchH_ne0: patch_h must not be 0', 'numClasses_ne0: num_classes must not be 0')
    """

    patch_h: int = 16
    patch_w: int = 16
    stride: int = 16
    padding: int = 0
    embed_dim: int = 768
    hidden_dim: int = 3072
    head_count: int = 12
    num_layers: int = 12
    num_classes: int = 1000

    def violations(self) -> tuple[str, ...]:
        """Every rule of Lean's `ViTConfig.WF` that is broken, as "label: what must hold".

        Rules: `patchH_ne0`, `patchW_ne0`, `embedDim_pos`, `hiddenDim_pos`, `headCount_pos`,
        `numClasses_ne0`. Stride 0, zero layers and heads that do not divide `embed_dim` are
        well-formed, as in Lean.
        """
        rules = [
            ("patchH_ne0", "patch_h must not be 0", self.patch_h != 0),
            ("patchW_ne0", "patch_w must not be 0", self.patch_w != 0),
            ("embedDim_pos", "embed_dim must be positive", self.embed_dim > 0),
            ("hiddenDim_pos", "hidden_dim must be positive", self.hidden_dim > 0),
            ("headCount_pos", "head_count must be positive", self.head_count > 0),
            ("numClasses_ne0", "num_classes must not be 0", self.num_classes != 0),
        ]
        return tuple(f"{label}: {must}" for label, must, holds in rules if not holds)

    def check_well_formed(self) -> None:
        """Raise `NotWellFormed`, listing every violation, unless there is none."""
        if violations := self.violations():
            raise NotWellFormed(repr(self), violations)

    @property
    def head_dim(self) -> int:
        """Width of one head: floor(embed_dim / head_count); 0 if there are no heads, as in Lean."""
        return self.embed_dim // self.head_count if self.head_count else 0

    @property
    def inner_dim(self) -> int:
        """Width I of all heads together: head_count * head_dim, at most embed_dim."""
        return self.head_count * self.head_dim


@dataclass(frozen=True)
class TransformerStackConfig(_NaturalFields):
    """Lean's separate record for a Transformer stack; the ViT never goes through it.

    It is stricter than `ViTConfig`: the heads must divide the width.

    >>> TransformerStackConfig(head_count=3, embed_dim=4).violations()
    ('headCount_dvd_embedDim: head_count must divide embed_dim',)
    """

    head_count: int = 8
    embed_dim: int = 512
    hidden_dim: int = 2048
    num_layers: int = 6

    def violations(self) -> tuple[str, ...]:
        """Every rule of Lean's `TransformerLayerConfig.WF` that is broken."""
        # In Lean, as here, 0 divides only 0.
        divides = self.embed_dim % self.head_count == 0 if self.head_count else not self.embed_dim
        rules = [
            ("headCount_pos", "head_count must be positive", self.head_count > 0),
            ("embedDim_pos", "embed_dim must be positive", self.embed_dim > 0),
            ("hiddenDim_pos", "hidden_dim must be positive", self.hidden_dim > 0),
            ("headCount_dvd_embedDim", "head_count must divide embed_dim", divides),
        ]
        return tuple(f"{label}: {must}" for label, must, holds in rules if not holds)


vit_base_patch16_config = ViTConfig()
vit_large_patch16_config = ViTConfig(
    embed_dim=1024, hidden_dim=4096, head_count=16, num_layers=24, num_classes=1000
)
transformer_base_config = TransformerStackConfig()
transformer_big_config = TransformerStackConfig(
    head_count=16, embed_dim=1024, hidden_dim=4096, num_layers=6
)
