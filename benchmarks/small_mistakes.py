"""How many drawn cases show a small mistake, by today's rule and by that of version 0.5.

    python benchmarks/small_mistakes.py [--cases 100] [--seed 0] [--markdown FILE]

The specification in NumPy's float32, of the practical family, with one factor a little off, forward
and backward; and as it stands, which must show in no case. Both rules judge the same results at the
same points.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

os.environ["JAXTYPING_DISABLE"] = "1"  # as the processes of `vitspec check` have it

from rule_of_0_5 import conformed, prices_of_0_5

from vitspec.testing.catalogue import Patch
from vitspec.testing.implementations import Subject
from vitspec.testing.reference import Reference, SpecImplementation
from vitspec.testing.report import write_atomically
from vitspec.testing.settings import Settings
from vitspec.testing.suites import SUITES
from vitspec.testing.variants import Variant

MISTAKES = (
    Variant("none", "as it stands", ()),
    Variant(
        "epsilon + 1e-6",
        "of every layer norm",
        (Patch("layers.normalization:normalize", "+ scalars.scalar(epsilon, x.dtype)",
               "+ scalars.scalar(epsilon, x.dtype) + x.dtype.type(1e-6)"),),
    ),
    Variant(
        "epsilon + 2e-7",
        "of every layer norm",
        (Patch("layers.normalization:normalize", "+ scalars.scalar(epsilon, x.dtype)",
               "+ scalars.scalar(epsilon, x.dtype) + x.dtype.type(2e-7)"),),
    ),
    Variant(
        "mean pooling x (1 + 1e-6)",
        "and its backward",
        (Patch("models.tokens:mean_pool", "return ", "return np.float32(1 + 1e-6) * "),
         Patch("models.tokens:mean_pool_backward", "return ", "return np.float32(1 + 1e-6) * ")),
    ),
    Variant(
        "scores x (1 + 1e-6)",
        "in every attention, and their backward",
        (Patch("layers.attention:attention_scale_denom", "return ",
               "return np.float32(1 - 1e-6) * "),),
    ),
)  # fmt: skip


def main() -> None:
    """Count, and print as it goes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", type=Path)
    a = parser.parse_args()
    subjects = {
        m.name: Subject(SpecImplementation("vision-transformer", mistakes=[m]), "float32")
        for m in MISTAKES
    }
    now, before = dict.fromkeys(subjects, 0), dict.fromkeys(subjects, 0)
    start = time.monotonic()
    for case in range(a.cases):
        shared: Reference | None = None
        prices = None
        for name, subject in subjects.items():
            trial = SUITES["case"].trial(subject, Settings(seed=a.seed), case)
            shared = trial.reference = shared or trial.reference
            prices = prices or prices_of_0_5(trial, case)
            before[name] += not conformed(trial, prices)
            now[name] += not all(grade.conforms for grade in trial.grades.values())
        seconds = time.monotonic() - start
        counts = ", ".join(f"{name}: {before[name]} {now[name]}" for name in subjects)
        print(f"{case + 1} of {a.cases} cases, {seconds:.0f} s; {counts}", flush=True)
    text = table(before, now, a.cases)
    print(text)
    if a.markdown:
        write_atomically(a.markdown, text)


def table(before: dict[str, int], now: dict[str, int], cases: int) -> str:
    """Shares by both rules."""
    lines = [f"| mistake, in {cases} cases | rule of 0.5 | now |", "| --- | ---: | ---: |"]
    for name in before:
        lines.append(f"| {name} | {before[name] / cases:.2f} | {now[name] / cases:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
