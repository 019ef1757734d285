"""The checks: each takes a trial, an implementation at one point, and says how it did.

A `Trial` evaluates what the checks share once: the implementation, the truth, and the price of its
precision. The kinds of trial are the photograph, small random cases, and cases for the laws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from vitspec.testing import implementations, laws
from vitspec.testing.cases import KINK_MARGIN
from vitspec.testing.kinds import ILL_FORMED as ILL_FORMED
from vitspec.testing.kinds import KINDS, AnyCase, Config
from vitspec.testing.kinds import SMOKE_CONFIGS as SMOKE_CONFIGS
from vitspec.testing.photograph import load_photograph
from vitspec.testing.precision import Precision
from vitspec.testing.reference import Flat, Point, evaluate_spec, price_spec
from vitspec.testing.results import Result, Status, graded
from vitspec.testing.tolerance import Grade, Price, grade

CASE_RUNS = 12
"""Noise runs that set the price of a small case, where each is a small sample of rounding."""
PHOTOGRAPH_RUNS = 2
"""Noise runs at full size, where each has millions of roundings to average over."""
LAW_FACTOR = 8.0
"""A law compares results that all err, perhaps of a function that rounds worse than the truth."""


def kink_margin(precision: Precision) -> float:
    """How far a small case keeps the inputs of its ReLUs from 0, out of the precision's reach."""
    return max(KINK_MARGIN, 32 * precision.u)


class Trial:
    """An implementation at one point.

    Args:
        implementation: what is checked.
        point: where; exact in the precision.
        precision: what is checked.
        rng: for the noise runs and whatever the checks draw.
        runs: the number of noise runs.
        place: what results call it.
        description: the same in words.
    """

    def __init__(
        self,
        implementation: Any,
        point: Point,
        precision: Precision,
        rng: np.random.Generator,
        runs: int = CASE_RUNS,
        place: str = "",
        description: str = "",
    ) -> None:
        self.implementation, self.point, self.precision = implementation, point, precision
        self.rng, self.runs, self.place = rng, runs, place
        self.description = description or implementations.describe(point)

    @cached_property
    def found(self) -> Flat:
        """What the implementation computes: logits, taps, and gradients if it has any."""
        return self.evaluate(self.point)

    @cached_property
    def truth(self) -> Flat:
        """What the specification computes in float64."""
        return evaluate_spec(self.point)

    @cached_property
    def prices(self) -> dict[str, Price]:
        """What the precision costs each tensor."""
        # At full size float32 halves the time, and the noise is larger than its own rounding.
        carrier = self.precision.carrier if self.runs < CASE_RUNS else "float64"
        return price_spec(self.point, self.truth, self.precision, self.runs, self.rng, carrier)

    def evaluate(self, point: Point) -> Flat:
        """The implementation elsewhere."""
        found = implementations.forward(self.implementation, point, self.precision)
        if implementations.has_vjp(self.implementation):
            found |= implementations.vjp(self.implementation, point, self.precision)
        return found

    def gradients(self, point: Point) -> Flat:
        """The implementation's gradients elsewhere."""
        return implementations.vjp(self.implementation, point, self.precision)

    def grade(self, name: str) -> Grade:
        """The verdict on one tensor."""
        return grade(name, self.found[name], self.truth[name], self.prices[name])

    def compare(
        self, name: str, value: Any, expected: Any, scale: float = 1.0, factor: float = LAW_FACTOR
    ) -> Grade:
        """The verdict on a tensor that must equal another of the implementation's own.

        Args:
            name: the tensor.
            value: one of them.
            expected: the other.
            scale: how much larger they are than at the trial's point.
            factor: of the bound.
        """
        price = self.prices[name].scaled(scale)
        return grade(name, value, np.asarray(expected, np.float64), price, factor)

    def result(self, check: str, grades: Any) -> Result:
        """The result of a check of this trial."""
        return graded(check, self.place, grades, self.description)

    def skip(self, check: str, reason: str) -> Result:
        """A check that does not apply."""
        return Result(check, self.place, "skipped", reason=reason, point=self.description)


Check = Callable[[Trial], Result]


# ---- against the truth -------------------------------------------------------------------------


def check_forward(trial: Trial, name: str = "forward") -> Result:
    """The logits are the specification's."""
    return trial.result(name, [trial.grade("logits")])


def check_vjp(trial: Trial, name: str = "vjp") -> Result:
    """The gradients of the images and of every parameter are the specification's."""
    if not implementations.has_vjp(trial.implementation):
        return trial.skip(name, "it has no vjp")
    tensors = [tensor for tensor in trial.truth if tensor != "logits"]
    return trial.result(name, [trial.grade(tensor) for tensor in tensors])


def check_interpolated_forward(trial: Trial) -> Result:
    """The logits of images of another size are the specification's."""
    return check_forward(trial, "interpolation.forward")


