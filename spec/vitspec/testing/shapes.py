"""Every shape on the way through a ViT, and every parameter's, by formula: nothing is computed.

A formula is the axes of an array in the letters of `docs/specification.md` (with `heads` for the
number of heads), separated by commas; letters side by side are a product:

    windows    T, C ph pw    one patch a row: T rows of C * ph * pw pixels

The names are those of the specification's trace (`ViTSpec.trace`, the taps of an implementation)
and of the flat parameters; what the trace does not keep is named after its section there.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Group
from rich.table import Table
from rich.text import Text

from vitspec.config import (
    ViTConfig,
    natural_problem,
    vit_base_patch16_config,
    vit_large_patch16_config,
)
from vitspec.errors import NotWellFormed
from vitspec.geometry import patch_grid
from vitspec.models.parameters import check_model, check_parameter_count
from vitspec.testing.cases import MODELS

SCHEMA = "vitspec-shapes/1"

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

    >>> rows = shapes(vit_base_patch16_config, "vit-cls", 3, 224, 224)
    >>> [row[:3] for row in rows if row.name in ("windows", "embedded", "logits")]
    [('windows', (196, 768), 'T, C ph pw'), ('embedded', (197, 768), 'n, D'), ('logits', (1000,), 'K')]
    """  # noqa: E501
    sizes = letters(config, spec, in_channels, height, width, batch)
    cls = spec == "vit-cls"
    layers = _of_layers(_LAYER_ROWS, config.num_layers, every_layer)
    rows = [*_BEFORE, *(_CLS_SEQUENCE if cls else _SEQUENCE)]
    rows += [*layers, *(_CLS_END if cls else _MEAN_END)]
    prefix = "" if batch is None else "B, "
    return [_row(name, prefix + formula, note, sizes) for name, formula, note in rows]


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
    sizes = letters(config, spec, in_channels, height, width)
    rows = [*_PATCH_PARAMETERS, *(_CLS_PARAMETERS if spec == "vit-cls" else ()), *_POSITIONS]
    rows += [*_of_layers(_LAYER_PARAMETERS, config.num_layers, every_layer), *_HEAD_PARAMETERS]
    return [_row(name, formula, note, sizes) for name, formula, note in rows]


def letters(
    config: ViTConfig,
    spec: str,
    in_channels: int,
    height: int,
    width: int,
    batch: int | None = None,
) -> dict[str, int]:
    """The value of every letter of a formula; errors as for `shapes`."""
    if spec not in tuple(MODELS):
        raise ValueError(f"spec: expected one of {', '.join(MODELS)}, got {spec!r}")
    cls = spec == "vit-cls"
    C, H, W = check_model(config, in_channels, height, width, cls=cls)
    check_parameter_count(config, C, H, W, cls=cls)
    if batch is not None and (problem := natural_problem(batch)):
        raise NotWellFormed(f"batch = {batch!r}", [f"nat: batch {problem}"])
    out_h, out_w = patch_grid(config, H, W)
    return ({} if batch is None else {"B": int(batch)}) | {
        "C": C,
        "H": H,
        "W": W,
        "ph": config.patch_h,
        "pw": config.patch_w,
        "s": config.stride,
        "p": config.padding,
        "H+2p": H + 2 * config.padding,
        "W+2p": W + 2 * config.padding,
        "out_h": out_h,
        "out_w": out_w,
        "T": out_h * out_w,
        "n": out_h * out_w + cls,
        "D": config.embed_dim,
        "F": config.hidden_dim,
        "heads": config.head_count,
        "d": config.head_dim,
        "I": config.inner_dim,
        "L": config.num_layers,
        "K": config.num_classes,
    }


def _of_layers(rows: _Rows, num_layers: int, every_layer: bool) -> _Rows:
    if every_layer:
        prefixes = [LAYER.format(i=i) for i in range(num_layers)]
    else:
        prefixes = [LAYER] if num_layers else []
    return [(prefix + name, formula, note) for prefix in prefixes for name, formula, note in rows]


def _row(name: str, formula: str, note: str, sizes: dict[str, int]) -> ShapeRow:
    shape = (math.prod(sizes[x] for x in axis.split()) for axis in formula.split(", "))
    return ShapeRow(name, tuple(shape), formula, note)


