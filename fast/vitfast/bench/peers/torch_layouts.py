"""Our parameters by the names and in the layouts of PyTorch's models: weights are (out, in)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from vitfast.bench.cases import Case, Flat


def lean(case: Case, flat: Flat) -> dict[str, Any]:
    """For `torch_lean.LeanViT`: q, k and v in one matrix, and in its layers the names of ours."""
    return _with_one_qkv(
        case, flat, layer="layers.{i}.", qkv="qkv", out="out", mlp="linear{j}", norm="norm{j}",
        patch="patch_embed", last="norm", head="head",
    )  # fmt: skip


def timm(case: Case, flat: Flat) -> dict[str, Any]:
    """For timm's `VisionTransformer`."""
    return _with_one_qkv(
        case, flat, layer="blocks.{i}.", qkv="attn.qkv", out="attn.proj", mlp="mlp.fc{j}",
        norm="norm{j}", patch="patch_embed.proj", last="norm", head="head",
    )  # fmt: skip


def hugging_face(case: Case, known: Collection[str], flat: Flat) -> dict[str, Any]:
    """For transformers' `ViTForImageClassification`, with the names of version 5 or before."""
    five = "model.vit.layers.0.attention.q_proj.weight" in known
    layer = "model.vit.layers.{i}." if five else "model.vit.encoder.layer.{i}."
    names = dict(zip("qkvo", ("q_proj", "k_proj", "v_proj", "o_proj"), strict=True))
    if not five:
        names = {x: f"attention.{y}" for x, y in zip("qkv", ("query", "key", "value"), strict=True)}
        names["o"] = "output.dense"
    mlp = ("mlp.fc1", "mlp.fc2") if five else ("intermediate.dense", "output.dense")
    embeddings = "model.vit.embeddings."
    theirs = {
        f"{embeddings}cls_token": flat["cls_token"].reshape(1, 1, -1),
        f"{embeddings}position_embeddings": flat["pos_enc.pos"][None],
        f"{embeddings}patch_embeddings.projection.weight": flat["patch_embed.kernel"],
        f"{embeddings}patch_embeddings.projection.bias": flat["patch_embed.bias"],
        "model.vit.layernorm.weight": flat["final_norm_gamma"],
        "model.vit.layernorm.bias": flat["final_norm_beta"],
        "model.classifier.weight": flat["head.weights"],
        "model.classifier.bias": flat["head.bias"],
    }
    for i in range(case.config.num_layers):
        ours, them = f"encoder.layers.{i}.", layer.format(i=i)
        for letter, name in names.items():
            theirs[f"{them}attention.{name}.weight"] = flat[f"{ours}mha.w{letter}"].T
            theirs[f"{them}attention.{name}.bias"] = flat[f"{ours}mha.b{letter}"]
        for j, (name, norm) in enumerate(zip(mlp, ("before", "after"), strict=True), start=1):
            theirs[f"{them}{name}.weight"] = flat[f"{ours}ffn.w{j}"].T
            theirs[f"{them}{name}.bias"] = flat[f"{ours}ffn.b{j}"]
            theirs[f"{them}layernorm_{norm}.weight"] = flat[f"{ours}norm{j}_gamma"]
            theirs[f"{them}layernorm_{norm}.bias"] = flat[f"{ours}norm{j}_beta"]
    return theirs


def _with_one_qkv(
    case: Case, flat: Flat, *, layer: str, qkv: str, out: str, mlp: str, norm: str, patch: str,
    last: str, head: str,
) -> dict[str, Any]:  # fmt: skip
    theirs: dict[str, Any] = {
        f"{patch}.weight": flat["patch_embed.kernel"],
        f"{patch}.bias": flat["patch_embed.bias"],
        "pos_embed": flat["pos_enc.pos"][None],
        f"{head}.weight": flat["head.weights"],
        f"{head}.bias": flat["head.bias"],
    }
    if case.cls:
        theirs["cls_token"] = flat["cls_token"].reshape(1, 1, -1)
        theirs[f"{last}.weight"] = flat["final_norm_gamma"]
        theirs[f"{last}.bias"] = flat["final_norm_beta"]
    for i in range(case.config.num_layers):
        ours, them = f"encoder.layers.{i}.", layer.format(i=i)
        theirs[f"{them}{qkv}.weight"] = np.concatenate([flat[f"{ours}mha.w{x}"].T for x in "qkv"])
        theirs[f"{them}{out}.weight"] = flat[f"{ours}mha.wo"].T
        if case.family == "pre-norm":
            theirs[f"{them}{qkv}.bias"] = np.concatenate([flat[f"{ours}mha.b{x}"] for x in "qkv"])
            theirs[f"{them}{out}.bias"] = flat[f"{ours}mha.bo"]
        for j in (1, 2):
            theirs[f"{them}{mlp.format(j=j)}.weight"] = flat[f"{ours}ffn.w{j}"].T
            theirs[f"{them}{mlp.format(j=j)}.bias"] = flat[f"{ours}ffn.b{j}"]
            theirs[f"{them}{norm.format(j=j)}.weight"] = flat[f"{ours}norm{j}_gamma"]
            theirs[f"{them}{norm.format(j=j)}.bias"] = flat[f"{ours}norm{j}_beta"]
    return theirs
