"""Every shape on the way through a ViT, and every parameter's, by formula: nothing is computed.

A formula is the axes of an array in the letters of `docs/specification.md` (with `heads` for the
number of heads), separated by commas; letters side by side are a product:

    windows    T, C ph pw    one patch a row: T rows of C * ph * pw pixels

The names are those of the specification's trace (`ViTSpec.trace`, the taps of an implementation)
and of the flat parameters; what the trace does not keep is named after its section there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from vitspec.config import ViTConfig, natural_problem
from vitspec.errors import NotWellFormed
from vitspec.geometry import patch_grid
from vitspec.models.parameters import check_model, check_parameter_count

SPECS = ("vit", "vit-cls")
"""The Lean mirror's models: `ViTSpec` and `ViTClsSpec`."""

LAYER = "encoder.layers.{i}."
"""How the names of a layer's arrays begin, for any layer i."""


class ShapeRow(NamedTuple):
    """One array: its name, shape, formula, and what it is."""

    name: str
    shape: tuple[int, ...]
    formula: str
    note: str = ""

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


class Model(NamedTuple):
    """What decides every shape; the first arguments of the functions of this module."""

    config: ViTConfig
    spec: str
    in_channels: int
    height: int
    width: int


_Rows = Sequence[tuple[str, str, str]]

_BEFORE: _Rows = (
    ("image", "C, H, W", "channels first"),
    ("padded", "C, H+2p, W+2p", "p zeros all around"),
    ("windows", "T, C ph pw", "one patch a row"),
    ("grid", "D, out_h, out_w", "kernel, then bias"),
    ("tokens", "T, D", "row i out_w + j"),
)
_SEQUENCE: _Rows = (("embedded", "n, D", "positions added"),)
_CLS_SEQUENCE: _Rows = (("sequence", "n, D", "CLS token as row 0"), *_SEQUENCE)
_LAYER_ROWS: _Rows = (
    ("mha.q", "heads, n, d", "by head"),
    ("mha.k", "heads, n, d", ""),
    ("mha.v", "heads, n, d", ""),
    ("mha.scores", "heads, n, n", "q k^T / sqrt(d)"),
    ("mha.weights", "heads, n, n", "softmax of each row"),
    ("mha.concat", "n, I", "heads side by side"),
    ("mha.output", "n, D", ""),
    ("residual1", "n, D", "input + mha"),
    ("normed1", "n, D", "layer norm"),
    ("ffn.hidden", "n, F", ""),
    ("ffn.activated", "n, F", "ReLU"),
    ("ffn.output", "n, D", ""),
    ("residual2", "n, D", "normed1 + ffn"),
    ("output", "n, D", "layer norm"),
)
_MEAN_END: _Rows = (("encoded", "n, D", ""), ("pooled", "D", "mean of rows"), ("logits", "K", ""))
_CLS_END: _Rows = (("encoded", "n, D", ""), ("pooled", "D", "row 0"), ("logits", "K", ""))

_PATCH_PARAMETERS: _Rows = (
    ("patch_embed.kernel", "D, C, ph, pw", "(out, in, ...)"),
    ("patch_embed.bias", "D", ""),
)
_CLS_PARAMETERS: _Rows = (("cls_token", "D", ""),)
_POSITIONS: _Rows = (("pos_enc.pos", "n, D", ""),)
_LAYER_PARAMETERS: _Rows = (
    ("mha.wq", "D, I", "(in, out)"),
    ("mha.wk", "D, I", "(in, out)"),
    ("mha.wv", "D, I", "(in, out)"),
    ("mha.wo", "I, D", "(in, out)"),
    ("ffn.w1", "D, F", "(in, out)"),
    ("ffn.w2", "F, D", "(in, out)"),
    ("ffn.b1", "F", ""),
    ("ffn.b2", "D", ""),
    ("norm1_gamma", "D", ""),
    ("norm1_beta", "D", ""),
    ("norm2_gamma", "D", ""),
    ("norm2_beta", "D", ""),
)
_HEAD_PARAMETERS: _Rows = (("head.weights", "K, D", "(out, in)"), ("head.bias", "K", ""))


