"""What `benchmarks/diagnosis_names.py` found, as a summary and as a page."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "diagnosis-names.md"
KEPT = Path(__file__).parent / "results" / "diagnosis_names.jsonl"
REASONS = Path(__file__).parent / "results" / "diagnosis_reasons.json"
"""Why a mistake is not named: {name: reason}, written by hand."""

BEGIN = "<!-- figures: benchmarks/diagnosis_names.py -->\n"
END = "<!-- end of figures -->"

_LEAN = (
    "layer-norm-eps-1e-5",
    "activation-gelu",
    "attention-scale-missing",
    "fused-qkv-by-head",
    "heads-split-by-raw-reshape",
    "softmax-over-queries",
    "pre-norm",
    "channels-reversed",
    "positions-missing",
    "batch-loss-averaged",
)
COMMON: dict[str, tuple[str, ...]] = {
    "vit": _LEAN,
    "vit-cls": _LEAN,
    "vision-transformer": (
        "layer-norm-eps-1e-5",
        "gelu-tanh",
        "attention-scale-missing",
        "fused-qkv-by-head",
        "heads-split-by-raw-reshape",
        "softmax-over-queries",
        "qkv-biases-missing",
        "final-norm-missing",
        "channels-reversed",
        "batch-loss-averaged",
    ),
}
"""The ten mistakes of each family that public reports have most often."""

MARKS = {"first": "first", "equal": "equal", "same": "alike", "no": "**no**"}
"""The right name stands first; or among those that are the same function as the first; or among
those that could not be told from it; or nowhere."""

NEEDED = {("float64", True): 0.95, ("float64", False): 0.90, ("float32", False): 0.85}
NEEDED_OF_PAIRS = 0.80

Line = dict[str, Any]


def lines(file: Path) -> Iterator[Line]:
    """All that was found, whole lines only."""
    for text in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            yield json.loads(text)
        except json.JSONDecodeError:
            continue  # the process ended while it wrote


def setting(line: Line) -> str:
    """A precision, and whether there were intermediate values, in words."""
    return f"{line['dtype']}, {'with' if line['taps'] else 'without'} taps"


def report(file: Path) -> str:
    """The share of each setting, and then whatever was not named."""
    every = list(lines(file))
    wrong = [line for line in every if line["framework"] != "numpy"]
    return "\n\n".join(
        part
        for part in (
            shares("Single mistakes", [line for line in wrong if len(line["names"]) == 1]),
            shares("Pairs", [line for line in wrong if len(line["names"]) > 1]),
            accused([line for line in every if line["framework"] == "numpy"]),
            failures(wrong),
        )
        if part
    )


def shares(title: str, some: list[Line]) -> str:
    """How many were named, by framework, family and setting."""
    groups: dict[tuple[str, ...], list[Line]] = defaultdict(list)
    for line in some:
        needed = NEEDED_OF_PAIRS if len(line["names"]) > 1 else NEEDED[line["dtype"], line["taps"]]
        for framework in (line["framework"], "both"):
            for family in (line["family"], "all"):
                groups[setting(line), f"{needed:.0%}", framework, family].append(line)
    if not groups:
        return ""
    text = [
        f"{title}: how often the right name is the first, or the same function as the first.",
        "",
        "| setting | needed | framework | family | diagnoses | first | equal | alike | no | named |"
        " it conforms | seconds, largest |",
        "| --- | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (what, needed, framework, family), group in sorted(groups.items()):
        count = {mark: sum(line["found"] == mark for line in group) for mark in MARKS}
        named = (count["first"] + count["equal"]) / len(group)
        conforming = sum(bool(line.get("conforms")) for line in group)
        seconds = max(line.get("processor_seconds", 0.0) for line in group)
        text.append(
            f"| {what} | {needed} | {framework} | {family} | {len(group)} | {count['first']} | "
            f"{count['equal']} | {count['same']} | {count['no']} | {named:.1%} | {conforming} | "
            f"{seconds:.0f} |"
        )
    return "\n".join(text)


def accused(some: list[Line]) -> str:
    """The correct variants that were said to be wrong."""
    if not some:
        return ""
    wrong = [line for line in some if not line.get("conforms")]
    text = [f"Correct variants: {len(some)} diagnoses, {len(wrong)} accused."]
    text += [
        f"- {line['names'][0]}, {line['family']}, {line['dtype']}, seed {line['seed']}: "
        f"{line['verdict']}"
        for line in wrong
    ]
    return "\n".join(text)


def failures(some: list[Line]) -> str:
    """What was said of each mistake that was not named, and where."""
    reasons = json.loads(REASONS.read_text(encoding="utf-8")) if REASONS.exists() else {}
    said: dict[tuple[str, str], list[str]] = defaultdict(list)
    for line in some:
        if line["found"] in ("no", "same"):
            where = f"{line['framework']} {line['family']} {setting(line)}"
            said[" + ".join(line["names"]), line["verdict"]].append(where)
    text = [
        "Not named, or not told from the first:",
        "",
        "| mistake | where | what it said | why |",
        "| --- | --- | --- | --- |",
    ]
    for (name, verdict), places in sorted(said.items()):
        where = places[0] + (f" and {len(places) - 1} more" if len(places) > 1 else "")
        verdict = verdict.replace("|", "\\|").replace("\n", " ")
        text.append(f"| `{name}` | {where} | {verdict} | {reasons.get(name, '')} |")
    return "\n".join(text) if said else ""


def table(file: Path) -> str:
    """A row for each mistake in each family, a column for each framework and setting."""
    cells: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for line in lines(file):
        if line["framework"] != "numpy":
            name = f"`{' + '.join(line['names'])}`"
            column = f"{line['framework']}, {setting(line)}"
            cells[name, line["family"]][column] = MARKS[line["found"]]
    columns = sorted({column for row in cells.values() for column in row})
    text = [
        f"| mistake | family | {' | '.join(columns)} |",
        f"| --- | --- |{' --- |' * len(columns)}",
    ]
    for (name, family), row in sorted(cells.items()):
        found = " | ".join(row.get(column, "") for column in columns)
        text.append(f"| {name} | {family} | {found} |")
    return "\n".join(text)


def page(file: Path) -> None:
    """Renew the tables of the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    found = f"{report(file)}\n\n{table(file)}"
    PAGE.write_text(f"{before}{begin}\n{found}\n\n{end}{after}", encoding="utf-8")
