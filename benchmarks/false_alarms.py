"""How often correct code is suspected, and rejected: many correct implementations, many checks.

    python benchmarks/false_alarms.py [--seeds 40] [--dtype float32] [--only PATTERN]

Every implementation here is correct: the specification and its variants in NumPy
(`vitspec.testing.variants`), PyTorch's and JAX's models in several arrangements, JAX without
compilation, transformers' own class with each attention, timm's, and vitfast with each of its
attentions. Each is given what `vitspec check` gives: the drawn cases, the images of another size,
the degenerate points and the laws of a seed; with `--photograph` the photograph and the vectors
instead. The truth and the noise of a point are computed once for all of them.

A line of the file `results/false_alarms.jsonl` is one check: an implementation, a precision, an
instruction set and a seed. It is written when the check is done, so run it again and it goes on
where it stopped, one seed at most behind. `--report` prints what is there: a table, and how far the
tail of the largest z reaches. Set ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA, OPENBLAS_CORETYPE,
XLA_FLAGS=--xla_cpu_max_isa=... or a number of threads for other roundings, and name the run with
`--machine`. It needs the extras `fast` and `interop`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

os.environ["JAXTYPING_DISABLE"] = "1"  # as the processes of `vitspec check` have it
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from vitspec.testing import trial
from vitspec.testing.catalogue import planted
from vitspec.testing.finding import find
from vitspec.testing.implementations import AdapterError, Subject
from vitspec.testing.noise import SUSPICION
from vitspec.testing.reference import Point, Reference, SpecImplementation
from vitspec.testing.results import Result
from vitspec.testing.run import plan, run_unit
from vitspec.testing.settings import Settings
from vitspec.testing.variants import VARIANTS

KEPT = Path(__file__).parent / "results" / "false_alarms.jsonl"
OTHERS = (
    "vitspec.testing.adapters.peers:torch_vit",
    "vitspec.testing.adapters.peers:torch_vit_training",
    "vitspec.testing.adapters.peers:torch_vit_cls",
    "vitspec.testing.adapters.peers:torch_vit_cls_training",
    "torch-pre-norm",
    "transformers",
    "transformers-eager",
    "transformers-bare",
    "timm",
    "vitspec.testing.adapters.peers:jax_vit",
    "vitspec.testing.adapters.peers:jax_vit_cls",
    "vitspec.testing.adapters.peers:nnx_vit",
    "vitspec.testing.adapters.peers:nnx_vit_cls",
    "vitfast.implementation:vit",
    "vitfast.implementation:vit_cls",
    "vitfast.implementation:vision_transformer",
    "vitfast.implementation:vision_transformer_plain",
    "vitfast.implementation:vision_transformer_xla",
)
UNCOMPILED = (
    "vitspec.testing.adapters.peers:jax_vit",
    "vitspec.testing.adapters.peers:jax_vit_cls",
)
FAMILIES = ("vit", "vit-cls", "vision-transformer")
INTERPOLATES_OTHERWISE = ("timm",)
"""Whose interpolation is another function, by declaration."""
BY_ENTRIES = ("case", "interpolation", "degenerate")
"""The suites whose grades are z of the first look."""


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


class Uncompiled:
    """A model of JAX, computed operation by operation."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled

    def __getattr__(self, name: str) -> Any:
        return getattr(self.compiled, name)

    def forward(self, *arguments: Any) -> Any:
        """Without `jax.jit`."""
        import jax

        with jax.disable_jit():
            return self.compiled.forward(*arguments)

    def vjp(self, *arguments: Any) -> Any:
        """Without `jax.jit`."""
        import jax

        with jax.disable_jit():
            return self.compiled.vjp(*arguments)


def subjects(dtype: str, pattern: str) -> dict[str, Subject]:
    """Every correct implementation that claims this precision, by name."""
    own: Any = dtype if dtype not in ("float32", "float64") else ("float32", "float64")
    found: dict[str, Subject] = {}

    def add(name: str, implementation: Any) -> None:
        try:
            if any(fnmatchcase(name, one) for one in pattern.split(",")):
                found[name] = Subject(implementation(), dtype)
        except AdapterError as error:
            print(f"left out: {name}: {str(error).splitlines()[0]}")

    for spec in FAMILIES:
        for variant in VARIANTS:
            add(f"{variant.name}/{spec}", lambda v=variant, s=spec: Varied(v, s, own))
    for target in OTHERS:
        add(target, lambda t=target: find(t))
    for target in UNCOMPILED:
        add(f"{target}, not compiled", lambda t=target: Uncompiled(find(t)))
    return found


