"""The page and the constants that follow from the measurements."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from primitives_run import NEAR
from primitives_truth import ONE_ARGUMENT

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "primitives.md"
MODULE = ROOT / "spec" / "vitspec" / "testing" / "primitives.py"
DTYPES = ("float64", "float32", "bfloat16", "float16")
BEGIN, END = "_TABLE: Mapping[str, tuple[float, float, float, float]] = {", "}\n"
CONSTANT_OF = {name: name for name in ("divide", "dot", "cubic_weights")} | dict.fromkeys(
    ["sum", "sum_first", "mean"], "sum"
)
SUMMED_WIDER = ("bfloat16", "float16")
EXTREME = 1e5
"""A larger error of the value itself is written as "all": no digit of it is left."""

Results = dict[str, Any]


# ---- the constants -------------------------------------------------------------------------------


def constants(results: Results) -> dict[str, dict[str, float]]:
    """Of each primitive, the largest error over all environments, rounded up to a tenth."""
    found: dict[str, dict[str, float]] = {}
    for dtype in DTYPES:
        for name, environments in results["functions"].get(dtype, {}).items():
            worst = max(e["scale"][0] for e in environments.values())
            found.setdefault(name, {})[dtype] = _up(worst)
        for name, worst in _rows(results, dtype).items():
            found.setdefault(name, {})[dtype] = _up(worst)
    return found


def _up(c: float) -> float:
    return math.ceil(10 * c) / 10


def _rows(results: Results, dtype: str) -> dict[str, float]:
    """Of quotients, sums and products; what is made of these has no constant of its own.

    Sums and products are in units of the root of n, or of n if all terms are equal; but not in 16
    bits, where all libraries accumulate in float32 and round once at the end.
    """
    found: dict[str, float] = {}
    for (operation, n, equal), (c, _) in worst_of_rows(results, dtype).items():
        if operation not in CONSTANT_OF:
            continue
        name = CONSTANT_OF[operation]
        if name not in ("divide", "cubic_weights"):
            grows = 1 if dtype in SUMMED_WIDER else n if equal else math.sqrt(n)
            name, c = f"{name}_of_equal" if equal else name, c / grows
        found[name] = max(found.get(name, 0.0), c)
    return dict(sorted(found.items()))


def worst_of_rows(results: Results, dtype: str) -> dict[tuple[str, int, bool], tuple[float, str]]:
    """By operation, length, and whether the terms are equal: the largest error, and where."""
    found: dict[tuple[str, int, bool], tuple[float, str]] = {}
    for operation, environments in results["rows"].get(dtype, {}).items():
        for environment, lengths in environments.items():
            for n, kinds in lengths.items():
                for kind, c in kinds.items():
                    key = operation, int(n), kind == "equal"
                    found[key] = max(found.get(key, (0.0, "")), (c, environment))
    return found


def module_text(results: Results) -> str:
    """The constants as they stand in `vitspec.testing.primitives`."""
    lines = [BEGIN]
    for name, by_type in constants(results).items():
        entries = ", ".join(str(by_type[dtype]) for dtype in DTYPES)
        lines.append(f'    "{name}": ({entries}),')
    return "\n".join([*lines, END])


# ---- the page ------------------------------------------------------------------------------------


def write_page(results: Results) -> None:
    """Renew what stands between the page's marks, and the constants of the product."""
    PAGE.write_text(page_text(results, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    text = MODULE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    MODULE.write_text(before + module_text(results) + after, encoding="utf-8")


def page_text(results: Results, text: str) -> str:
    """The page with its tables renewed."""
    for mark, table in tables(results).items():
        before, begin, rest = text.partition(f"<!-- {mark} -->\n")
        _, end, after = rest.partition(f"<!-- end of {mark} -->")
        text = f"{before}{begin}\n{table}\n\n{end}{after}"
    return text


def tables(results: Results) -> dict[str, str]:
    """The page's tables, by their marks."""
    return {
        "constants": _constants(results),
        "libraries": _libraries(results),
        "rows": _of_rows(results),
        "rows in constants": _constants_of_rows(results),
        "versions": ", ".join(f"{name} {v}" for name, v in results["versions"].items()) + ".",
    }


def _constants(results: Results) -> str:
    found = constants(results)
    heads = [*DTYPES, "float32 tried"]
    lines = ["| primitive | scale | " + " | ".join(heads) + " |", "| --- | --- |" + " ---: |" * 5]
    for name, primitive in ONE_ARGUMENT.items():
        if name not in found:
            continue
        scale = primitive.scale.replace("|", "\\|")
        cells = [f"{found[name].get(dtype, '')}" for dtype in DTYPES]
        cells.append(_tried(results["functions"]["float32"][name]))
        lines.append(f"| {name} | {scale} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _tried(environments: Results) -> str:
    """On which arguments those were measured that could have set the constant."""
    worst = max(e["scale"][0] for e in environments.values())
    stride = max(e["stride"] for e in environments.values() if e["scale"][0] >= NEAR * worst)
    return "all" if stride == 1 else f"every {stride}th"


def _constants_of_rows(results: Results) -> str:
    lines = ["| operation | " + " | ".join(DTYPES) + " |", "| --- |" + " ---: |" * 4]
    for name, by_type in constants(results).items():
        if name not in ONE_ARGUMENT:
            cells = [str(by_type.get(dtype, "")) for dtype in DTYPES]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _libraries(results: Results) -> str:
    """In float32: each environment's largest error, where, and of the value itself."""
    lines = ["| primitive | environment | u of the scale | at | u of the value | not finite from |"]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: |")
    for name in ONE_ARGUMENT:
        groups: dict[tuple, list[str]] = {}
        for environment, e in results["functions"]["float32"].get(name, {}).items():
            (scale, at), (value, _) = e["scale"], e["value"]
            key = (scale, at, value, e["not_finite"])
            groups.setdefault(key, []).append(environment)
        for (scale, at, value, bad), names in sorted(groups.items(), key=lambda g: -g[0][0]):
            of_value = "all" if value > EXTREME else f"{value:.2f}"
            where = "" if at is None else f"{at:.6g}"
            line = f"| {name} | {'; '.join(names)} | {scale:.2f} | {where} | {of_value} | "
            lines.append(line + ("" if bad is None else f"{bad:.2g}") + " |")
    return "\n".join(lines)


def _of_rows(results: Results) -> str:
    """In float64 and float32: the largest error of each operation, by length."""
    lengths = sorted({n for name, n, _ in worst_of_rows(results, "float32") if name == "sum"})
    lines = ["| precision | operation | terms | " + " | ".join(map(str, lengths)) + " | library |"]
    lines.append("| --- | --- | --- |" + " ---: |" * len(lengths) + " --- |")
    for dtype in ("float64", "float32"):
        worst = worst_of_rows(results, dtype)
        for operation, equal in sorted({(o, equal) for o, _, equal in worst}):
            if operation == "cubic_weights" or (
                equal and operation not in ("dot", "sum", "sum_first")
            ):
                continue  # of other lengths, or nothing new
            some = [worst[operation, n, equal] for n in lengths]
            cells = " | ".join(f"{c:.1f}" for c, _ in some)
            kind = "equal" if equal else "drawn"
            lines.append(f"| {dtype} | {operation} | {kind} | {cells} | {max(some)[1]} |")
    return "\n".join(lines)
