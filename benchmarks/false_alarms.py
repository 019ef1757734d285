"""How often correct code is suspected, and rejected: many correct implementations, many points.

    python benchmarks/false_alarms.py [--seeds 5] [--dtype float32] [--only PATTERN] [--part 0/2]

Every implementation here is correct: the specification and its variants in NumPy
(`vitspec.testing.variants`), PyTorch's and JAX's models in several arrangements, other libraries'
own classes, and vitfast with each of its attentions. Each is taken to the drawn cases of `vitspec
check`, 100 of each seed. The truth and the noise of a point are computed once for all.

What is done is kept in a file of lines beside this script's results, one for each implementation,
precision, seed and number of a case; run it again and it goes on. With `--table` it prints the
table of what is there. Set ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA, OPENBLAS_CORETYPE or
XLA_FLAGS=--xla_cpu_max_isa=... for other instruction sets, and name the run with `--machine`. It
needs the extras `fast` and `interop`.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from vitspec.testing.catalogue import planted
from vitspec.testing.finding import find
from vitspec.testing.implementations import AdapterError, Subject
from vitspec.testing.noise import SUSPICION
from vitspec.testing.reference import Reference, SpecImplementation
from vitspec.testing.settings import Settings
from vitspec.testing.suites import SUITES
from vitspec.testing.trial import Trial
from vitspec.testing.variants import VARIANTS

KEPT = Path(__file__).parent / "results" / "false_alarms.jsonl"
OTHERS = (
    "vitspec.testing.adapters.peers:torch_vit",
    "vitspec.testing.adapters.peers:torch_vit_training",
    "vitspec.testing.adapters.peers:torch_vit_cls",
    "vitspec.testing.adapters.peers:torch_vit_cls_training",
    "vitspec.testing.adapters.peers:jax_vit",
    "vitspec.testing.adapters.peers:jax_vit_cls",
    "vitspec.testing.adapters.peers:nnx_vit",
    "vitspec.testing.adapters.peers:nnx_vit_cls",
    "torch-pre-norm",
    "transformers",
    "transformers-eager",
    "transformers-bare",
    "timm",
    "vitfast.implementation:vit",
    "vitfast.implementation:vit_cls",
    "vitfast.implementation:vision_transformer",
)
FAMILIES = ("vit", "vit-cls", "vision-transformer")


class Varied(SpecImplementation):
    """A correct variant of the specification."""

    def __init__(self, variant: Any, spec: str, dtype: Any) -> None:
        super().__init__(spec, dtype, name=f"{variant.name}/{spec}")
        self.variant = variant

    def forward(self, *arguments: Any) -> Any:
        """In the variant's way."""
        with planted(self.variant):
            return super().forward(*arguments)

    def vjp(self, *arguments: Any) -> Any:
        """In the variant's way."""
        with planted(self.variant):
            return super().vjp(*arguments)


def implementations(dtype: str, pattern: str) -> Iterator[tuple[str, Any]]:
    """Every correct implementation that computes in this precision, by name."""
    own = dtype if dtype not in ("float32", "float64") else ("float32", "float64")
    for variant in VARIANTS:
        for spec in FAMILIES:
            name = f"{variant.name}/{spec}"
            if fnmatchcase(name, pattern) and (variant.name != "naive-loops" or dtype != "tf32"):
                yield name, Varied(variant, spec, own)
    for target in OTHERS:
        if fnmatchcase(target, pattern):
            try:
                yield target, find(target)
            except AdapterError as error:
                print(f"left out: {error}")


def subjects(dtype: str, pattern: str) -> dict[str, Subject]:
    """Those of them that claim this precision."""
    found = {}
    for name, implementation in implementations(dtype, pattern):
        try:
            found[name] = Subject(implementation, dtype)
        except AdapterError:
            continue
    return found


