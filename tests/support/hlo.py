"""Collectives of a compiled program, read off its text."""

import re
from typing import NamedTuple

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)

_LINE = re.compile(
    rf"= (?P<type>\(.*?\)|\S+) (?P<kind>{'|'.join(sorted(KINDS, key=len, reverse=True))})"
    r"(?:-start)?\("
)
_SHAPE = re.compile(r"\b(?:pred|[a-z]+\d+)\[([\d,]*)\]")


class Collective(NamedTuple):
    """One collective operation.

    Attributes:
        kind: one of `KINDS`.
        shape: of one result on one device; an operation of several results counts once for each.
        backward: whether it belongs to the transposed part of the program.
        within: the computation that it stands in; the body of a loop is one of its own.
    """

    kind: str
    shape: tuple[int, ...]
    backward: bool
    within: str


def collectives(text):
    """All collectives of the program, the results of combined ones apart."""
    found, within = [], ""
    for line in text.splitlines():
        if line and not line[0].isspace():
            within = line.split()[1] if line.startswith("ENTRY") else line.split()[0]
        if match := _LINE.search(line):
            backward = "transpose(" in line
            for shape in _SHAPE.findall(match["type"]):
                dims = tuple(int(n) for n in shape.split(",") if n)
                found.append(Collective(match["kind"], dims, backward, within))
    return found
