"""The error of every primitive that a Vision Transformer is made of, in units of u, by library.

    python benchmarks/primitives.py [--dtype float32] [--only gelu,tanh] [--environments "torch*"]
                                    [--everyone | --stride 127 | --sample] [--results FILE]
    python benchmarks/primitives.py --table

The first measures what the results lack, keeps what is done after each function, and says what is
left. The second writes the tables of docs/primitives.md and the constants of
`vitspec.testing.primitives` from the results.

float32: every 127th argument; then, where the largest error comes near that of all environments
(everywhere with --everyone), every one in the binades between 2^-10 and 2^5 (2^7 for exp; 2^-2 and
2^2 for roots and reciprocals, which repeat). bfloat16 and float16: all arguments. float64: 100,000
drawn ones, of all sizes, against balls of python-flint. Sums and products are of drawn numbers.
Needs what `vitspec[dev,interop]` installs; what is not installed is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

from primitives_libraries import ENVIRONMENTS, installed, versions
from primitives_rows import OPERATIONS
from primitives_run import NEAR, Children, U, UnableError
from primitives_table import write_page
from primitives_truth import ONE_ARGUMENT

RESULTS = Path(__file__).parent / "results" / "primitives.json"
SAMPLE = 65_521
SCREEN = 127
LENGTHS = (16, 64, 197, 256, 768, 1024, 3072, 4096)
GRIDS = (1, 2, 3, 5, 7, 14, 16, 24, 37, 40)
"""The old numbers of positions of an interpolation."""


def read(path):
    """The results so far."""
    empty = {"versions": {}, "functions": {}, "rows": {}}
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else empty


def text(value, depth):
    """JSON with a line for each environment."""
    if depth == 0 or not isinstance(value, dict):
        return json.dumps(value)
    indent = " " * (5 - depth)
    lines = [f"{indent}{json.dumps(k)}: {text(v, depth - 1)}" for k, v in sorted(value.items())]
    return "{\n" + ",\n".join(lines) + "\n" + indent[:-1] + "}" if lines else "{}"


def write(path, results):
    """Keep the results; whoever is interrupted keeps the ones before."""
    path.parent.mkdir(exist_ok=True)
    results["versions"] = versions()
    part = path.with_suffix(".part")
    part.write_text(text(results, 4) + "\n", encoding="utf-8")
    os.replace(part, path)


def passes(args, dtype):
    """The strides, one pass each, and whether only those near the largest error are measured."""
    if args.sample or (dtype == "float32" and args.stride >= SCREEN):
        return [(args.stride, False)]
    return (
        [(SCREEN, False), (args.stride, not args.everyone)] if dtype == "float32" else [(1, False)]
    )


def lacking(known, environments, stride, only_near):
    """The environments in which a function has not been measured as closely as asked."""
    if only_near:
        largest = max((e["scale"][0] for e in known.values()), default=0)
        environments = [e for e in environments if e in known]
        environments = [e for e in environments if known[e]["scale"][0] >= NEAR * largest]
    return [e for e in environments if e not in known or known[e]["stride"] > stride]


def measure_functions(args, dtype, results, children, stride, only_near):
    """Measure what is lacking of the functions of one number; keep each when it is done."""
    todo = {}
    for name, primitive in ONE_ARGUMENT.items():
        function = primitive.function or name
        able = [e for e, child in children.each.items() if function in child.names]
        kept = results["functions"].get(dtype, {}).get(name, {})
        if not args.only or name in args.only:
            todo[name] = lacking(kept, able, stride, only_near)
    todo = {name: environments for name, environments in todo.items() if environments}
    for left, name in zip(reversed(range(len(todo))), todo, strict=True):
        start = time.perf_counter()
        done = children.measure(name, todo[name], stride)
        kept = results["functions"].setdefault(dtype, {}).setdefault(name, {})
        for e, found in done["found"].items():
            kept[e] = {"stride": stride, "arguments": done["arguments"], **found}
        write(args.results, results)
        worst = max((found["scale"][0] for found in done["found"].values()), default=0)
        seconds = time.perf_counter() - start
        print(f"{dtype} {name}: {worst:.2f} u in {len(todo[name])} environments, {seconds:.0f} s, "
              f"{done['arguments']:,} arguments; {left} functions left", flush=True)  # fmt: skip


def measure_rows(args, dtype, results, children):
    """Measure what is lacking of the operations on rows."""
    for name in args.only or OPERATIONS:
        if name not in OPERATIONS:
            continue
        kept = results["rows"].setdefault(dtype, {}).setdefault(name, {})
        for e, child in children.each.items():
            if name not in child.names or e in kept:
                continue
            lengths = GRIDS if name == "cubic_weights" else LENGTHS
            lengths = lengths[:2] if args.sample else lengths
            try:
                kept[e] = {str(n): child.ask(name, n) for n in lengths}
            except UnableError as error:
                print(f"{dtype} {name}, {e}: {error}", file=sys.stderr)
    write(args.results, results)


def main():
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=U, action="append")
    parser.add_argument("--only", type=lambda text: text.split(","), help="functions, by name")
    parser.add_argument("--environments", default="*", help="names, may have *")
    parser.add_argument("--stride", type=int, default=1, help="of float32")
    parser.add_argument("--everyone", action="store_true", help="all arguments in all environments")
    parser.add_argument("--sample", action="store_true", help="a few arguments, some seconds")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="write the page and the constants")
    args = parser.parse_args()
    results = read(args.results)
    if args.table:
        write_page(results)
        return
    if args.sample:
        args.stride = SAMPLE
    environments = [e for e in ENVIRONMENTS if fnmatch(e, args.environments) and installed(e)]
    for dtype in args.dtype or U:
        children = Children(environments, dtype)
        try:
            measure_rows(args, dtype, results, children)
            for stride, only_near in passes(args, dtype):
                measure_functions(args, dtype, results, children, stride, only_near)
        finally:
            children.close()
    print(f"nothing is left; {args.results}", file=sys.stderr)


if __name__ == "__main__":
    main()