def check_interpolated_vjp(trial: Trial) -> Result:
    """Their gradients are: that of the positions passes through the interpolation's transpose."""
    return check_vjp(trial, "interpolation.vjp")


# ---- against itself ----------------------------------------------------------------------------


def check_determinism(trial: Trial) -> Result:
    """The same point twice gives the same bits."""
    again = trial.evaluate(trial.point)
    moved = [n for n, value in trial.found.items() if not _same_bits(value, again[n])]
    reason = f"differs from run to run: {', '.join(moved[:5])}" if moved else ""
    status: Status = "failed" if moved else "passed"
    return Result("determinism", trial.place, status, reason=reason, point=trial.description)


def check_linearity(trial: Trial) -> Result:
    """vjp(g + h) = vjp(g) + vjp(h)."""
    shape = trial.point.cotangent.shape
    # Multiples of 1/8 up to 4: their sums are exact in every precision.
    g, h = (trial.rng.integers(-32, 33, size=shape) / 8 for _ in range(2))
    if not np.any(g) or not np.any(h):
        g, h = g + 1, h - 1
    cotangents = [x.astype(trial.point.cotangent.dtype) for x in (g, h, g + h)]
    first, second, both = (
        trial.gradients(replace(trial.point, cotangent=c)) for c in cotangents
    )  # fmt: skip
    scale = sum(_relative_size(c, trial.point.cotangent) for c in cotangents)
    grades = [
        trial.compare(name, both[name], _wide(first[name]) + _wide(second[name]), scale)
        for name in both
    ]
    return trial.result("linearity", grades)


def check_scale(trial: Trial) -> Result:
    """vjp(4 g) = 4 vjp(g); a stray constant, a clipped or a normalised gradient shows."""
    larger = trial.gradients(replace(trial.point, cotangent=4 * trial.point.cotangent))
    grades = [trial.compare(n, larger[n], 4 * _wide(trial.found[n]), 4.0) for n in larger]
    return trial.result("scale", grades)


def check_batch_split(trial: Trial) -> Result:
    """A batch gives what its images give one by one; parameters' gradients add up."""
    point = trial.point
    singles = [
        trial.evaluate(
            replace(point, images=point.images[i : i + 1], cotangent=point.cotangent[i : i + 1])
        )
        for i in range(len(point.images))
    ]
    grades = []
    for name in trial.prices.keys() & trial.found.keys():
        parts = [_wide(one[name]) for one in singles]
        joined = np.concatenate(parts) if name in ("logits", "image") else sum(parts)
        grades.append(trial.compare(name, trial.found[name], joined))
    return trial.result("batch-split", sorted(grades, key=lambda g: g.tensor))


def check_laws(trial: Trial) -> Iterator[Result]:
    """Every permutation that leaves the function alone."""
    for law in laws.laws(trial.point, trial.rng):
        found = law.restore(trial.evaluate(law.point))
        names = [name for name in trial.prices if name in found]
        grades = [trial.compare(name, found[name], trial.found[name]) for name in names]
        yield trial.result(law.name, grades)


def _wide(value: Any) -> Any:
    return np.asarray(value, np.float64)


def _same_bits(a: Any, b: Any) -> bool:
    return bool(a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes())


def _relative_size(a: Any, b: Any) -> float:
    return float(np.linalg.norm(a) / np.linalg.norm(b))


# ---- what must be refused ----------------------------------------------------------------------


def check_ill_formed(implementation: Any, precision: Precision, place: str) -> Iterator[Result]:
    """The implementation raises an error for a configuration that breaks a rule."""
    kind = KINDS[implementation.spec]
    good = implementations.closest(implementation, kind.smoke_configs[0])
    image_shape = kind.smoke_case(good).image_shape
    for label, change in kind.ill_formed.items():
        config = replace(good, **change)
        check = f"ill-formed.{label}"
        try:
            reason = implementations.why_unsupported(implementation, config)
            if reason is not None:
                yield Result(
                    check, place, "passed", reason=f"refused: {reason}", point=repr(config)
                )
                continue
            point = _point_of_any_config(implementation.spec, config, image_shape)
            implementations.forward(implementation, point.rounded(precision), precision)
        except Exception as error:  # any error is a refusal; a crash of the process is not
            text = f"refused: {type(error.__cause__ or error).__name__}"
            yield Result(check, place, "passed", reason=text, point=repr(config))
        else:
            reason = f"accepted a configuration with {change}; it must raise an error"
            yield Result(check, place, "failed", reason=reason, point=repr(config))


def _point_of_any_config(spec: str, config: Config, image_shape: tuple[int, ...]) -> Point:
    """Arrays of the shapes that an ill-formed configuration asks for."""
    rng = np.random.default_rng(0)
    shapes = KINDS[spec].any_shapes(config)
    params = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    images = rng.standard_normal((2, *image_shape))
    return Point(spec, config, params, images, rng.standard_normal((2, config.num_classes)))


