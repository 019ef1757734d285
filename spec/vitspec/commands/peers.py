"""`vitspec peers`: other libraries' ViTs, and what the kit says of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitspec.commands.common import (
    BROKEN,
    MISMATCH,
    USAGE,
    console,
    fail,
    progress,
    require_writable,
)

if TYPE_CHECKING:
    from vitspec.testing.adapters.peers.reports import Graded


def peers(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Only these peers.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Grade those that are installed here.")
    ] = False,
    cases: Annotated[int, typer.Option(min=1, help="Small random cases each.")] = 8,
    laws: Annotated[int, typer.Option(min=0, help="Small cases for the laws each.")] = 1,
    photograph: Annotated[
        bool, typer.Option("--photograph", help="ViT-Base/16 at full size as well.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="What everything is drawn from.")] = 0,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds after which a peer hangs.")
    ] = 900.0,
    json: Annotated[Path | None, typer.Option(help="Write the results to this file.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Renew this page, docs/peers.md; the table with --check.")
    ] = None,
) -> None:
    """List other libraries' ViTs of the practical family, or grade them.

    A peer is graded at the configurations that it has, in each precision that it claims.
    `vitspec check NAME` runs the whole check of one, without what is declared of it.

    Exit codes: 0 all that ran conform but for what is declared, 1 one does not, 2 wrong usage, 3
    none could be run, or one that was named could not.
    """
    from vitspec.testing.adapters.peers.registry import PEERS

    if unknown := [name for name in names or [] if name not in PEERS]:
        fail(USAGE, f"no peer is named {', '.join(unknown)}; known: {', '.join(PEERS)}")
    require_writable("--json", json)
    require_writable("--markdown", markdown)
    if not check and json is not None:
        fail(USAGE, "--json is of results, and needs --check")
    from vitspec.testing.adapters.peers import reports as made
    from vitspec.testing.report import write_atomically, write_json

    page = markdown.read_text(encoding="utf-8") if markdown and markdown.exists() else ""
    if not check:
        _list(names or list(PEERS))
        if markdown is not None:
            write_atomically(markdown, made.renewed(page))
        return
    settings = replace(made.DEFAULT, cases=cases, laws=laws, photograph=photograph, seed=seed)
    graded = []
    with progress() as display:
        task = display.add_task("checking", total=len(names or PEERS))
        for name in dict.fromkeys(names or PEERS):
            display.update(task, description=f"checking {name}")
            graded.append(made.grade_peer(name, settings, timeout))
            display.advance(task)
    _show(graded)
    if json is not None:
        write_json(json, made.to_json(graded))
    if markdown is not None:
        write_atomically(markdown, made.renewed(page, [g for g in graded if g.reports]))
    raise typer.Exit(_exit_code(graded, named=bool(names)))


def _exit_code(graded: list[Graded], named: bool) -> int:
    codes = [g.exit_code for g in graded if named or g.reports or not g.peer.missing]
    if not codes:
        return BROKEN
    return MISMATCH if MISMATCH in codes else max(codes)


def _list(names: list[str]) -> None:
    from rich.table import Table

    from vitspec.testing.adapters.peers.registry import PEERS

    table = Table(show_edge=False)
    for heading in ("peer", "installed", "what is graded"):
        table.add_column(heading, overflow="fold")
    for peer in (PEERS[name] for name in names):
        here = f"no: needs {', '.join(peer.missing)}" if peer.missing else str(peer.version)
        table.add_row(peer.name, here, peer.what)
    console.print(table)


def _show(graded: list[Graded]) -> None:
    from rich.table import Table

    from vitspec.testing.adapters.peers.reports import HEADINGS, cells, rows

    table = Table(show_edge=False)
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold", no_wrap=heading in ("peer", "version"))
    for row in (row for one in graded for row in rows(one)):
        table.add_row(*cells(row))
    console.print(table)
    for one in graded:
        for report in one.reports:
            bad = [r for r in report.results if r.status in ("failed", "errored", "xpassed")]
            for result in bad[:5]:
                text = f"{one.peer.name} {report.dtype}: {result.check} {result.place}"
                text += f": {result.reason}" if result.reason else f": {result.worst}"
                console.print(text, highlight=False, markup=False, soft_wrap=True)
        for declared in one.peer.deviations if one.reports else ():
            text = f"{one.peer.name}: declared {', '.join(declared.checks)}: {declared}"
            console.print(text, highlight=False, markup=False, soft_wrap=True)
