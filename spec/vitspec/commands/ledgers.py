"""`vitspec deviations` and `vitspec catalogue`: what the pages of those names are made of."""

from __future__ import annotations

from typing import Annotated

import typer

from vitspec.commands.common import USAGE, console, fail


def deviations() -> None:
    """Print the figures of docs/deviations.md: where TorchLean departs from itself."""
    from vitspec.upstream.figures import deviation_report

    console.print(deviation_report(), highlight=False, soft_wrap=True, markup=False)


def catalogue(
    name: Annotated[str | None, typer.Argument(help="One mistake; all, if none is named.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/catalogue.md.")] = False,
) -> None:
    """List the mistakes that people make in a ViT, by the names that the kit knows them under."""
    from rich.table import Table

    from vitspec.testing.catalogue import EVERY, catalogue_markdown, deviation

    if markdown:
        console.print(catalogue_markdown(), highlight=False, soft_wrap=True, markup=False, end="")
        return
    if name is not None:
        try:
            one = deviation(deviation(name).name)  # whole, by an alias too
        except KeyError as error:
            fail(USAGE, str(error.args[0]))
        lines = [
            f"{one.name} ({one.kind}): {one.description}", f"effect: {one.effect}",
            f"shown by: {', '.join(one.specs) or 'no model'}",
            *(f"in {patch.function}, instead of\n    {patch.old}\nstands\n    {patch.new}"
              for patch in one.patches),
            *(f"seen: {where}" for where in one.seen),
            *([f"also read as: {one.alias}"] if one.alias else []),
            f"try it: vitspec check planted:{one.name}",
        ]  # fmt: skip
        console.print("\n".join(lines), highlight=False, soft_wrap=True, markup=False)
        return
    table = Table(show_edge=False)
    for heading in ("name", "kind", "what is wrong"):
        table.add_column(heading, overflow="fold")
    for one in EVERY:
        table.add_row(one.name, one.kind, one.description)
    console.print(table)