# ---- first of all: is it an adapter? -----------------------------------------------------------


def smoke(implementation: Any, precision: Precision, config: Any = None) -> Any:
    """Whether the adapter works at all: shapes, types, finite numbers, on two images.

    Returns:
        The configuration that it was tried on.

    Raises:
        AdapterError: it does not; nothing else is worth running.
    """
    kind = KINDS[implementation.spec]
    known = [implementations.closest(implementation, c) for c in kind.smoke_configs]
    candidates = [config] if config else known
    reasons = [implementations.why_unsupported(implementation, c) for c in candidates]
    if all(reasons):
        raise implementations.AdapterError(
            f"{implementation.name} supports none of the configurations that were tried "
            f"(the last, {candidates[-1]!r}: {reasons[-1]}); name one that it does: --config"
        )
    chosen = candidates[reasons.index(None)]
    case = kind.smoke_case(chosen)
    point = Point.of(case).rounded(precision)
    before = {name: leaf.tobytes() for name, leaf in point.params.items()}
    trial = Trial(implementation, point, precision, np.random.default_rng(0))
    found = trial.found
    wrong = [name for name, value in found.items() if not np.isfinite(_wide(value)).all()]
    if wrong:
        raise implementations.AdapterError(
            f"{implementation.name} gave NaN or infinity on {case}: {', '.join(sorted(wrong)[:5])}"
        )
    if any(leaf.tobytes() != before[name] for name, leaf in point.params.items()):
        raise implementations.AdapterError(f"{implementation.name} changed its parameters")
    _require_repeatable(implementation, trial)
    return chosen


GROSS = 2**10
"""Two runs that differ by this many roundings are no matter of the order of sums."""


def _require_repeatable(implementation: Any, trial: Trial) -> None:
    again = trial.evaluate(trial.point)
    for name, value in trial.found.items():
        apart, size = np.linalg.norm(_wide(again[name]) - _wide(value)), np.linalg.norm(value)
        if apart > GROSS * trial.precision.u * size:
            raise implementations.AdapterError(
                f"{implementation.name} gives something else on every run: {name} moved by "
                f"{apart / size:.0e} of its size; is dropout on, or a seed not fixed?"
            )


# ---- trials ------------------------------------------------------------------------------------


def case_trial(implementation: Any, precision: Precision, case: AnyCase, place: str = "") -> Trial:
    """The trial of one small case."""
    point = Point.of(case).away_from_kinks(kink_margin(precision)).rounded(precision)
    rng = np.random.default_rng([case.seed, 3])
    return Trial(implementation, point, precision, rng, place=place, description=repr(case))


def random_trial(
    implementation: Any, precision: Precision, seed: int, index: int, config: Config | None
) -> Trial:
    """The trial of the small case number `index` of `seed`."""
    kind = KINDS[implementation.spec]
    case = kind.random_case(np.random.default_rng([seed, index]))
    case = _with_config(implementation, case, config)
    return case_trial(implementation, precision, case, f"case {index}")


def law_trial(
    implementation: Any, precision: Precision, seed: int, index: int, config: Config | None
) -> Trial:
    """The trial of the laws number `index` of `seed`."""
    kind = KINDS[implementation.spec]
    case = kind.tiled_case(np.random.default_rng([seed, index, 1]))
    case = _with_config(implementation, case, config)
    return case_trial(implementation, precision, case, f"law {index}")


def interpolation_trial(
    implementation: Any, precision: Precision, seed: int, index: int, config: Config | None
) -> Trial:
    """The trial of images of another size number `index` of `seed`."""
    kind = KINDS[implementation.spec]
    case = kind.interpolated_case(np.random.default_rng([seed, index, 2]))
    case = _with_config(implementation, case, config)
    return case_trial(implementation, precision, case, f"interpolation {index}")


def _with_config(implementation: Any, case: AnyCase, config: Config | None) -> AnyCase:
    """The case with the user's configuration, or else the closest that is supported."""
    config = config or implementations.closest(implementation, case.config)
    return case if config == case.config else KINDS[case.spec].with_config(case, config)


def photograph_trial(
    implementation: Any,
    precision: Precision,
    seed: int,
    config: Config | None = None,
) -> Trial:
    """The trial of the photograph, with a fresh random model, of full size if none is given."""
    kind = KINDS[implementation.spec]
    config = config or implementations.closest(implementation, kind.full_size)
    rng = np.random.default_rng([seed, 1])
    params = kind.full_size_parameters(config, rng)
    cotangent = rng.standard_normal((1, config.num_classes))
    point = Point(implementation.spec, config, params, load_photograph()[None], cotangent)
    del params
    point = point.away_from_kinks(KINK_MARGIN).rounded(precision)
    return Trial(
        implementation, point, precision, rng, PHOTOGRAPH_RUNS, "photograph",
        f"the photograph, {config!r}",
    )  # fmt: skip
