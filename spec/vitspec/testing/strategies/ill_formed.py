"""Models of the Lean mirror that must be refused, each with the rules that it breaks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hypothesis import strategies as st

from vitspec.config import ViTConfig
from vitspec.models.parameters import check_model
from vitspec.testing.strategies.sizes import cases

_ZERO_FIELD = {
    "patchH_ne0": "patch_h",
    "patchW_ne0": "patch_w",
    "embedDim_pos": "embed_dim",
    "hiddenDim_pos": "hidden_dim",
    "headCount_pos": "head_count",
    "numClasses_ne0": "num_classes",
    "h_inC": "in_channels",
}
"""The rules that one number breaks by being 0."""

RULES = ("nat", *_ZERO_FIELD, "h_tok")
"""The label of every rule that a ViT may break, in the order in which they are reported."""

NOT_NATURAL = (-1, 2**31, 1.5, "3", None, True)
"""What is refused where a natural number is expected."""


@dataclass(frozen=True)
class IllFormed:
    """A model that must be refused, as plain data: `ViTConfig` itself refuses some of it.

    Attributes:
        spec: "vit" or "vit-cls".
        fields: of `ViTConfig`, by name.
        size: `in_channels`, `height`, `width`.
        labels: of the rules that are broken, all of them.
    """

    spec: str
    fields: Mapping[str, Any]
    size: Mapping[str, Any]
    labels: tuple[str, ...]

    def check(self) -> None:
        """Raise the specification's `NotWellFormed`."""
        check_model(ViTConfig(**self.fields), **self.size, cls=self.spec == "vit-cls")


@st.composite
def ill_formed_configs(
    draw: Any, /, rule: str | None = None, spec: str | None = None, max_extent: int = 9
) -> IllFormed:
    """Models that break a rule and no other.

    Args:
        draw: given by Hypothesis.
        rule: one of `RULES`; None for any, and for several that may be broken at once.
        spec: "vit" or "vit-cls"; None for either. Only "vit" can break `h_tok`.
        max_extent: as in `configs`.
    """
    if rule is not None and rule not in RULES:
        raise ValueError(f"rule: expected one of {', '.join(RULES)}, got {rule!r}")
    if rule == "h_tok" and spec == "vit-cls":
        raise ValueError("rule h_tok: the model with a CLS token needs no other")
    labels = {rule} if rule else draw(_labels(spec))
    case = draw(cases("vit" if "h_tok" in labels else spec, max_extent=max_extent))
    values, size = asdict(case.config) | case.size, case.size
    values |= {name: 0 for label, name in _ZERO_FIELD.items() if label in labels}
    if "h_tok" in labels:
        name = draw(st.sampled_from(["patch_h", "patch_w", "stride"]))
        excess = draw(st.integers(1, max_extent))  # always drawn, or stride 0 would be shorter
        extent = values["height" if name == "patch_h" else "width"] + 2 * values["padding"]
        values[name] = 0 if name == "stride" else extent + excess
    if "nat" in labels:
        values[draw(st.sampled_from(list(values)))] = draw(st.sampled_from(NOT_NATURAL))
    size = {name: values.pop(name) for name in size}
    return IllFormed(case.spec, values, size, tuple(r for r in RULES if r in labels))


@st.composite
def _labels(draw: Any, /, spec: str | None) -> set[str]:
    """A rule, or several that one number each breaks: the others hide each other."""
    labels = {draw(st.sampled_from([r for r in RULES if spec != "vit-cls" or r != "h_tok"]))}
    if labels <= _ZERO_FIELD.keys():
        labels |= draw(st.just(set()) | st.sets(st.sampled_from(sorted(_ZERO_FIELD))))
    return labels
