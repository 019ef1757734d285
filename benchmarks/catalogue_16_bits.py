"""In how many drawn cases each mistake of the catalogue shows in 16 bits, by two rules.

    python benchmarks/catalogue_16_bits.py [--dtype bfloat16] [--cases 30] [--page]

Every mistake that whole models can show, as it stands and with the derivatives of its own forward,
is planted into the specification, which computes in that precision, and judged at the first drawn
cases of the default check (those of interpolations, where it shows only there): by today's rule,
and by that of version 0.5 at the same results. A line of `results/catalogue_16_bits.jsonl` is one
case of one family; run it again and it goes on where it stopped. `--page` writes what is there into
docs/catalogue-in-bfloat16.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["JAXTYPING_DISABLE"] = "1"  # as the processes of `vitspec check` have it

from rule_of_0_5 import conformed, prices_of_0_5

from vitspec.testing import confirmation
from vitspec.testing.catalogue import Deviation, deviations_of
from vitspec.testing.confirmation import Witness
from vitspec.testing.implementations import AdapterError, Subject
from vitspec.testing.reference import Point, SpecImplementation
from vitspec.testing.report import write_atomically
from vitspec.testing.settings import Settings
from vitspec.testing.suites import SUITES
from vitspec.testing.tolerance import Price
from vitspec.testing.trial import Trial

KEPT = Path(__file__).parent / "results" / "catalogue_16_bits.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "catalogue-in-bfloat16.md"
BEGIN, END = "<!-- catalogue: benchmarks/catalogue_16_bits.py -->", "<!-- end of catalogue -->"
FAMILIES = ("vit", "vit-cls", "vision-transformer")
NONE = "none"
"""The specification as it stands, which no rule may reject."""


def main() -> None:
    """Judge what is not judged yet, and print as it goes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--cases", type=int, default=30)
    parser.add_argument("--page", action="store_true", help="renew the page, run nothing")
    a = parser.parse_args()
    done = kept(a.dtype)
    shared_new_points()
    start = time.monotonic()
    for case in range(0 if a.page else a.cases):
        for spec in FAMILIES:
            if (spec, case) in done:
                continue
            outcomes = judged(spec, a.dtype, case)
            done[spec, case] = outcomes
            line = {"dtype": a.dtype, "family": spec, "case": case, "outcomes": outcomes}
            with KEPT.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{spec}, case {case}: {time.monotonic() - start:.0f} s", flush=True)
    text = tables(done)
    print(text)
    if a.page:
        page = PAGE.read_text(encoding="utf-8")
        block = f"{BEGIN}\n\n{text}\n{END}"
        marked = f"{re.escape(BEGIN)}.*?{re.escape(END)}"
        write_atomically(PAGE, re.sub(marked, lambda _: block, page, flags=re.DOTALL))


def kept(dtype: str) -> dict[tuple[str, int], dict[str, str]]:
    """What was judged before: outcomes by family and case."""
    lines = KEPT.read_text(encoding="utf-8").splitlines() if KEPT.exists() else []
    records = [one for one in map(json.loads, lines) if one["dtype"] == dtype]
    return {(one["family"], one["case"]): one["outcomes"] for one in records}


def forms(spec: str) -> Iterator[tuple[str, Deviation]]:
    """The mistakes of a family, each as it stands and as automatic differentiation has it."""
    for mistake in deviations_of(spec, other_sizes=True):
        if mistake.visible_in_model:
            yield mistake.name, mistake
            whole = mistake.differentiated()
            if whole is not None and whole.patches != mistake.patches:
                yield f"{mistake.name}, differentiated", whole


def judged(spec: str, dtype: str, case: int) -> dict[str, str]:
    """The outcome of each mistake at one drawn case: two letters, of 0.5's rule and of today's.

    "d" departs, "c" conforms, "u" cannot be told in this precision.
    """
    shared: dict[str, tuple[Trial, dict[str, Price]]] = {}
    outcomes = {}
    for name, mistake in [(NONE, None), *forms(spec)]:
        other_sizes = mistake is not None and mistake.other_sizes_only
        suite = "interpolation" if other_sizes else "case"
        mistakes: Any = () if mistake is None else [mistake]
        subject = Subject(SpecImplementation(spec, dtype, mistakes), dtype)
        trial = SUITES[suite].trial(subject, Settings(), case)
        if suite not in shared:
            shared[suite] = trial, prices_of_0_5(trial, case)
        trial.reference, prices = shared[suite][0].reference, shared[suite][1]
        try:
            before = "c" if conformed(trial, prices) else "d"
            outcomes[name] = before + _today(trial)
        except AdapterError:  # some make shapes that do not fit: as visible as can be
            outcomes[name] = "dd"
    return outcomes


