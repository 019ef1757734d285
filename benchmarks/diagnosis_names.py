"""What `vitspec diagnose` calls the mistakes of models that were written to be wrong.

    python benchmarks/diagnosis_names.py [--framework torch] [--family vit] [--only PATTERN]

Every mistake of `benchmarks/mistaken`, made in PyTorch's and in JAX's own code, is diagnosed in its
families: in float64 with intermediate values (taps), in float64 without, in float32 without. Then
pairs of ten common mistakes (`--pairs`), and correct variants of the specification, none of which
may be accused (`--correct`).

A line of `results/diagnosis_names.jsonl` is one diagnosis, written when it is done: run again, and
it goes on where it stopped; `--again` does what is there once more. `--report` prints a summary,
`--page` writes it into docs/diagnosis-names.md. It needs the extra `interop`, and `fast` for JAX.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

os.environ["JAXTYPING_DISABLE"] = "1"  # as the processes of `vitspec check` have it
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Each operation of JAX is compiled for each shape once: that takes longer than all else.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1",
)

from mistaken import FAMILIES, FRAMEWORKS, implementation, made

import vitspec
from diagnosis_table import COMMON, KEPT, lines, page, report
from vitspec.testing import diagnose
from vitspec.testing.reference import SpecImplementation
from vitspec.testing.variants import VARIANTS

SETTINGS = (("float64", True), ("float64", False), ("float32", False))
"""A precision, and whether it shows its intermediate values."""

SEEDS = 10
"""For which each correct variant is diagnosed, in each family and in both precisions."""

Work = dict[str, Any]


def mistakes(a: argparse.Namespace) -> Iterator[Work]:
    """What to diagnose: single mistakes, or pairs of common ones."""
    for framework, family in itertools.product(a.framework or FRAMEWORKS, a.family or FAMILIES):
        every: Any = [(name,) for name in made(family)]
        if a.pairs:
            every = itertools.combinations(COMMON[family], 2)
        chosen = [names for names in every if any(_fits(name, a.only) for name in names)]
        for (dtype, taps), names in itertools.product(SETTINGS, chosen):
            if dtype in (a.dtype or dtype) and taps in (a.taps if a.taps is not None else taps,):
                yield {
                    "framework": framework, "family": family, "names": list(names),
                    "dtype": dtype, "taps": taps, "seed": a.seed,
                }  # fmt: skip


def correct(a: argparse.Namespace) -> Iterator[Work]:
    """The specification and its variants."""
    for dtype, family, variant in itertools.product(
        a.dtype or ("float32", "float64"), a.family or FAMILIES, VARIANTS
    ):
        for seed in range(SEEDS) if _fits(variant.name, a.only) else ():
            yield {
                "framework": "numpy", "family": family, "names": [variant.name],
                "dtype": dtype, "taps": False, "seed": seed,
            }  # fmt: skip


def _fits(name: str, patterns: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns.split(","))


class WithoutTaps:
    """An implementation that shows its logits and gradients alone."""

    def __init__(self, shown: Any) -> None:
        self.shown = shown

    def __getattr__(self, name: str) -> Any:
        return getattr(self.shown, name)

    def forward(self, *arguments: Any) -> Any:
        """The logits."""
        return self.shown.forward(*arguments)["logits"]

    def vjp(self, *arguments: Any) -> Any:
        """The gradients."""
        return self.shown.vjp(*arguments)


def subject(work: Work) -> Any:
    """What is diagnosed."""
    family, names = work["family"], work["names"]
    if work["framework"] != "numpy":
        return implementation(work["framework"], family, names, taps=work["taps"])
    (variant,) = (v for v in VARIANTS if v.name in names)
    both = ("float32", "float64")
    return WithoutTaps(SpecImplementation(family, both, [variant], f"{variant.name}/{family}"))


def result(work: Work) -> Work:
    """What diagnosis says, and whether that is right."""
    start = time.process_time()
    make_room()
    try:
        d = diagnose(subject(work), dtype=work["dtype"], seed=work["seed"])
    except Exception as error:  # kept, and shown as a failure
        return {"found": "no", "verdict": f"{type(error).__name__}: {error}"[:300]}
    first = d.nearest[0] if d.nearest and d.nearest[0].matches else None
    found = how(set(work["names"]), first)
    if work["framework"] == "numpy":
        found = "right" if d.conforms else "accused"
    return {
        "found": found,
        "named": first.name if first else None,
        "same": list(first.same) if first else [],
        "equal": list(first.equal) if first else [],
        "conforms": d.conforms,
        "verdict": d.verdict,
        "first_departure": d.first_departure.tensor if d.first_departure else None,
        "departures": len(d.departures),
        "causes": list(getattr(d, "causes", [])),
        "notes": d.notes,
        "seconds": round(d.seconds, 2),
        "processor_seconds": round(time.process_time() - start, 2),
    }


MAPPED, MANY = Path("/proc/self/maps"), 6_000
"""Regions of memory: XLA takes some eight a program, and some gigabytes for so many."""


def make_room() -> None:
    """Forget JAX's programs before they are too many."""
    if "jax" in sys.modules and MAPPED.exists() and MAPPED.read_bytes().count(b"\n") > MANY:
        sys.modules["jax"].clear_caches()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # or the memory stays with the process


