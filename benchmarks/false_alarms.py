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
where it stopped, one seed at most behind. `--report` prints what is there, `--page` writes it into
docs/false-alarms.md with a picture. P of the table is the probability that a check raises a
suspicion, by Gumbel's distribution with the mean and deviation of the largest z of its checks.

Set ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA, OPENBLAS_CORETYPE, XLA_FLAGS=--xla_cpu_max_isa=... or a
number of threads for other roundings, and name the run with `--machine`. It needs the extras `fast`
and `interop`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

os.environ["JAXTYPING_DISABLE"] = "1"  # as the processes of `vitspec check` have it
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np

from vitspec.testing import trial
from vitspec.testing.finding import find
from vitspec.testing.implementations import AdapterError, Subject
from vitspec.testing.noise import SUSPICION
from vitspec.testing.reference import Point, Reference, SpecImplementation
from vitspec.testing.results import Result
from vitspec.testing.run import plan, run_unit
from vitspec.testing.settings import Settings
from vitspec.testing.suites import laws
from vitspec.testing.trial import Trial
from vitspec.testing.variants import VARIANTS

PAGE = Path(__file__).parents[1] / "docs" / "false-alarms.md"
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
            name = f"{variant.name}/{spec}"
            add(name, lambda v=variant, s=spec, n=name: SpecImplementation(s, own, [v], n))
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


class Kept:
    """The latest things that were computed, by what they were computed from."""

    def __init__(self, size: int = 40) -> None:
        self.size, self.kept = size, dict[str, Any]()

    def get(self, point: Point, others: Any, compute: Callable[[], Any]) -> Any:
        """What was kept of a point, computed if it is not there."""
        digest = hashlib.blake2b(repr((point.spec, point.config, point.layout, others)).encode())
        for array in (*point.params.values(), point.images, point.cotangent):
            digest.update(repr(array.shape).encode() + array.tobytes())
        key = digest.hexdigest()
        if key not in self.kept:
            while len(self.kept) >= self.size:
                del self.kept[next(iter(self.kept))]
            self.kept[key] = compute()
        return self.kept[key]


def shared_references() -> None:
    """Let all implementations have one truth and one noise of each point."""
    references, prices, price = Kept(), Kept(), laws.prices_of_a_sum

    def reference(point: Point, precision: Any, rng: Any, runs: int, taps: bool) -> Reference:
        return references.get(
            point,
            (precision.name, runs, taps),
            lambda: Reference(point, precision, rng, runs, taps),
        )

    def prices_of_a_sum(trial: Trial, cotangents: list[np.ndarray]) -> Any:
        others = [x.tobytes() for x in cotangents]
        return prices.get(trial.point, others, lambda: price(trial, cotangents))

    trial.Reference = reference  # type: ignore[assignment,misc]
    laws.prices_of_a_sum = prices_of_a_sum


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
    parser.add_argument("--page", action="store_true", help="and write it into its page")
    a = parser.parse_args()
    if a.report or a.page:
        print(report(a.file))
        if a.page:
            write_page(a.file)
        return
    shared_references()
    what = "photograph" if a.photograph else f"{a.cases} cases"
    done = {key(line) for line in lines(a.file)}
    by_name = subjects(a.dtype, a.only)
    a.file.parent.mkdir(exist_ok=True)
    for seed in range(a.first, a.first + a.seeds):
        kinds = {"cases": a.cases, "interpolations": 12, "degenerate": True, "laws": 4}
        kinds = {"photograph": True, "vectors": True} if a.photograph else kinds
        settings = Settings(seed=seed, dtype=a.dtype).nothing_but(**kinds)
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


# ---- what it says --------------------------------------------------------------------------------


def grouped(file: Path) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """The checks of each precision, machine, kind of check, and implementation."""
    rows: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for line in lines(file):
        rows[line["dtype"], line["machine"], line["what"], line["name"]].append(line)
    return dict(sorted(rows.items()))


def report(file: Path) -> str:
    """What all checks say together, and a row for each implementation."""
    every = list(lines(file))
    rejected = sum(bool(line["rejected"]) for line in every)
    suspected = [one for line in every for one in line["suspected"]]
    tensors = sum(line["tensors"] for line in every)
    means = max((abs(one["mean"]) for one in suspected), default=0.0)
    points = max((one["points"] for one in suspected), default=0)
    names = len({line["name"] for line in every})
    words = [f"{len(every):,} checks of {names} correct implementations: {rejected} rejected"]
    if every and not rejected:
        words.append(f", so at most {3 / len(every):.2%} of such checks are (95 %)")
    words.append(f". {tensors:,} tensors were looked at entry by entry, ")
    words.append(f"and {len(suspected)} were suspected")
    if suspected:
        words.append(f"; the largest |M| was {means:.1f}, after at most {points} points")
    text = [
        "".join(words) + ".",
        "",
        "| precision | machine | check | implementation | checks | suspected | rejected | z | P |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (dtype, machine, what, name), several in grouped(file).items():
        number = sum(len(line["suspected"]) for line in several)
        rejected = sum(bool(line["rejected"]) for line in several)
        z = [line["z"] for line in several]
        likely = f"{suspicion_rate(z):.0e}" if len(z) >= LEAST else ""
        text.append(
            f"| {dtype} | {machine} | {what} | {name} | {len(several)} | {number} | "
            f"{rejected} | {max(z):.1f} | {likely} |"
        )
    return "\n".join(text)


LEAST = 5
"""Checks of an implementation by which a distribution is fitted."""


def gumbel(z: list[float]) -> tuple[float, float]:
    """Place and width of the distribution of a largest value, by its mean and deviation."""
    width = float(np.std(z, ddof=1)) * 6**0.5 / np.pi
    return float(np.mean(z)) - float(np.euler_gamma) * width, width


def suspicion_rate(z: list[float]) -> float:
    """The probability that a check raises a suspicion, by the distribution fitted to its z."""
    place, width = gumbel(z)
    return float(-np.expm1(-np.exp(-(SUSPICION - place) / max(width, 1e-9))))


def draw(file: Path, picture: Path) -> None:
    """How often the largest z of a check is beyond each z, and the fitted distribution."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for dtype in dict.fromkeys(line["dtype"] for line in lines(file)):
        z = np.sort([x["z"] for x in lines(file) if x["dtype"] == dtype and x["tensors"]])
        beyond = 1 - np.arange(len(z)) / len(z)
        (dots,) = axes.semilogy(z, beyond, ".", label=f"{dtype}: {len(z)} checks")
        if len(z) >= LEAST:
            place, width = gumbel(z.tolist())
            some = np.linspace(min(z), 6, 200)
            fitted = -np.expm1(-np.exp(-(some - place) / width))
            axes.semilogy(some, fitted, color=dots.get_color(), linewidth=0.8)
    axes.axvline(SUSPICION, color="gray", linestyle="--", linewidth=0.8)
    axes.text(SUSPICION, 1, " asked at new points", va="top", color="gray")
    axes.set(xlabel="z", ylabel="share of checks whose largest z is beyond", ylim=(1e-5, 1.3))
    axes.legend()
    figure.savefig(picture, metadata={"Date": None})


def write_page(file: Path) -> None:
    """Renew the table and the picture of the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, begin, rest = text.partition("<!-- figures: benchmarks/false_alarms.py -->\n")
    _, end, after = rest.partition("<!-- end of figures -->")
    PAGE.write_text(f"{before}{begin}\n{report(file)}\n\n{end}{after}", encoding="utf-8")
    draw(file, PAGE.parent / "figures" / "false-alarms.svg")


if __name__ == "__main__":
    main()
