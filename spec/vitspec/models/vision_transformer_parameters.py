"""The parameters of a `VisionTransformer` by flat name: their shapes, fresh values, their records.

| name | shape | if |
| --- | --- | --- |
| `patch_embed.kernel`, `patch_embed.bias` | (D, C, patch_h, patch_w), (D,) | |
| `cls_token` | (D,) | cls_token |
| `mask_token` | (D,) | mask_token |
| `pos_enc.pos` | (T, D); (T + 1, D) with CLS, whose position is row 0 | |
| `encoder.layers.{i}.mha.wq`, `.wk`, `.wv`, `.wo` | (D, D), stored (in, out) | |
| `encoder.layers.{i}.mha.bq`, `.bk`, `.bv` | (D,) | qkv_bias |
| `encoder.layers.{i}.mha.bo` | (D,) | output_bias |
| `encoder.layers.{i}.ffn.w1`, `.w2`, `.b1`, `.b2` | (D, F), (F, D), (F,), (D,) | |
| `encoder.layers.{i}.norm1_gamma`, `.norm1_beta`, `.norm2_gamma`, `.norm2_beta` | (D,) | |
| `encoder.layers.{i}.layer_scale1`, `.layer_scale2` | (D,) | layer_scale |
| `final_norm_gamma`, `final_norm_beta` | (D,) | |
| `head.weights`, `head.bias` | (K, D), (K, 2 D) for pool "cls_mean"; (K,) | num_classes > 0 |
| `pooler.weights`, `pooler.bias` | (P, D), (P,) | pooler_dim > 0 |
| `decoder.weights`, `decoder.bias` | (C S S, D), (C S S,) | decoder_stride > 0 |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vitspec.layers.linear import LinearSpec
from vitspec.layers.mlp import Mlp
from vitspec.layers.patch_embedding import PatchEmbedding
from vitspec.layers.self_attention import SelfAttention
from vitspec.models.block import Block, BlockEncoder
from vitspec.typing import Array
from vitspec.vision_transformer_config import VisionTransformerConfig

Shapes = dict[str, tuple[int, ...]]


def parameter_shapes(config: VisionTransformerConfig) -> Shapes:
    """The shape of every parameter by flat name, in the order of the records."""
    c, D = config, config.embed_dim
    shapes: Shapes = {
        "patch_embed.kernel": (D, c.in_channels, c.patch_h, c.patch_w),
        "patch_embed.bias": (D,),
    }
    shapes |= {"cls_token": (D,)} if c.cls_token else {}
    shapes |= {"mask_token": (D,)} if c.mask_token else {}
    shapes |= {"pos_enc.pos": (c.token_count, D)}
    layer = layer_shapes(c)
    for i in range(c.num_layers):
        shapes |= {f"encoder.layers.{i}.{name}": shape for name, shape in layer.items()}
    shapes |= {"final_norm_gamma": (D,), "final_norm_beta": (D,)}
    for name, (rows, columns) in head_shapes(c).items():
        shapes |= {f"{name}.weights": (rows, columns), f"{name}.bias": (rows,)}
    return shapes


def layer_shapes(config: VisionTransformerConfig) -> Shapes:
    """The shapes of the parameters of one block."""
    c, D, F = config, config.embed_dim, config.hidden_dim
    shapes: Shapes = {f"mha.w{letter}": (D, D) for letter in "qkvo"}
    shapes |= {f"mha.b{letter}": (D,) for letter in "qkv" if c.qkv_bias}
    shapes |= {"mha.bo": (D,)} if c.output_bias else {}
    shapes |= {"ffn.w1": (D, F), "ffn.w2": (F, D), "ffn.b1": (F,), "ffn.b2": (D,)}
    norms = ("norm1_gamma", "norm1_beta", "norm2_gamma", "norm2_beta")
    shapes |= dict.fromkeys(norms, (D,))
    return shapes | (dict.fromkeys(("layer_scale1", "layer_scale2"), (D,)) if c.layer_scale else {})


def head_shapes(config: VisionTransformerConfig) -> dict[str, tuple[int, int]]:
    """The shapes (out, in) of the weights of the heads that there are."""
    c, D, S = config, config.embed_dim, config.decoder_stride
    every = {
        "head": (c.num_classes, c.pooled_dim),
        "pooler": (c.pooler_dim, D),
        "decoder": (c.in_channels * S * S, D),
    }
    return {name: shape for name, shape in every.items() if shape[0]}


def random_parameters(
    config: VisionTransformerConfig, rng: np.random.Generator, dtype: np.dtype
) -> dict[str, Array]:
    """Fresh values in which nothing can hide: no zeros, no ones, no two entries alike.

    Weights are normal with variance 1 / fan-in, gammas and scales normal about 1, the rest about 0
    (standard deviation 0.1; positions and tokens 0.5).
    """
    shapes = parameter_shapes(config)
    return {name: _draw(name, shape, rng).astype(dtype) for name, shape in shapes.items()}


def _draw(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    values = rng.standard_normal(shape)
    if name.endswith("gamma") or "layer_scale" in name:
        return 1 + 0.1 * values
    if name in ("cls_token", "mask_token", "pos_enc.pos"):
        return 0.5 * values
    if len(shape) == 1:
        return 0.1 * values
    # Matrices are stored (in, out) in the blocks, and (out, in, ...) elsewhere.
    fan_in = shape[0] if name.startswith("encoder") else int(np.prod(shape[1:]))
    return values / np.sqrt(fan_in)


def build_parts(config: VisionTransformerConfig, flat: Mapping[str, Array]) -> dict[str, Any]:
    """The records made of the flat arrays, whose names and shapes are already checked."""
    heads = {
        name: LinearSpec(weights=flat[f"{name}.weights"], bias=flat[f"{name}.bias"])
        for name in head_shapes(config)
    }
    return {
        "patch_embed": PatchEmbedding(
            kernel=flat["patch_embed.kernel"], bias=flat["patch_embed.bias"]
        ),
        "cls_token": flat.get("cls_token"),
        "mask_token": flat.get("mask_token"),
        "pos": flat["pos_enc.pos"],
        "encoder": BlockEncoder(tuple(_block(config, flat, i) for i in range(config.num_layers))),
        "norm_gamma": flat["final_norm_gamma"],
        "norm_beta": flat["final_norm_beta"],
        "head": heads.get("head"),
        "pooler": heads.get("pooler"),
        "decoder": heads.get("decoder"),
    }


def _block(config: VisionTransformerConfig, flat: Mapping[str, Array], i: int) -> Block:
    own = {name: flat[f"encoder.layers.{i}.{name}"] for name in layer_shapes(config)}

    def part(prefix: str) -> dict[str, Array]:
        return {n.removeprefix(prefix): own[n] for n in own if n.startswith(prefix)}

    rest = {name: leaf for name, leaf in own.items() if "." not in name}
    return Block(
        epsilon=repr(float(config.layer_norm_eps)),
        mha=SelfAttention(head_count=config.head_count, **part("mha.")),
        ffn=Mlp(activation=config.activation, **part("ffn.")),
        **rest,
    )