def how(names: set[str], first: Any) -> str:
    """How the right name was found: first, or as what cannot be told from the first."""
    if first is None:
        return "no"
    if set(first.names) == names:
        return "first"
    if any(set(name.split(" + ")) == names for name in first.equal):
        return "equal"
    if any(set(name.split(" + ")) == names for name in first.same):
        return "same"
    return "no"


def key(line: Work) -> tuple[Any, ...]:
    """What tells one line from the others."""
    names = tuple(sorted(line["names"]))
    return names, *(line[name] for name in ("framework", "family", "dtype", "taps", "seed"))


def without(file: Path, again: set[tuple[Any, ...]]) -> None:
    """Drop what is to be done once more."""
    kept = [json.dumps(line) + "\n" for line in lines(file) if key(line) not in again]
    file.write_text("".join(kept), encoding="utf-8")


def main() -> None:
    """Go on where it stopped."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--framework", action="append", choices=FRAMEWORKS)
    parser.add_argument("--family", action="append", choices=FAMILIES)
    parser.add_argument("--dtype", action="append", choices=("float32", "float64"))
    parser.add_argument("--taps", action=argparse.BooleanOptionalAction)
    parser.add_argument("--only", default="*", help="names, with commas; may have *")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", action="store_true", help="pairs of ten common mistakes")
    parser.add_argument("--correct", action="store_true", help="correct variants")
    parser.add_argument("--again", action="store_true", help="also what has been done already")
    parser.add_argument("--file", type=Path, default=KEPT)
    parser.add_argument("--report", action="store_true", help="print what is there, and end")
    parser.add_argument("--page", action="store_true", help="and write it into its page")
    a = parser.parse_args()
    if a.report or a.page:
        print(report(a.file))
        if a.page:
            page(a.file)
        return
    every = list(correct(a) if a.correct else mistakes(a))
    a.file.parent.mkdir(exist_ok=True)
    if a.again:
        without(a.file, {key(work) for work in every})
    done = {key(line) for line in lines(a.file)}
    left = [work for work in every if key(work) not in done]
    for i, work in enumerate(left):
        line = work | {"vitspec": vitspec.__version__} | result(work)
        with open(a.file, "a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
        words = f"{work['framework']} {work['family']} {work['dtype']} taps={work['taps']}"
        name = " + ".join(work["names"])
        print(f"{i + 1} of {len(left)}: {words} {name}: {line['found']}: {line['verdict']}")


if __name__ == "__main__":
    main()