# ---- shapes ------------------------------------------------------------------------------------


def shapes(
    config: ViTConfig,
    spec: str,
    in_channels: int,
    height: int,
    width: int,
    batch: int | None = None,
    *,
    every_layer: bool = False,
) -> list[ShapeRow]:
    """The shape of every array that the forward makes, in order.

    Args:
        config: the configuration.
        spec: "vit" or "vit-cls".
        in_channels: the image's channels.
        height: the image's height.
        width: the image's width.
        batch: adds a first axis B.
        every_layer: list each layer, and not one for all of them (`encoder.layers.{i}.`).

    Raises:
        NotWellFormed: there is no such model; every broken rule is listed.
        InvalidParameters: it would be absurdly large.

    >>> rows = shapes(ViTConfig(), "vit-cls", 3, 224, 224)
    >>> [row[:3] for row in rows if row.name in ("windows", "embedded", "logits")]
    [('windows', (196, 768), 'T, C ph pw'), ('embedded', (197, 768), 'n, D'), ('logits', (1000,), 'K')]
    """  # noqa: E501
    z = letters(config, spec, in_channels, height, width, batch)
    sequence, end = (_CLS_SEQUENCE, _CLS_END) if has_cls(spec) else (_SEQUENCE, _MEAN_END)
    layers = _of_layers(_LAYER_ROWS, config.num_layers, every_layer)
    return _computed([*_BEFORE, *sequence, *layers, *end], z)


def parameter_rows(
    config: ViTConfig,
    spec: str,
    in_channels: int,
    height: int,
    width: int,
    *,
    every_layer: bool = False,
) -> list[ShapeRow]:
    """The shape of every parameter by flat name; arguments and errors as for `shapes`."""
    z = letters(config, spec, in_channels, height, width)
    cls = _CLS_PARAMETERS if has_cls(spec) else ()
    layers = _of_layers(_LAYER_PARAMETERS, config.num_layers, every_layer)
    return _computed([*_PATCH_PARAMETERS, *cls, *_POSITIONS, *layers, *_HEAD_PARAMETERS], z)


def letters(
    config: ViTConfig,
    spec: str,
    in_channels: int,
    height: int,
    width: int,
    batch: int | None = None,
) -> dict[str, int]:
    """The value of every letter of a formula; errors as for `shapes`."""
    cls = has_cls(spec)
    C, H, W = check_model(config, in_channels, height, width, cls=cls)
    check_parameter_count(config, C, H, W, cls=cls)
    if batch is not None and (problem := natural_problem(batch)):
        raise NotWellFormed(f"batch = {batch!r}", [f"nat: batch {problem}"])
    out_h, out_w = patch_grid(config, H, W)
    return ({} if batch is None else {"B": int(batch)}) | {
        "C": C, "H": H, "W": W,
        "ph": config.patch_h, "pw": config.patch_w, "s": config.stride, "p": config.padding,
        "H+2p": H + 2 * config.padding, "W+2p": W + 2 * config.padding,
        "out_h": out_h, "out_w": out_w, "T": out_h * out_w, "n": out_h * out_w + cls,
        "D": config.embed_dim, "F": config.hidden_dim,
        "heads": config.head_count, "d": config.head_dim, "I": config.inner_dim,
        "L": config.num_layers, "K": config.num_classes,
    }  # fmt: skip


def _of_layers(rows: _Rows, num_layers: int, every_layer: bool) -> _Rows:
    if every_layer:
        prefixes = [LAYER.format(i=i) for i in range(num_layers)]
    else:
        prefixes = [LAYER] if num_layers else []
    return [(prefix + name, formula, note) for prefix in prefixes for name, formula, note in rows]


def _computed(rows: Iterable[tuple[str, str, str]], z: dict[str, int]) -> list[ShapeRow]:
    """The rows with their shapes; if there is a batch, its axis comes first."""
    prefix = "B, " if "B" in z else ""
    found = []
    for name, rest, note in rows:
        formula = prefix + rest
        shape = (math.prod(z[letter] for letter in axis.split()) for axis in formula.split(", "))
        found.append(ShapeRow(name, tuple(shape), formula, note))
    return found


