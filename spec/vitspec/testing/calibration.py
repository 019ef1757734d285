"""Whether the first look's constants are right: correct variants pass, planted mistakes do not.

`vitspec tolerances` prints these figures and renews the table of `docs/tolerances.md`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from rich.table import Table

from vitspec.testing.catalogue import CATALOGUE, Deviation, planted
from vitspec.testing.families import FAMILIES, MODELS
from vitspec.testing.implementations import AdapterError, Subject
from vitspec.testing.noise import SUSPICION
from vitspec.testing.precision import PRECISIONS
from vitspec.testing.reference import Flat, SpecImplementation
from vitspec.testing.trial import Trial, case_trial
from vitspec.testing.variants import VARIANTS

Step = Callable[[int, int, str], None]
CASES_PER_MISTAKE = 8
"""Small cases on which a mistake may show; `vitspec check` has a hundred."""


@dataclass
class Figures:
    """What was measured in one precision.

    Attributes:
        dtype: the precision.
        comparisons: tensors of correct variants that were graded.
        suspected: those that the first look suspects; new points clear them.
        largest: the largest z of each correct variant.
        margins: the largest z of each form of a planted mistake, over a few cases, in units of
            that of a suspicion.
    """

    dtype: str
    comparisons: int = 0
    suspected: int = 0
    largest: dict[str, float] = field(default_factory=dict)
    margins: dict[str, float] = field(default_factory=dict)

    @property
    def unseen(self) -> list[str]:
        """The mistakes that it does not suspect."""
        return [name for name, margin in self.margins.items() if margin <= 1]


def measure(
    dtypes: Sequence[str] | None = None,
    seeds: int = 20,
    step: Step = lambda *_: None,
    mistakes: bool = True,
) -> list[Figures]:
    """Grade correct variants and planted mistakes.

    Args:
        dtypes: the precisions; all by default.
        seeds: random cases for each variant.
        step: called with (done, total, name).
        mistakes: whether to plant mistakes as well.
    """
    names = list(dtypes or PRECISIONS)
    total = len(names) * (seeds + (CASES_PER_MISTAKE if mistakes else 0))
    done, all_figures = 0, []
    for dtype in names:
        figures = Figures(dtype)
        all_figures.append(figures)
        for seed in range(seeds):
            step(done, total, f"{dtype}: correct variants")
            _grade_variants(figures, seed)
            done += 1
        for seed in range(CASES_PER_MISTAKE if mistakes else 0):
            step(done, total, f"{dtype}: planted mistakes")
            _grade_mistakes(figures, seed)
            done += 1
    return all_figures


def _grade_variants(figures: Figures, seed: int) -> None:
    spec = list(MODELS)[seed % 2]
    case = FAMILIES[spec].random_case(np.random.default_rng([seed, 20]))
    base = case_trial(Subject(SpecImplementation(spec, figures.dtype)), case)
    for variant in VARIANTS:
        with planted(variant):
            found = base.evaluate(base.point)
        ratios = _ratios(base, found)
        figures.comparisons += len(ratios)
        figures.suspected += sum(ratio > 1 for ratio in ratios)
        largest = SUSPICION * max(ratios)
        figures.largest[variant.name] = max(figures.largest.get(variant.name, 0.0), largest)


def _grade_mistakes(figures: Figures, seed: int) -> None:
    for spec in MODELS:
        case = FAMILIES[spec].random_case(np.random.default_rng([seed, 21]))
        base = case_trial(Subject(SpecImplementation(spec, figures.dtype)), case)
        for form, mistake in forms():
            if spec in mistake.specs:
                found = _evaluate_with(base, spec, figures.dtype, mistake)
                ratio = max(_ratios(base, found)) if found else np.inf
                figures.margins[form] = max(figures.margins.get(form, 0.0), ratio)


def forms() -> Iterator[tuple[str, Deviation]]:
    """The deviations that models show, each as it stands and as automatic differentiation has it.

    A mistake in the forward leaves the specification's derivatives as they were; an implementation
    that differentiates its own forward has other ones, which are harder to tell from correct ones.
    """
    for mistake in CATALOGUE:
        if mistake.visible_in_model:
            yield mistake.name, mistake
            whole = mistake.differentiated()
            if whole is not None and whole.patches != mistake.patches:
                yield f"{mistake.name}, differentiated", whole


def _evaluate_with(base: Trial, spec: str, dtype: str, mistake: Deviation) -> Flat | None:
    subject = Subject(SpecImplementation(spec, dtype, [mistake]))
    try:
        return subject.evaluate(base.point)
    except AdapterError:  # some mistakes make shapes that do not fit: as visible as can be
        return None


def _ratios(trial: Trial, found: Flat) -> list[float]:
    return [look.ratio for look, _ in trial.looks(found).values()]


# ---- showing -----------------------------------------------------------------------------------


def tables(figures: Sequence[Figures]) -> Iterator[Table]:
    """The figures, for a terminal."""
    table = Table(title=f"suspected: z > {SUSPICION:g}", title_justify="left")
    for heading in _HEADINGS:
        table.add_column(heading, justify="left" if heading == "precision" else "right")
    for one in figures:
        table.add_row(*_row(one))
    yield table
    if unseen := [one for one in figures if one.unseen]:
        missed = Table(title="mistakes that whole models do not show", title_justify="left")
        missed.add_column("precision")
        missed.add_column("mistake (z / suspicion)", overflow="fold")
        for one in unseen:
            missed.add_row(one.dtype, ", ".join(_unseen(one)))
        yield missed


_HEADINGS = (
    "precision", "tensors", "suspected", "largest z", "mistakes", "seen", "smallest margin seen",
)  # fmt: skip


def _row(one: Figures) -> list[str]:
    seen = {name: margin for name, margin in one.margins.items() if margin > 1}
    smallest = f"{min(seen.values()):.2g}" if seen else ""
    return [
        one.dtype, f"{one.comparisons:,}", str(one.suspected),
        f"{max(one.largest.values(), default=0):.1f}", str(len(one.margins)), str(len(seen)),
        smallest,
    ]  # fmt: skip


def _unseen(one: Figures) -> list[str]:
    return [f"{name} ({one.margins[name]:.2g})" for name in one.unseen]


def markdown(figures: Sequence[Figures]) -> str:
    """The figures as Markdown tables."""
    rule = ["---", *["---:"] * (len(_HEADINGS) - 1)]
    lines = [_HEADINGS, rule, *(_row(one) for one in figures)]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    variants = [
        ["correct variant", *(one.dtype for one in figures)],
        ["---"] + ["---:"] * len(figures),
    ]
    for variant in VARIANTS:
        largest = [f"{one.largest.get(variant.name, 0):.1f}" for one in figures]
        variants.append([f"`{variant.name}`: {variant.description}", *largest])
    text += "\n\nThe largest z of each correct variant:\n\n"
    text += "\n".join("| " + " | ".join(line) + " |" for line in variants)
    for one in figures:
        if one.unseen:
            text += f"\n\nNot seen in whole models in {one.dtype} (z / suspicion): "
            text += ", ".join(f"`{n}` ({one.margins[n]:.2g})" for n in one.unseen) + "."
    return text + "\n"


BEGIN, END = "<!-- figures: vitspec tolerances -->", "<!-- end of figures -->"


def renewed(page: str, figures: Sequence[Figures]) -> str:
    """The page with its figures replaced by these; a page without any gets them at its end."""
    block = f"{BEGIN}\n\n{markdown(figures)}\n{END}"
    if BEGIN in page:
        return re.sub(
            f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: block, page, flags=re.DOTALL
        )
    return f"{page.rstrip()}\n\n{block}\n"


def to_json(figures: Sequence[Figures]) -> dict[str, Any]:
    """The figures as JSON-serialisable data; infinities as strings."""

    def safe(numbers: dict[str, float]) -> dict[str, Any]:
        return {n: v if np.isfinite(v) else str(v) for n, v in numbers.items()}

    return {
        "schema": "vitspec-tolerances/2",
        "precisions": [
            asdict(one) | {"largest": safe(one.largest), "margins": safe(one.margins)}
            for one in figures
        ],
    }
