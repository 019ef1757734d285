"""Which array of a model plays which role in a Vision Transformer, as data.

A *role* is a parameter of the architecture, under one name and in one layout, whatever a framework
calls it and however it stores it:

| role | canonical shape |
| --- | --- |
| `patch.weight`, `patch.bias` | (D, C, ph, pw), (D,) |
| `cls`, `pos` | (D,), (n, D): with `cls`, row 0 is its own |
| `q.weight`, `k.weight`, `v.weight`, `o.weight` | (in, out): (D, I), and (I, D) for `o` |
| `fc1.weight`, `fc2.weight` | (D, F), (F, D) |
| `q.bias`, ..., `fc2.bias` | (out,) |
| `norm1.gamma`, `norm1.beta`, `norm2.gamma`, `norm2.beta` | (D,); `norm1` is attention's |
| `final_norm.gamma`, `final_norm.beta` | (D,) |
| `head.weight`, `head.bias` | (D, K), (K,) |

Within a layer, column h d + e of `q.weight` belongs to entry e of head h.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from vitspec.typing import Array


@dataclass(frozen=True)
class Stored:
    """How a model stores the array of a role.

    Attributes:
        name: the parameter's; `{prefix}` is what the model puts before its names (perhaps
            nothing), `{i}` the layer's index.
        out_first: matrices are stored (out, in).
        part: (k, n): the array is the k-th of n equal parts along the output axis, as in a fused
            qkv.
    """

    name: str
    out_first: bool = False
    part: tuple[int, int] = (0, 1)

    def canonical(self, role: str, stored: Array) -> Array:
        """The role's array in its canonical layout, out of the stored one."""
        k, n = self.part
        axis = 0 if self.out_first or stored.ndim == 1 else -1
        array = np.split(stored, n, axis)[k] if n > 1 else stored
        if role == "patch.weight":
            return array
        if role == "pos":
            return array.reshape(-1, array.shape[-1])
        if not role.endswith("weight"):
            return array.reshape(-1)
        array = array.reshape(array.shape[-2:])
        return array.T if self.out_first else array


@dataclass(frozen=True)
class Naming:
    """A naming scheme, with what it says of the architecture.

    Attributes:
        name: of the scheme.
        norm: `post` if each residual sum is normalised (the original Transformer, TorchLean),
            `pre` if each branch normalises its input and a final norm follows the last layer.
        relu: whether the feed-forward's activation is the ReLU.
        roles: role -> how it is stored.
        ignored: names (patterns) of parameters that play no part in the logits.
    """

    name: str
    norm: Literal["pre", "post"]
    relu: bool
    roles: Mapping[str, Stored]
    ignored: tuple[str, ...] = field(default=())


LAYER_ROLES = tuple(
    f"{part}.{array}" for part in ("q", "k", "v", "o", "fc1", "fc2") for array in ("weight", "bias")
) + tuple(f"norm{n}.{array}" for n in (1, 2) for array in ("gamma", "beta"))
"""The roles that every layer has, biases perhaps not."""

_I = "encoder.layers.{i}."
VITSPEC = Naming(
    "vitspec",
    "post",
    relu=True,
    roles={
        "patch.weight": Stored("patch_embed.kernel", out_first=True),
        "patch.bias": Stored("patch_embed.bias"),
        "cls": Stored("cls_token"),
        "pos": Stored("pos_enc.pos"),
        **{f"{part}.weight": Stored(f"{_I}mha.w{part}") for part in "qkvo"},
        **{f"fc{n}.weight": Stored(f"{_I}ffn.w{n}") for n in (1, 2)},
        **{f"fc{n}.bias": Stored(f"{_I}ffn.b{n}") for n in (1, 2)},
        **{f"norm{n}.{a}": Stored(f"{_I}norm{n}_{a}") for n in (1, 2) for a in ("gamma", "beta")},
        "head.weight": Stored("head.weights", out_first=True),
        "head.bias": Stored("head.bias"),
    },
)
"""The flat names of both Lean models."""


def torch_naming(
    name: str,
    layer: str,
    parts: Mapping[str, str],
    top: Mapping[str, str],
    fused_qkv: str = "",
    ignored: tuple[str, ...] = (),
) -> Naming:
    """A pre-norm, GELU naming whose arrays are stored as PyTorch's `Linear` and `LayerNorm` do.

    Args:
        name: of the scheme.
        layer: what a layer's names begin with, `{prefix}` and `{i}` in it.
        parts: of a layer: "q", "norm1", ... -> the module's name.
        top: the same outside the layers: "patch", "final_norm", "head" are modules; "cls", "pos"
            arrays.
        fused_qkv: the module that holds q, k and v, one above the other.
        ignored: as in `Naming`.
    """
    roles: dict[str, Stored] = {}

    def module(role: str, prefix: str, part: tuple[int, int] = (0, 1)) -> None:
        arrays = ("gamma", "beta") if "norm" in role else ("weight", "bias")
        for array, stored in zip(arrays, ("weight", "bias"), strict=True):
            roles[f"{role}.{array}"] = Stored(f"{prefix}.{stored}", stored == "weight", part)

    for role, path in top.items():
        if role in ("cls", "pos"):
            roles[role] = Stored(path)
        else:
            module(role, path)
    for role, path in parts.items():
        module(role, layer + path)
    for k, role in enumerate("qkv" if fused_qkv else ""):
        module(role, layer + fused_qkv, (k, 3))
    return Naming(name, "pre", False, roles, ignored)


