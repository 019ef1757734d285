"""The names and layouts of Hugging Face's tensors, and ours, as tables.

| ours | stored | layout |
| --- | --- | --- |
| `patch_embed.kernel`, `patch_embed.bias` | `embeddings.patch_embeddings.projection.*` | same |
| `cls_token`, `mask_token`, `pos_enc.pos` | `embeddings.*` | leading axes of 1 |
| `encoder.layers.{i}.*` | `encoder.layer.{i}.*` | matrices are (out, in) there, (in, out) here |
| `final_norm_gamma`, `final_norm_beta` | `layernorm.*` | same |
| `head.*`, `pooler.*` | `classifier.*`, `pooler.dense.*` | same |
| `decoder.*` | `decoder.0.*` | a 1 x 1 convolution's kernel there |

The models of transformers 5 have other names in memory (`layers.{i}.attention.q_proj`) than on
disk; people store those too. A name is written in its first form, and read in any: with and without
the prefix of the bare model (`vit.`, `dinov2.`), since classes with a head have it, others do not.

A layout moves no number and changes none: reshapes and a transposition, undone exactly.

Source: transformers 5.23, `modeling_vit.py`, `modeling_dinov2.py`, `conversion_mapping.py`, and the
files that it writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vitspec.typing import Array

OUR_LAYER = "encoder.layers."
"""What the name of a block's parameter begins with; its number comes next."""
LAYER_FORMS = ("encoder.layer.", "layers.")
"""The same in stored names: on disk, and in the memory of transformers 5's ViT."""


@dataclass(frozen=True)
class Layout:
    """How a stored tensor holds ours: axes of 1 around it, a matrix's two axes exchanged."""

    leading: int = 0
    trailing: int = 0
    transposed: bool = False

    def stored_shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the stored tensor."""
        core = ours[::-1] if self.transposed else ours
        return (1,) * self.leading + core + (1,) * self.trailing

    def to_ours(self, stored: Array) -> Array:
        """Our array: a view of the stored one."""
        core = stored.reshape(stored.shape[self.leading : stored.ndim - self.trailing])
        return core.T if self.transposed else core

    def to_stored(self, ours: Array) -> Array:
        """The stored array: a view of ours."""
        return (ours.T if self.transposed else ours).reshape(self.stored_shape(ours.shape))


SAME, TRANSPOSED = Layout(), Layout(transposed=True)
ROW, TOKEN, POINTWISE = Layout(leading=1), Layout(leading=2), Layout(trailing=2)


@dataclass(frozen=True)
class Place:
    """Where a parameter is stored: the forms of its name, first the written one, and the layout."""

    forms: tuple[str, ...]
    layout: Layout = SAME


@dataclass(frozen=True)
class Family:
    """A model_type: what its bare model is called in others, and the places of its parameters.

    Attributes:
        model_type: as in config.json.
        prefix: of the bare model's tensors in a class with a head.
        body: the bare model's parameters beside the blocks'.
        layer: one block's, after its number.
    """

    model_type: str
    prefix: str
    body: Mapping[str, Place]
    layer: Mapping[str, Place]

    def place(self, name: str) -> Place | None:
        """Where our parameter of this name is stored, without prefix; None if it has no place."""
        if not name.startswith(OUR_LAYER):
            return self.body.get(name) or HEADS.get(name)
        number, _, rest = name.removeprefix(OUR_LAYER).partition(".")
        if (place := self.layer.get(rest)) is None:
            return None
        forms = [f"{start}{number}.{form}" for start in LAYER_FORMS for form in place.forms]
        return Place(tuple(forms), place.layout)

    def forms(self, name: str) -> Iterator[str]:
        """Every stored name that may hold our parameter of this name."""
        if place := self.place(name):
            yield from place.forms
            if name not in UNPREFIXED:
                yield from (self.prefix + form for form in place.forms)

    def holds(self, name: str, stored: Mapping[str, object]) -> bool:
        """Whether our parameter of this name is among these stored ones."""
        return any(form in stored for form in self.forms(name))


def _affine(ours: tuple[str, str], *stored: str, weight: Layout = SAME) -> dict[str, Place]:
    """The places of a weight and a bias, which are stored under one stem in each form."""
    return {
        ours[0]: Place(tuple(f"{stem}.weight" for stem in stored), weight),
        ours[1]: Place(tuple(f"{stem}.bias" for stem in stored)),
    }


def _body(mask_token: Layout) -> dict[str, Place]:
    patches = "embeddings.patch_embeddings.projection"
    return {
        **_affine(("patch_embed.kernel", "patch_embed.bias"), patches),
        "cls_token": Place(("embeddings.cls_token",), TOKEN),
        "mask_token": Place(("embeddings.mask_token",), mask_token),
        "pos_enc.pos": Place(("embeddings.position_embeddings",), ROW),
        **_affine(("final_norm_gamma", "final_norm_beta"), "layernorm"),
    }


def _attention() -> dict[str, Place]:
    places: dict[str, Place] = {}
    for letter, stem in {"q": "query", "k": "key", "v": "value"}.items():
        on_disk, in_memory = f"attention.attention.{stem}", f"attention.{letter}_proj"
        places |= _affine((f"mha.w{letter}", f"mha.b{letter}"), on_disk, in_memory,
                          weight=TRANSPOSED)  # fmt: skip
    output = ("attention.output.dense", "attention.o_proj")
    return places | _affine(("mha.wo", "mha.bo"), *output, weight=TRANSPOSED)


def _layer(norms: tuple[str, str], first: tuple[str, ...], second: tuple[str, ...]
           ) -> dict[str, Place]:  # fmt: skip
    return {
        **_attention(),
        **_affine(("ffn.w1", "ffn.b1"), *first, weight=TRANSPOSED),
        **_affine(("ffn.w2", "ffn.b2"), *second, weight=TRANSPOSED),
        **_affine(("norm1_gamma", "norm1_beta"), norms[0]),
        **_affine(("norm2_gamma", "norm2_beta"), norms[1]),
    }


HEADS: Mapping[str, Place] = {
    **_affine(("head.weights", "head.bias"), "classifier"),
    **_affine(("pooler.weights", "pooler.bias"), "pooler.dense"),
    **_affine(("decoder.weights", "decoder.bias"), "decoder.0", weight=POINTWISE),
}
"""What may stand on the bare model."""
UNPREFIXED = {name for name in HEADS if not name.startswith("pooler.")}
"""The parameters that are never the bare model's own."""

