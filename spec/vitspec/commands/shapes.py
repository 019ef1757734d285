"""`vitspec shapes`: every shape on the way through the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from vitspec import shapes as formulas
from vitspec.commands.common import USAGE, console, fail, require_writable
from vitspec.config import ViTConfig
from vitspec.shapes import LAYER, Model, ShapeRow


def shapes(
    config: Annotated[
        str, typer.Argument(help="base, large, a JSON file, or key=value,... on top of base.")
    ] = "base",
    batch: Annotated[int | None, typer.Option(min=1, help="The number of images.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the shapes to this file.")] = None,
) -> None:
    """Print every shape on the way through a ViT, by formula, and every parameter's."""
    from vitspec.config_text import parse_config
    from vitspec.testing.report import write_json

    require_writable("--json", json)
    try:
        model = parse_config(config)
        console.print(shapes_table(*model, batch=batch))
        if json is not None:
            write_json(json, shapes_json(*model, batch=batch))
    except (ValueError, OSError) as error:
        fail(USAGE, f"{config}: {error}")


# ---- showing -----------------------------------------------------------------------------------

SCHEMA = "vitspec-shapes/1"


def shapes_table(
    config: ViTConfig,
    spec: str,
    in_channels: int,
    height: int,
    width: int,
    batch: int | None = None,
) -> Group:
    """The shapes, the parameters and the totals, to print with rich; at most 80 columns wide."""
    model = Model(config, spec, in_channels, height, width)
    z = formulas.letters(*model, batch)
    heading = [
        f"{spec} on {z['C']} x {z['H']} x {z['W']}, patches of {z['ph']} x {z['pw']}, "
        f"stride {z['s']}, padding {z['p']}",
        f"T = {z['out_h']} x {z['out_w']} = {z['T']}, n = {z['n']}, D = {z['D']}, "
        f"{z['heads']} heads of d = {z['d']}, I = {z['I']}",
        f"F = {z['F']}, L = {z['L']}, K = {z['K']}" + ("" if batch is None else f", B = {batch}"),
    ]
    totals = [
        f"{formulas.parameter_count(*model):,} parameters; "
        f"{_scaled(formulas.forward_flops(*model, batch))}FLOP in the forward's matrix products",
        *(f"note: {remark}" for remark in formulas.remarks(*model)),
    ]
    return Group(
        *map(Text, heading),
        _table(formulas.shapes(*model, batch), config, "note"),
        _table(formulas.parameter_rows(*model), config, "numbers"),
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
                number = config.num_layers
                table.add_row(LAYER, "", "", f"{number:,} time{'s' * (number != 1)}")
        name = "  " + row.name.removeprefix(LAYER) if inside else row.name
        detail = f"{row.size:,}" if last == "numbers" else row.note
        table.add_row(name, " x ".join(map(str, row.shape)), row.formula, detail)
    return table


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
    model = Model(config, spec, in_channels, height, width)
    z = formulas.letters(*model, batch)
    return {
        "schema": SCHEMA,
        "spec": spec,
        "config": asdict(config),
        "image": {"in_channels": z["C"], "height": z["H"], "width": z["W"]},
        "batch": z.get("B"),
        "letters": z,
        "shapes": [
            _json(r, config) for r in formulas.shapes(*model, batch, every_layer=every_layer)
        ],
        "parameters": [
            _json(r, config) for r in formulas.parameter_rows(*model, every_layer=every_layer)
        ],
        "parameter_count": formulas.parameter_count(*model),
        "forward_flops": formulas.forward_flops(*model, batch),
        "remarks": formulas.remarks(*model),
    }


def _json(row: ShapeRow, config: ViTConfig) -> dict[str, Any]:
    return row._asdict() | {
        "shape": list(row.shape),
        "size": row.size,
        "times": formulas.times(row, config),
    }