# ---- totals and remarks ------------------------------------------------------------------------


def parameter_count(config: ViTConfig, spec: str, in_channels: int, height: int, width: int) -> int:
    """How many numbers the parameters are.

    >>> parameter_count(vit_base_patch16_config, "vit", 3, 224, 224)
    86527720
    """
    rows = parameter_rows(config, spec, in_channels, height, width)
    return sum(row.size * _times(row, config) for row in rows)


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
        uncovered = [
            f"{m - _covered(m, k, out, config)} of {m} {axis}"
            for m, k, out, axis in (
                (z["H"], z["ph"], z["out_h"], "rows"),
                (z["W"], z["pw"], z["out_w"], "columns"),
            )
            if _covered(m, k, out, config) < m
        ]
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


def _times(row: ShapeRow, config: ViTConfig) -> int:
    """How many arrays a row stands for."""
    return config.num_layers if row.name.startswith(LAYER) else 1


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


# ---- output ------------------------------------------------------------------------------------


def shapes_table(
    config: ViTConfig,
    spec: str,
    in_channels: int,
    height: int,
    width: int,
    batch: int | None = None,
) -> Group:
    """The shapes, the parameters and the totals, to print with rich; at most 80 columns wide."""
    model = (config, spec, in_channels, height, width)
    z = letters(*model, batch)
    heading = [
        f"{spec} on {z['C']} x {z['H']} x {z['W']}, patches of {z['ph']} x {z['pw']}, "
        f"stride {z['s']}, padding {z['p']}",
        f"T = {z['out_h']} x {z['out_w']} = {z['T']}, n = {z['n']}, D = {z['D']}, "
        f"{z['heads']} heads of d = {z['d']}, I = {z['I']}",
        f"F = {z['F']}, L = {z['L']}, K = {z['K']}" + ("" if batch is None else f", B = {batch}"),
    ]
    totals = [
        f"{parameter_count(*model):,} parameters; "
        f"{_scaled(forward_flops(*model, batch))}FLOP in the forward's matrix products",
        *(f"note: {remark}" for remark in remarks(*model)),
    ]
    return Group(
        *map(Text, heading),
        _table(shapes(*model, batch), config, "note"),
        _table(parameter_rows(*model), config, "numbers"),
        *map(Text, totals),
    )


def _table(rows: Sequence[ShapeRow], config: ViTConfig, last: str) -> Table:
    """Rows with the layers' in a section of their own; `last` is the heading of the last column."""
    table = Table()
    table.add_column("parameter" if last == "numbers" else "array", overflow="fold")
    table.add_column("shape", overflow="fold")
    table.add_column("axes", overflow="fold")
    table.add_column(last, justify="right" if last == "numbers" else "left", overflow="fold")
    inside = False
    for row in rows:
        if row.name.startswith(LAYER) != inside:
            inside = not inside
            table.add_section()
            if inside:
                times = f"{config.num_layers:,} time{'s' * (config.num_layers != 1)}"
                table.add_row(LAYER, "", "", times)
        name = "  " + row.name.removeprefix(LAYER) if inside else row.name
        detail = f"{row.size:,}" if last == "numbers" else row.note
        table.add_row(name, _shown(row.shape), row.formula, detail)
    return table


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _scaled(number: int) -> str:
    """With a prefix: 34.7 G."""
    for exponent, prefix in ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 10**exponent:
            return f"{number / 10**exponent:.3g} {prefix}"
    return f"{number} "


def shapes_json(
    config: ViTConfig,
    spec: str,
    in_channels: int,
    height: int,
    width: int,
    batch: int | None = None,
    *,
    every_layer: bool = False,
) -> dict[str, Any]:
    """The same as JSON-serialisable data, whose arrays have their full names."""
    model = (config, spec, in_channels, height, width)
    z = letters(*model, batch)
    return {
        "schema": SCHEMA,
        "spec": spec,
        "config": asdict(config),
        "image": {"in_channels": z["C"], "height": z["H"], "width": z["W"]},
        "batch": z.get("B"),
        "letters": z,
        "shapes": [_json(r, config) for r in shapes(*model, batch, every_layer=every_layer)],
        "parameters": [_json(r, config) for r in parameter_rows(*model, every_layer=every_layer)],
        "parameter_count": parameter_count(*model),
        "forward_flops": forward_flops(*model, batch),
        "remarks": remarks(*model),
    }