_HF_TOP = {
    "patch": "{prefix}embeddings.patch_embeddings.projection",
    "cls": "{prefix}embeddings.cls_token",
    "pos": "{prefix}embeddings.position_embeddings",
    "final_norm": "{prefix}layernorm",
    "head": "classifier",
}
_HF_NORMS = {"norm1": "layernorm_before", "norm2": "layernorm_after"}
_HF_IGNORED = ("{prefix}embeddings.mask_token",)  # only for masked images

HUGGING_FACE = torch_naming(
    "huggingface",
    "{prefix}encoder.layer.{i}.",
    {f"{p[0]}": f"attention.attention.{p}" for p in ("query", "key", "value")}
    | {"o": "attention.output.dense", "fc1": "intermediate.dense", "fc2": "output.dense"}
    | _HF_NORMS,
    _HF_TOP,
    ignored=_HF_IGNORED,
)
"""Hugging Face's ViT as it is on disk, with or without the prefix `vit.`."""

HUGGING_FACE_5 = torch_naming(
    "huggingface-5",
    "{prefix}layers.{i}.",
    {p: f"attention.{p}_proj" for p in "qkvo"}
    | {f"fc{n}": f"mlp.fc{n}" for n in (1, 2)}
    | _HF_NORMS,
    _HF_TOP,
    ignored=_HF_IGNORED,
)
"""Hugging Face's ViT in the memory of transformers 5."""

TIMM = torch_naming(
    "timm",
    "{prefix}blocks.{i}.",
    {"o": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2", "norm1": "norm1", "norm2": "norm2"},
    {
        "patch": "{prefix}patch_embed.proj",
        "cls": "{prefix}cls_token",
        "pos": "{prefix}pos_embed",
        "final_norm": "{prefix}norm",
        "head": "{prefix}head",
    },
    fused_qkv="attn.qkv",
)
"""timm's plain `VisionTransformer`."""

NAMINGS = (VITSPEC, HUGGING_FACE, HUGGING_FACE_5, TIMM)
"""The schemes that are recognised by their names."""


@dataclass(frozen=True)
class Located:
    """Where the arrays of a role are: the parameter's name, and how it is stored."""

    name: str
    stored: Stored


@dataclass(frozen=True)
class Model:
    """The roles of one model's parameters.

    Attributes:
        naming: the scheme.
        roles: (role, layer) -> where; layer is None outside the layers.
        num_layers: how many layers there are.
    """

    naming: Naming
    roles: Mapping[tuple[str, int | None], Located]
    num_layers: int


def recognise(params: Mapping[str, Any], namings: tuple[Naming, ...] = NAMINGS) -> Model | str:
    """The model that has parameters of these names, or why there is none.

    Every parameter must have a role: one that has none, such as a LayerScale, may break any
    identity.
    """
    known = ", ".join(n.name for n in namings)
    reason = f"the parameters' names follow none of the known schemes ({known})"
    for naming in namings:
        patch = naming.roles["patch.weight"].name.replace("{prefix}", "")
        for anchor in params:
            if not anchor.endswith(patch):
                continue
            prefix = anchor.removesuffix(patch)
            located = dict(_located(naming, prefix, params))
            taken = {place.name for place in located.values()}
            taken |= {name.replace("{prefix}", prefix) for name in naming.ignored}
            if extra := sorted(params.keys() - taken):
                more = f" and {len(extra) - 3} more" if len(extra) > 3 else ""
                shown = ", ".join(extra[:3])
                reason = f"{naming.name} names, but no role is known for {shown}{more}"
                continue
            layers = {i for _, i in located if i is not None}
            return Model(naming, located, len(layers))
    return reason


def _located(
    naming: Naming, prefix: str, params: Mapping[str, Any]
) -> Iterator[tuple[tuple[str, int | None], Located]]:
    for role, stored in naming.roles.items():
        pattern = stored.name.replace("{prefix}", prefix)
        layers = range(len(params)) if "{i}" in pattern else [None]
        for i in layers:
            name = pattern.replace("{i}", str(i))
            if name in params:
                yield (role, i), Located(name, stored)
            elif i is not None and not any(f".{i}." in other for other in params):
                break