def _today(trial: Trial) -> str:
    """What `trial.grades` come to; once one departure is certain, no other is looked into."""
    suspicions = [one for _, several in trial.looks(trial.found).values() for one in several]
    rng = trial._of_points
    witness = Witness(trial.reference, trial.found, trial.evaluate, trial.neighbour, rng)
    outcome = "c"
    for grade in confirmation._decided(suspicions, witness):
        if not grade.conforms and not grade.untold:
            return "d"
        outcome = "u" if grade.untold else outcome
    return outcome


def shared_new_points() -> None:
    """Compute the truth and the noise of a new point once: all mistakes of a case have the same.

    A trial's new points and their noise come from one stream, which starts with the case's seed.
    """
    latest: dict[Any, tuple[Any, Any]] = {}

    def once(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def kept(*arguments: Any, **named: Any) -> Any:
            (point,) = (one for one in arguments if isinstance(one, Point))
            rng = next((one for one in arguments if hasattr(one, "bit_generator")), None)
            key = name, point.config, point.images.tobytes(), point.cotangent.tobytes()
            if key not in latest:
                found = function(*arguments, **named)
                state = copy.deepcopy(rng.bit_generator.state) if rng is not None else None
                while len(latest) >= 200:
                    del latest[next(iter(latest))]
                latest[key] = found, state
            found, state = latest[key]
            if rng is not None:  # as if it had been drawn from
                rng.bit_generator.state = state
            return found

        return kept

    for name in ("evaluate_spec", "evaluate_in", "noise_of_spec"):
        setattr(confirmation, name, once(getattr(confirmation, name), name))


# ---- showing -------------------------------------------------------------------------------------


def tables(done: dict[tuple[str, int], dict[str, str]]) -> str:
    """Counts by family, and every mistake for which the two rules differ or that none shows."""
    shows: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for (spec, _), outcomes in done.items():
        for name, (before, now) in outcomes.items():
            shows[spec, name].append((before == "d", now == "d"))
    counts = {key: tuple(map(sum, zip(*cases, strict=True))) for key, cases in shows.items()}
    cases = {spec: sum(one == spec for one, _ in done) for spec in FAMILIES}
    lines = [
        "| family | drawn cases | mistakes | shown by 0.5's rule | now | of all cases, 0.5 | now "
        "| right code rejected, 0.5 | now |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for spec in FAMILIES:
        own = [count for (of, name), count in counts.items() if of == spec and name != NONE]
        right = counts.get((spec, NONE), (0, 0))
        shown = [sum(count[rule] > 0 for count in own) for rule in (0, 1)]
        share = [sum(c[rule] for c in own) / max(1, len(own) * cases[spec]) for rule in (0, 1)]
        lines.append(
            f"| {spec} | {cases[spec]} | {len(own)} | {shown[0]} | {shown[1]} "
            f"| {share[0]:.3f} | {share[1]:.3f} | {right[0]} | {right[1]} |"
        )
    return "\n".join(lines) + "\n" + _lists(counts, cases)


def _lists(counts: dict[tuple[str, str], Any], cases: dict[str, int]) -> str:
    """The mistakes by which the rules differ, each with its counts by either."""
    groups: dict[str, list[str]] = {
        "Shown now, and by 0.5's rule in no case": [],
        "Shown by 0.5's rule, and now in no case": [],
        "Shown in no case by either": [],
        "Shown in more cases now": [],
        "Shown in fewer cases now": [],
    }
    new, lost, never, more, fewer = groups.values()
    for (spec, name), (before, now) in sorted(counts.items()):
        if name == NONE or (before == now and before):
            continue
        group = more if now > before else fewer
        if not (before and now):
            group = new if now else lost if before else never
        group.append(f"| `{name}` | {spec} | {before} of {cases[spec]} | {now} of {cases[spec]} |")
    text = ""
    for title, rows in groups.items():
        text += f"\n{title}: {len(rows) or 'none'}.\n"
        if rows:
            heading = "| mistake | family | rule of 0.5 | now |\n| --- | --- | ---: | ---: |\n"
            text += "\n" + heading + "\n".join(rows) + "\n"
    return text


if __name__ == "__main__":
    main()
