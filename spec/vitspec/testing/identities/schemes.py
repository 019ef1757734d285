"""The naming schemes that are recognised by their names."""

from __future__ import annotations

from collections.abc import Mapping

from vitspec.testing.identities.naming import Naming, Stored

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