def has_cls(spec: Any) -> bool:
    """Whether the model of this name has a CLS token.

    Raises:
        ValueError: there is no model of this name.
    """
    if spec not in tuple(SPECS):
        raise ValueError(f"spec: expected one of {', '.join(SPECS)}, got {spec!r}")
    return spec == "vit-cls"


# ---- totals and remarks ------------------------------------------------------------------------


def parameter_count(config: ViTConfig, spec: str, in_channels: int, height: int, width: int) -> int:
    """How many numbers the parameters are.

    >>> parameter_count(ViTConfig(), "vit", 3, 224, 224)
    86527720
    """
    rows = parameter_rows(config, spec, in_channels, height, width)
    return sum(row.size * times(row, config) for row in rows)


def times(row: ShapeRow, config: ViTConfig) -> int:
    """How many arrays a row stands for."""
    return config.num_layers if row.name.startswith(LAYER) else 1


def forward_flops(
    config: ViTConfig,
    spec: str,
    in_channels: int,
    height: int,
    width: int,
    batch: int | None = None,
) -> int:
    """The floating-point operations of the forward's matrix products.

    A product of (m, k) and (k, n) is 2 m k n. What is done entry by entry (softmax, layer norms,
    ReLU, biases, residuals) does not count.
    """
    z = letters(config, spec, in_channels, height, width, batch)
    embed = z["T"] * z["D"] * z["C"] * z["ph"] * z["pw"]
    project = 4 * z["n"] * z["D"] * z["I"]
    attend = 2 * z["heads"] * z["n"] * z["n"] * z["d"]
    feed_forward = 2 * z["n"] * z["D"] * z["F"]
    head = z["K"] * z["D"]
    layers = z["L"] * (project + attend + feed_forward)
    return 2 * z.get("B", 1) * (embed + layers + head)


def remarks(config: ViTConfig, spec: str, in_channels: int, height: int, width: int) -> list[str]:
    """What is unusual about these shapes: the edges of the definitions that this model is at."""
    z = letters(config, spec, in_channels, height, width)
    found = []
    if z["T"] == 0:
        found.append("no patch fits into the padded image: T = 0, the CLS token is alone")
    else:
        rows = z["H"] - _covered(z["H"], z["ph"], z["out_h"], config)
        columns = z["W"] - _covered(z["W"], z["pw"], z["out_w"], config)
        uncovered = [f"{rows} of {z['H']} rows"] * (rows > 0)
        uncovered += [f"{columns} of {z['W']} columns"] * (columns > 0)
        if uncovered:
            found.append(f"no window covers {' and '.join(uncovered)}: their gradient is 0")
        if z["p"] >= min(z["ph"], z["pw"]):
            found.append("some windows lie wholly in the padding: their token is the bias")
    if z["d"] == 0:
        found.append("more heads than D: d = I = 0, attention is exactly 0")
    elif z["I"] < z["D"]:
        found.append(
            f"{z['heads']} heads do not divide D = {z['D']}: attention is I = {z['I']} wide"
        )
    if z["n"] == 1 and z["L"]:
        found.append("one row: attention weights are 1, the gradients of wq and wk are 0")
    if z["D"] == 1 and z["L"]:
        found.append("D = 1: a layer norm returns its beta, and passes no gradient back")
    if z["L"] == 0:
        found.append("no layers: the encoder is the identity")
    return found


def _covered(extent: int, patch: int, positions: int, config: ViTConfig) -> int:
    """How many of an axis's pixels some window covers."""
    s, p = config.stride, config.padding

    def below(end: int) -> int:
        """How many of the padded axis's first `end` pixels some window covers."""
        if s <= patch:
            return min(end, (positions - 1) * s + patch)
        whole = min(end // s, positions)
        return whole * patch + (min(end - whole * s, patch) if whole < positions else 0)

    return below(p + extent) - below(p)