@dataclass
class Check:
    """What is kept of one check.

    Attributes:
        z: the largest of the first look.
        tensor: where that was.
        results: how many results of each status.
        tensors: how many tensors were looked at entry by entry.
        suspected: every suspicion, and what became of it.
        rejected: every result that would reject the implementation.
    """

    z: float = 0.0
    tensor: str = ""
    results: dict[str, int] = field(default_factory=dict)
    tensors: int = 0
    suspected: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """Count one result."""
        self.results[result.status] = self.results.get(result.status, 0) + 1
        if result.status not in ("passed", "skipped"):
            text = f"{result.place} {result.check} {result.status}"
            self.rejected.append(f"{text} {result.worst or result.reason}"[:300])
        if result.place.suite not in BY_ENTRIES:
            return
        for grade in result.grades:
            z = SUSPICION * grade.ratio
            self.tensors += 1
            if z >= self.z:
                self.z, self.tensor = z, f"{result.place} {grade.tensor}, {grade.metric}"
            if grade.confirmation is not None:
                where = {"place": str(result.place), "tensor": grade.tensor, "z": z}
                self.suspected.append(where | asdict(grade.confirmation))


def shared_references() -> None:
    """Let all implementations have one truth and one noise of each point."""
    kept: dict[str, Reference] = {}

    def reference(point: Point, precision: Any, rng: Any, runs: int, taps: bool) -> Reference:
        digest = hashlib.blake2b(
            repr((point.spec, point.config, point.layout, precision.name, runs, taps)).encode()
        )
        for array in (*point.params.values(), point.images, point.cotangent):
            digest.update(repr(array.shape).encode() + array.tobytes())
        key = digest.hexdigest()
        if key not in kept:
            while len(kept) > 40:
                del kept[next(iter(kept))]
            kept[key] = Reference(point, precision, rng, runs, taps)
        return kept[key]

    trial.Reference = reference  # type: ignore[assignment,misc]


def checks(subjects: dict[str, Subject], settings: Settings, words: str) -> dict[str, Check]:
    """All of one seed, place by place."""
    found = {name: Check() for name in subjects}
    places, start = plan(settings), time.monotonic()
    for count, place in enumerate(places):
        for name, subject in subjects.items():
            if place.suite == "interpolation" and name in INTERPOLATES_OTHERWISE:
                continue
            for result in run_unit(subject, settings, place):
                found[name].add(result)
        seconds = time.monotonic() - start
        print(
            f"\r{words}: {count + 1} of {len(places)} places, {seconds:.0f} s", end="", flush=True
        )
        if "jax" in sys.modules:  # what was compiled for one place is of no use at the next
            sys.modules["jax"].clear_caches()
    print()
    return found


def main() -> None:
    """Go on where it stopped."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--cases", type=int, default=100, help="drawn cases of each seed")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--only", default="*", help="names, with commas; may have *")
    parser.add_argument("--machine", default="own", help="what to call this instruction set")
    parser.add_argument("--photograph", action="store_true", help="and the vectors; nothing else")
    parser.add_argument("--file", type=Path, default=KEPT)
    parser.add_argument("--report", action="store_true", help="print what is there, and end")
    a = parser.parse_args()
    if a.report:
        print(report(a.file))
        return
    shared_references()
    what = "photograph" if a.photograph else f"{a.cases} cases"
    done = {key(line) for line in lines(a.file)}
    by_name = subjects(a.dtype, a.only)
    a.file.parent.mkdir(exist_ok=True)
    for seed in range(a.first, a.first + a.seeds):
        settings = Settings(seed=seed, cases=a.cases, dtype=a.dtype, ill_formed=False)
        settings = settings.nothing_but(photograph=True, vectors=True) if a.photograph else settings
        if not a.photograph:
            kinds = {"cases": a.cases, "interpolations": 12, "degenerate": True, "laws": 4}
            settings = settings.nothing_but(**kinds)
        same = {"dtype": a.dtype, "machine": a.machine, "what": what, "seed": seed}
        left = {n: s for n, s in by_name.items() if key({"name": n} | same) not in done}
        found = checks(left, settings, f"seed {seed}, {len(left)} implementations") if left else {}
        text = "".join(
            json.dumps({"name": name} | same | asdict(check)) + "\n"
            for name, check in found.items()
        )
        with open(a.file, "a") as out:
            out.write(text)
        for name, check in found.items():
            for one in [*check.suspected, *check.rejected]:
                print(f"  {name}: {one}")


def key(line: dict[str, Any]) -> tuple[Any, ...]:
    """What tells one line from the others."""
    return tuple(line[name] for name in ("name", "dtype", "machine", "what", "seed"))


def lines(file: Path) -> Iterator[dict[str, Any]]:
    """All that was measured, whole lines only."""
    for text in file.read_text().splitlines() if file.exists() else ():
        try:
            yield json.loads(text)
        except json.JSONDecodeError:
            continue  # the process ended while it wrote


def report(file: Path) -> str:
    """One row for each implementation, precision and instruction set."""
    rows: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for line in lines(file):
        rows[line["dtype"], line["machine"], line["what"], line["name"]].append(line)
    text = [
        "| precision | machine | check | implementation | checks | suspected | rejected | z |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for (dtype, machine, what, name), several in sorted(rows.items()):
        suspected = sum(len(line["suspected"]) for line in several)
        rejected = sum(bool(line["rejected"]) for line in several)
        largest = max(line["z"] for line in several)
        text.append(
            f"| {dtype} | {machine} | {what} | {name} | {len(several)} | {suspected} | "
            f"{rejected} | {largest:.1f} |"
        )
    return "\n".join(text)


if __name__ == "__main__":
    main()