def _json(row: ShapeRow, config: ViTConfig) -> dict[str, Any]:
    return row._asdict() | {
        "shape": list(row.shape),
        "size": row.size,
        "times": _times(row, config),
    }


# ---- the command's argument --------------------------------------------------------------------

PRESETS = {"base": vit_base_patch16_config, "large": vit_large_patch16_config}
_SIZE = {"in_channels": 3, "height": 224, "width": 224}
_KNOWN = (*(field.name for field in fields(ViTConfig)), *_SIZE, "spec")
_MAX_BYTES = 10**6
"""Of a configuration file: a larger one is something else."""


def parse_config(text: str) -> Model:
    """The model that a command's argument describes.

    It is `base` or `large` (Lean's named configurations); or changes to one, as
    `key=value,key=value` or `large,key=value`; or the path of a JSON file with an object of such
    keys. The keys are the fields of `ViTConfig`, `in_channels`, `height`, `width` (3 x 224 x 224 if
    absent) and `spec` (`vit` if absent); other fields are those of `base`.

    Raises:
        NotWellFormed: there is no such model; every broken rule is listed.
        ValueError: the text, or the file, cannot be read as one.

    >>> parse_config("large,num_classes=10,spec=vit-cls")[1:]
    ('vit-cls', 3, 224, 224)
    """
    values = _read_json(Path(text)) if _is_path(text) else _read_text(text)
    if unknown := [name for name in values if name not in _KNOWN]:
        raise ValueError(
            f"unknown field {', '.join(map(_with_hint, unknown))}; known are {', '.join(_KNOWN)}"
        )
    spec = values.pop("spec", "vit")
    if spec not in tuple(MODELS):
        raise ValueError(f"spec: expected one of {', '.join(MODELS)}, got {spec!r}")
    problems = {name: natural_problem(value) for name, value in values.items()}
    if any(problems.values()):
        broken = [f"nat: {name} {problem}" for name, problem in problems.items() if problem]
        raise NotWellFormed(text, broken)
    size = {name: values.pop(name, default) for name, default in _SIZE.items()}
    model = Model(ViTConfig(**values), spec, **size)
    check_model(model.config, *model[2:], cls=spec == "vit-cls")
    return model


def _with_hint(name: str) -> str:
    hint = difflib.get_close_matches(name, _KNOWN, n=1)
    return f"{name!r} (did you mean {hint[0]}?)" if hint else repr(name)


def _is_path(text: str) -> bool:
    if text.endswith(".json"):
        return True
    if "=" in text or text.split(",")[0] in PRESETS:  # whatever files are called so
        return False
    try:
        return bool(text) and Path(text).exists()
    except (OSError, ValueError):  # too long for a path, or a null byte
        return False


def _read_text(text: str) -> dict[str, Any]:
    first, *rest = [item.strip() for item in text.split(",")]
    if first not in PRESETS:
        first, rest = "base", [first, *rest]
    changes: dict[str, Any] = {}
    for item in rest:
        key, equals, value = (part.strip() for part in item.partition("="))
        if not (key and equals and value):
            raise ValueError(
                f"expected {' or '.join(PRESETS)}, key=value,key=value or a JSON file; "
                f"got {item!r}" + (f" in {text!r}" if item != text else "")
            )
        if key in changes:
            raise ValueError(f"{key} is given twice, in {text!r}")
        changes[key] = value if key == "spec" else _number(value)
    return asdict(PRESETS[first]) | changes


def _number(text: str) -> Any:
    """The integer that is written, or else the text, which `natural_problem` will complain of."""
    try:
        return int(text)
    except ValueError:
        return text


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{path}: more than {_MAX_BYTES:,} bytes, which is no configuration")
    try:
        values = json.loads(path.read_text("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, or nested without end
        raise ValueError(f"{path}: not a JSON file of a configuration: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected an object of fields, got {type(values).__name__}")
    return values


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(
            f"given twice: {', '.join(sorted({n for n in names if names.count(n) > 1}))}"
        )
    return dict(pairs)