VIT = Family(
    "vit",
    "vit.",
    _body(mask_token=TOKEN),
    _layer(
        ("layernorm_before", "layernorm_after"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
    ),
)
DINOV2 = Family(
    "dinov2",
    "dinov2.",
    _body(mask_token=ROW),
    {
        **_layer(("norm1", "norm2"), ("mlp.fc1",), ("mlp.fc2",)),
        "layer_scale1": Place(("layer_scale1.lambda1",)),
        "layer_scale2": Place(("layer_scale2.lambda1",)),
    },
)
FAMILIES: Mapping[str, Family] = {family.model_type: family for family in (VIT, DINOV2)}


@dataclass(frozen=True)
class Architecture:
    """A class of transformers: its family, and what stands on the bare model in it.

    Attributes:
        name: of the class.
        family: its model_type.
        prefixed: whether the bare model's tensors have the family's prefix.
        may_have: the groups of `GROUPS` that a model of this class may have.
    """

    name: str
    family: Family
    prefixed: bool
    may_have: frozenset[str]

    def stored_name(self, name: str) -> str:
        """What our parameter of this name is called in a file of this class."""
        place = self.family.place(name)
        if place is None:
            raise KeyError(f"{self.name} has no place for {name}")
        return ("" if not self.prefixed or name in UNPREFIXED else self.family.prefix) + (
            place.forms[0]
        )

    def stored_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in which a parameter of this shape is stored."""
        place = self.family.place(name)
        return shape if place is None else place.layout.stored_shape(shape)


GROUPS: Mapping[str, tuple[str, ...]] = {
    "classifier": ("head.weights", "head.bias"),
    "pooler": ("pooler.weights", "pooler.bias"),
    "decoder": ("decoder.weights", "decoder.bias"),
    "mask token": ("mask_token",),
}
"""The parameters that one model of a family has, and another does not."""


def _architecture(name: str, family: Family, prefixed: bool, *may_have: str) -> Architecture:
    return Architecture(name, family, prefixed, frozenset(may_have))


ARCHITECTURES: Mapping[str, Architecture] = {
    one.name: one
    for one in (
        _architecture("ViTModel", VIT, False, "pooler", "mask token"),
        _architecture("ViTForImageClassification", VIT, True, "classifier"),
        _architecture("ViTForMaskedImageModeling", VIT, True, "decoder", "mask token"),
        _architecture("Dinov2Model", DINOV2, False, "mask token"),
        _architecture("Dinov2ForImageClassification", DINOV2, True, "classifier", "mask token"),
    )
}
