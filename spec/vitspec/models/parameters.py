"""The parameters of a ViT by flat name: their shapes, fresh values, and the records made of them.

| name | shape |
| --- | --- |
| `patch_embed.kernel`, `patch_embed.bias` | (D, C, patch_h, patch_w), (D,) |
| `cls_token` (ViTClsSpec only) | (D,) |
| `pos_enc.pos` | (T, D); (T + 1, D) with CLS |
| `encoder.layers.{i}.mha.wq`, `.wk`, `.wv`; `.wo` | (D, I); (I, D) |
| `encoder.layers.{i}.ffn.w1`, `.w2`, `.b1`, `.b2` | (D, F), (F, D), (F,), (D,) |
| `encoder.layers.{i}.norm1_gamma`, `.norm1_beta`, `.norm2_gamma`, `.norm2_beta` | (D,) |
| `head.weights`, `head.bias` | (K, D), (K,) |
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from vitspec.config import ViTConfig, natural_problem
from vitspec.errors import InvalidParameters, NotWellFormed
from vitspec.geometry import patch_count
from vitspec.layers.feed_forward import FeedForward
from vitspec.layers.multi_head_attention import MultiHeadAttention
from vitspec.models.transformer import TransformerEncoder, TransformerEncoderLayer
from vitspec.typing import Array

MAX_PARAMETERS = 10**12
MAX_LAYERS = 10**5
"""Beyond these (terabytes, or a million names) a field is far more likely to be mistaken."""


def check_model(
    config: ViTConfig, in_channels: Any, height: Any, width: Any, *, cls: bool
) -> tuple[int, int, int]:
    """The image's size as integers; raise `NotWellFormed` unless such a model can exist.

    To the rules of the configuration it adds `nat` for the image's size, `h_inC` (at least one
    channel) and, for the mean-pooling model, `h_tok` (at least one token). Lean demands `h_tok`
    when the forward runs; here there is no model without it. All broken rules are listed.
    """
    if not isinstance(config, ViTConfig):
        raise NotWellFormed(
            f"config = {config!r}", [f"config: expected a ViTConfig, got {type(config).__name__}"]
        )
    image = {"in_channels": in_channels, "height": height, "width": width}
    problems = {name: natural_problem(value) for name, value in image.items()}
    violations = [f"nat: {name} {problem}" for name, problem in problems.items() if problem]
    violations += config.violations()
    subject = repr(config)
    if not any(problems.values()):
        C, H, W = (operator.index(value) for value in image.values())
        subject += f" for an image of {C} x {H} x {W}"
        if C == 0:
            violations.append("h_inC: in_channels must not be 0")
        if not cls and not config.violations() and patch_count(config, H, W) == 0:
            violations.append(
                f"h_tok: mean pooling needs at least one token, but no patch fits into {H} x {W} "
                f"(stride {config.stride}, padding {config.padding})"
            )
    if violations:
        raise NotWellFormed(subject, violations)
    return C, H, W


def parameter_shapes(
    config: ViTConfig,
    in_channels: int,
    height: int,
    width: int,
    *,
    cls: bool,
    num_layers: int | None = None,
) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter by flat name, in the order of the records.

    Args:
        config: a well-formed configuration.
        in_channels: the image's channels.
        height: the image's height.
        width: the image's width.
        cls: whether for `ViTClsSpec`.
        num_layers: the number of layers, if not the configuration's.
    """
    D, F, I = config.embed_dim, config.hidden_dim, config.inner_dim  # noqa: E741
    layer: dict[str, tuple[int, ...]] = {
        "mha.wq": (D, I), "mha.wk": (D, I), "mha.wv": (D, I), "mha.wo": (I, D),
        "ffn.w1": (D, F), "ffn.w2": (F, D), "ffn.b1": (F,), "ffn.b2": (D,),
        "norm1_gamma": (D,), "norm1_beta": (D,), "norm2_gamma": (D,), "norm2_beta": (D,),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.kernel": (D, in_channels, config.patch_h, config.patch_w),
        "patch_embed.bias": (D,),
    }
    if cls:
        shapes["cls_token"] = (D,)
    shapes["pos_enc.pos"] = (patch_count(config, height, width) + cls, D)
    for i in range(config.num_layers if num_layers is None else num_layers):
        shapes |= {f"encoder.layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes | {"head.weights": (config.num_classes, D), "head.bias": (config.num_classes,)}


def check_parameter_count(
    config: ViTConfig, in_channels: int, height: int, width: int, *, cls: bool
) -> None:
    """Raise `InvalidParameters` beyond `MAX_PARAMETERS` numbers or `MAX_LAYERS` layers."""

    def count(num_layers: int) -> int:
        shapes = parameter_shapes(
            config, in_channels, height, width, cls=cls, num_layers=num_layers
        )
        return sum(math.prod(shape) for shape in shapes.values())

    total = count(0) + config.num_layers * (count(1) - count(0))  # without listing every layer
    counts = [(config.num_layers, MAX_LAYERS, "layers"), (total, MAX_PARAMETERS, "numbers")]
    problems = [
        f"expected at most {most:,} {what}, got {n:,}" for n, most, what in counts if n > most
    ]
    if problems:
        raise InvalidParameters("The parameters", problems)


def random_parameters(
    shapes: Mapping[str, tuple[int, ...]], rng: np.random.Generator, dtype: np.dtype
) -> dict[str, Array]:
    """Fresh values in which nothing can hide: no zeros, no ones, no two entries alike.

    Weights are normal with variance 1 / fan-in, gammas normal about 1, the rest about 0 (standard
    deviation 0.1; positions and CLS token 0.5).
    """
    return {name: _draw(name, shape, rng).astype(dtype) for name, shape in shapes.items()}


def _draw(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    values = rng.standard_normal(shape)
    if len(shape) == 1:
        if name.endswith("gamma"):
            return 1 + 0.1 * values
        return (0.5 if name == "cls_token" else 0.1) * values
    if name == "pos_enc.pos":
        return 0.5 * values
    # Matrices are stored (in, out), but for the kernel (out, in, ...) and the head (out, in).
    out_first = name in ("patch_embed.kernel", "head.weights")
    fan_in = int(np.prod(shape[1:])) if out_first else shape[0]
    return values / np.sqrt(max(fan_in, 1))


def build_encoder(config: ViTConfig, flat: Mapping[str, Array]) -> TransformerEncoder:
    """The encoder record made of the flat arrays; their names and shapes are already checked."""

    def layer(i: int) -> TransformerEncoderLayer:
        def get(name: str) -> Array:
            return flat[f"encoder.layers.{i}.{name}"]

        mha = {name: get(f"mha.{name}") for name in ("wq", "wk", "wv", "wo")}
        ffn = {name: get(f"ffn.{name}") for name in ("w1", "w2", "b1", "b2")}
        norms = ("norm1_gamma", "norm1_beta", "norm2_gamma", "norm2_beta")
        return TransformerEncoderLayer(
            mha=MultiHeadAttention(head_count=config.head_count, **mha),
            ffn=FeedForward(**ffn),
            **{name: get(name) for name in norms},
        )

    return TransformerEncoder(layers=tuple(layer(i) for i in range(config.num_layers)))
