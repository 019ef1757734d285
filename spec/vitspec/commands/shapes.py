"""`vitspec shapes`: every shape on the way through the network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitspec.commands.common import USAGE, console, fail, require_writable


def shapes(
    config: Annotated[
        str, typer.Argument(help="base, large, a JSON file, or key=value,... on top of base.")
    ] = "base",
    batch: Annotated[int | None, typer.Option(min=1, help="The number of images.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the shapes to this file.")] = None,
) -> None:
    """Print every shape on the way through a ViT, by formula, and every parameter's."""
    from vitspec.testing.config_text import parse_config
    from vitspec.testing.report import write_json
    from vitspec.testing.shapes_report import shapes_json, shapes_table

    require_writable("--json", json)
    try:
        model = parse_config(config)
        console.print(shapes_table(*model, batch=batch))
        if json is not None:
            write_json(json, shapes_json(*model, batch=batch))
    except (ValueError, OSError) as error:
        fail(USAGE, f"{config}: {error}")