def measured(trial: Trial) -> dict[str, Any]:
    """What the kit says of one trial."""
    grades = trial.grades.values()
    worst = max(grades, key=lambda g: g.ratio)
    suspected = [g for g in grades if g.confirmation is not None]
    return {
        "z": SUSPICION * worst.ratio,
        "tensor": worst.tensor,
        "metric": worst.metric,
        "suspected": [
            {"tensor": g.tensor, "metric": g.metric, "z": SUSPICION * g.ratio}
            | asdict(g.confirmation)
            for g in suspected
        ],
    }


def main() -> None:
    """Go on where it stopped."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--cases", type=int, default=100, help="of each seed")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--only", default="*", help="implementations of these names")
    parser.add_argument("--machine", default="own", help="what to call this instruction set")
    parser.add_argument("--part", default="0/1", help="of so many processes, this one")
    parser.add_argument("--file", type=Path, default=KEPT)
    parser.add_argument("--table", action="store_true", help="print what is there, and end")
    a = parser.parse_args()
    if a.table:
        print(table(a.file))
        return
    part, parts = map(int, a.part.split("/"))
    file = a.file.with_suffix(f".{part}.jsonl") if parts > 1 else a.file
    done = {key(line) for line in lines(a.file)}
    subjects_by_name = subjects(a.dtype, a.only)
    places = [(s, c) for s in range(a.first, a.first + a.seeds) for c in range(a.cases)][
        part::parts
    ]
    file.parent.mkdir(exist_ok=True)
    with open(file, "a") as out:
        for count, (seed, case) in enumerate(places):
            left = {
                name: subject
                for name, subject in subjects_by_name.items()
                if (name, a.dtype, a.machine, seed, case) not in done
            }
            for name, found in at_one_place(left, seed, case):
                line = {"name": name, "dtype": a.dtype, "machine": a.machine, "seed": seed}
                out.write(json.dumps(line | {"case": case} | found) + "\n")
                if found.get("suspected"):
                    print(f"\r{name} seed {seed} case {case}: {found['suspected']}")
            out.flush()
            print(f"\r{count + 1} of {len(places)} places", end="", flush=True)
    print()


def at_one_place(
    left: dict[str, Subject], seed: int, case: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each implementation at one case; the truth and the noise once for each point."""
    shared: dict[Any, Reference] = {}
    suite = SUITES["case"]
    for name, subject in left.items():
        trial = suite.trial(subject, Settings(seed=seed), case)
        if suite.why_unsupported(trial):
            yield name, {"unsupported": True}
            continue
        trial.reference = shared.setdefault((subject.spec, trial.point.config), trial.reference)
        try:
            yield name, measured(trial)
        except AdapterError as error:
            yield name, {"error": str(error)[:300]}


def key(line: dict[str, Any]) -> tuple[Any, ...]:
    """What tells one line from the others."""
    return tuple(line[name] for name in ("name", "dtype", "machine", "seed", "case"))


def lines(file: Path) -> Iterator[dict[str, Any]]:
    """All that was measured, whole lines only, of every part."""
    for path in sorted(file.parent.glob(f"{file.stem}*.jsonl")):
        for text in path.read_text().splitlines():
            try:
                yield json.loads(text)
            except json.JSONDecodeError:
                continue  # the process ended while it wrote


def table(file: Path) -> str:
    """One row for each implementation, precision and instruction set."""
    rows: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for line in lines(file):
        rows[line["dtype"], line["machine"], line["name"]].append(line)
    text = ["| precision | machine | implementation | checks | cases | suspected | confirmed | z |"]
    text.append("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for (dtype, machine, name), several in sorted(rows.items()):
        ran = [line for line in several if "z" in line]
        suspected = [s for line in ran for s in line["suspected"]]
        confirmed = sum(s["outcome"] == "confirmed" for s in suspected)
        largest = max((line["z"] for line in ran), default=0.0)
        seeds = len({line["seed"] for line in ran})
        text.append(
            f"| {dtype} | {machine} | {name} | {seeds} | {len(ran)} | "
            f"{len(suspected)} | {confirmed} | {largest:.1f} |"
        )
    return "\n".join(text)


if __name__ == "__main__":
    main()
