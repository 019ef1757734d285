"""Making the test vectors: truth from real balls, tolerances from noise, margins from mistakes.

`vitspec vectors build` makes every file of the data folder anew, with the same bytes on every
machine. The truth is computed in real balls of 256 bits and rounded once, to the nearest float64.
What a precision costs comes from Monte Carlo arithmetic, whose errors are far larger than those of
the machine beneath it, and is rounded up to two digits. (For float64 the runs err like float32, and
count 2^-29 times: the error of a rounding is proportional to it.) Margins are rounded down.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from vitspec.reals import to_reals
from vitspec.scalars import arb_type
from vitspec.testing import reference
from vitspec.testing.catalogue import CATALOGUE, Deviation, planted
from vitspec.testing.precision import (
    PRECISIONS,
    NoisyArithmetic,
    Precision,
    RoundingArithmetic,
)
from vitspec.testing.reference import Flat, Point
from vitspec.testing.tolerance import Price, Sizes, distances, grade, sizes
from vitspec.testing.vectors import format as files
from vitspec.testing.vectors.format import VectorError
from vitspec.testing.vectors.layers import evaluate_layer
from vitspec.testing.vectors.plan import PLAN, IllFormedPlan, LayerPlan, ModelPlan
from vitspec.testing.vectors.schema import CASE, CASE_SCHEMA, INDEX
from vitspec.typing import Array

BITS = 256
ZERO = 2.0**-100
"""A ball around 0 that is this much smaller than the case's largest number is 0: terms cancel."""
RUNS = 12
"""Noise runs for each precision."""
ROUNDING = 2.0**-40
"""Of the case's largest number: a mistake that changes less changes nothing but roundings."""
LARGEST_MARGIN = 1e6
KILLS = 10
"""A case claims a deviation that is this many times over its bound in float32."""

Convert = Callable[[Array], Any]
WellFormed = ModelPlan | LayerPlan


class Built:
    """One well-formed case, evaluated: what its files are made of."""

    def __init__(self, plan: WellFormed) -> None:
        self.plan = plan
        # At once: computed later, they might be those of a specification with a mistake in it.
        self.inputs = plan.inputs()
        """All inputs by name, float64."""
        for array in self.inputs.values():
            array.setflags(write=False)
        self.truth = correctly_rounded(self.evaluate(lambda x: to_reals(x, BITS)), plan.id)
        """The outputs, correctly rounded."""
        self._plain = self.evaluate(np.asarray)  # in this machine's float64
        self._noises: dict[str, list[dict[str, Sizes]]] = {}

    def evaluate(self, convert: Convert) -> Flat:
        """The outputs by name, in the arithmetic that `convert` takes numbers to."""

        def fresh(array: Array) -> Any:
            return convert(array.copy())  # arithmetic in place must not reach the inputs

        if isinstance(self.plan, LayerPlan):
            return evaluate_layer(self.plan.layer, self.inputs, self.plan.settings, fresh)
        params = dict(self.inputs)
        images, cotangent = params.pop("images"), params.pop("cotangent")
        point = Point(self.plan.spec, self.plan.config, params, images, cotangent)
        return reference._evaluate(point, fresh, False)

    @cached_property
    def prices(self) -> dict[str, dict[str, Price]]:
        """What each precision costs each tensor, as it is frozen."""
        return {dtype: self._price(PRECISIONS[dtype]) for dtype in self.plan.dtypes}

    def _price(self, precision: Precision) -> dict[str, Price]:
        err_like = "float32" if precision.name == "float64" else precision.name
        smaller = precision.u / PRECISIONS[err_like].u
        prices = {}
        for name, value in self.truth.items():
            noise = [_times(run[name], smaller) for run in self._noise(err_like)]
            prices[name] = _frozen(Price.of(sizes(value), noise, precision.u))
        return prices

    def _noise(self, dtype: str) -> list[dict[str, Sizes]]:
        """The distances of runs that err from the truth."""
        if dtype not in self._noises:
            rng = np.random.default_rng([*self.plan.id.encode(), *dtype.encode()])
            self._noises[dtype] = runs = []
            for run in range(RUNS):
                # A published set's prices do not change: in v1 a function errs by one rounding.
                arithmetic = NoisyArithmetic(PRECISIONS[dtype], rng, run % 2 == 1, primitives={})
                found = self.evaluate(arithmetic.array)
                runs.append({n: distances(np.asarray(found[n]), v) for n, v in self.truth.items()})
        return self._noises[dtype]

    def margins(self, deviations: Sequence[Deviation]) -> dict[str, dict[str, float]]:
        """By precision and deviation: how many times over the bound the mistaken outputs are.

        A mistake in the forward may come with the specification's derivatives or with its own; the
        smaller margin counts. Only those above 1 are listed: the others are not seen.
        """
        found: dict[str, dict[str, float]] = {dtype: {} for dtype in self.plan.dtypes}
        for deviation in deviations:
            margins: dict[str, list[float]] = {dtype: [] for dtype in self.plan.dtypes}
            for form in (deviation, deviation.differentiated()):
                if form is None or (form is not deviation and not deviation.derivatives):
                    continue
                for dtype, outputs in self._mistaken(form):
                    margins[dtype].append(self._margin(outputs, dtype))
            for dtype, both in margins.items():
                if both and min(both) > 1:
                    found[dtype][deviation.name] = min(both)
        return found

    def _mistaken(self, deviation: Deviation) -> Iterator[tuple[str, Flat]]:
        """The outputs with a mistake in them, for each precision in which they are to be graded."""
        if deviation.kind == "jvp":
            return
        if isinstance(self.plan, ModelPlan) and self.plan.spec not in deviation.specs:
            return
        if deviation.kind == "accuracy":  # the mistake shows only where numbers are rounded
            for dtype in self.plan.dtypes:
                arithmetic = RoundingArithmetic(PRECISIONS[dtype])
                outputs = self._planted(deviation, arithmetic.array)
                # In float64 the roundings are this machine's own; overflow is everybody's.
                if outputs and (dtype != "float64" or not _all_finite(outputs)):
                    yield dtype, outputs
            return
        outputs = self._planted(deviation, np.asarray)
        if outputs:
            # The difference is the same on every machine, but for what is only rounding.
            changed = {name: self._changed(outputs[name], name) for name in self.truth}
            yield from ((dtype, changed) for dtype in self.plan.dtypes)

    def _planted(self, deviation: Deviation, convert: Convert) -> Flat | None:
        """The mistaken outputs; None if there are none of the right shapes: nothing to grade."""
        try:
            with planted(deviation), np.errstate(all="ignore"):
                outputs = self.evaluate(convert)
        except Exception:
            return None
        outputs = {name: np.asarray(value) for name, value in outputs.items()}
        same = all(outputs[name].shape == value.shape for name, value in self.truth.items())
        return outputs if same else None

    def _changed(self, mistaken: Array, name: str) -> Array:
        difference = mistaken - self._plain[name]
        largest = max(np.abs(value).max(initial=0.0) for value in self.truth.values())
        if np.abs(difference).max(initial=0.0) <= ROUNDING * largest:
            return self.truth[name]
        return self.truth[name] + difference

    def _margin(self, outputs: Flat, dtype: str) -> float:
        ratios = [
            grade(name, outputs[name], value, self.prices[dtype][name]).ratio
            for name, value in self.truth.items()
            if outputs[name] is not value
        ]
        return round_to_digits(min(max(ratios, default=0.0), LARGEST_MARGIN), ROUND_FLOOR)

    def files(self, deviations: Sequence[Deviation] = CATALOGUE) -> dict[str, bytes]:
        """The case's files by name."""
        plan, margins = self.plan, self.margins(deviations)
        case = {
            "schema": CASE,
            "id": plan.id,
            "category": plan.category,
            "description": plan.description,
            "judges": plan.judges,
            "flags": sorted(n for n, margin in margins["float32"].items() if margin >= KILLS),
            "inputs": {name: list(array.shape) for name, array in self.inputs.items()},
            "outputs": {name: list(array.shape) for name, array in self.truth.items()},
            "tolerance": {
                dtype: {name: _written(price) for name, price in prices.items()}
                for dtype, prices in self.prices.items()
            },
            "kill_margin": margins,
        }
        if isinstance(plan, ModelPlan):
            case |= {"kind": "model", "spec": plan.spec, "config": asdict(plan.config)}
            case["image"] = _image(plan.image)
        else:
            case |= {"kind": "layer", "layer": plan.layer, "settings": dict(plan.settings)}
        inputs = {name: array.astype(np.float32) for name, array in self.inputs.items()}
        if any((inputs[name] != array).any() for name, array in self.inputs.items()):
            raise VectorError(f"{plan.id}: an input is not exact in float32")
        return {
            "case.json": files.dump_json(case),
            "inputs.safetensors": files.dump_safetensors(inputs),
            "outputs.safetensors": files.dump_safetensors(self.truth),
        }


def _ill_formed_files(plan: IllFormedPlan) -> dict[str, bytes]:
    case = {
        "schema": CASE,
        "id": plan.id,
        "category": plan.category,
        "kind": "model",
        "spec": plan.spec,
        "description": plan.description,
        "config": dict(plan.config),
        "image": _image(plan.image),
        "violations": sorted(plan.violations),
    }
    return {"case.json": files.dump_json(case)}


def _image(size: tuple[Any, Any, Any]) -> dict[str, Any]:
    return dict(zip(("in_channels", "height", "width"), size, strict=True))


def _all_finite(outputs: Flat) -> bool:
    return all(np.isfinite(value).all() for value in outputs.values())


# ---- numbers -----------------------------------------------------------------------------------


def correctly_rounded(balls: Mapping[str, Array], where: str) -> Flat:
    """The nearest float64 of every ball's true value.

    A ball around 0 whose terms cancelled is 0 if it is smaller than `ZERO` times the largest.

    Raises:
        VectorError: a ball is too wide to tell.
    """
    largest = max(
        (abs(float(ball.mid())) for array in balls.values() for ball in array.flat), default=0.0
    )

    def nearest(ball: Any, name: str) -> float:
        low, high = _exact(ball.lower()), _exact(ball.upper())
        if low == high and ball.is_finite():
            return low or 0.0  # and never -0.0
        if low <= 0 <= high and high - low < ZERO * largest:
            return 0.0
        raise VectorError(f"{where}: {name}: {BITS} bits do not decide how {ball} is rounded")

    return {
        name: np.array([nearest(b, name) for b in array.flat], np.float64).reshape(array.shape)
        for name, array in balls.items()
    }


def _exact(end: Any) -> float:
    """The end of a ball, a binary fraction, rounded to nearest; Python's division is exact."""
    if not isinstance(end, arb_type()) or not end.is_finite():
        return math.nan
    mantissa, exponent = (int(part) for part in end.mid().man_exp())
    if exponent >= 0:
        return float(mantissa << exponent)
    return mantissa / (1 << -exponent)


def _times(found: Sizes, factor: float) -> Sizes:
    return Sizes(found.norm * factor, found.max * factor, found.rows * factor)


def _frozen(price: Price) -> Price:
    up = {name: round_to_digits(part, ROUND_CEILING) for name, part in _written(price).items()}
    return replace(price, **up)


def _written(price: Price) -> dict[str, float]:
    return {"norm": price.norm, "max": price.max, "row": price.row, "slice": price.slice}


def round_to_digits(x: float, rounding: str, digits: int = 2) -> float:
    """x >= 0 in so many significant decimal digits, up (`ROUND_CEILING`) or down.

    >>> round_to_digits(0.01234, ROUND_CEILING), round_to_digits(0.01234, ROUND_FLOOR)
    (0.013, 0.012)
    """
    if x == 0:
        return 0.0
    exact = Decimal(x)
    step = Decimal(1).scaleb(exact.adjusted() - digits + 1)
    return float(exact.quantize(step, rounding) if exact % step else exact)


# ---- the folder --------------------------------------------------------------------------------


def build_case(case_id: str) -> dict[str, bytes]:
    """The files of one case by name.

    Raises:
        KeyError: there is no such case.
        ImportError: python-flint is missing (extra `reals`).
    """
    plan = {plan.id: plan for plan in PLAN}[case_id]
    return _ill_formed_files(plan) if isinstance(plan, IllFormedPlan) else Built(plan).files()


def build(
    directory: Path | str,
    check: bool = False,
    step: Callable[[int, int, str], None] | None = None,
    workers: int | None = None,
) -> list[str]:
    """Make every file anew.

    Args:
        directory: where they belong; it is made if there is none.
        check: only compare with what is there.
        step: called with (done, total, id) as cases are done.
        workers: processes; by default one for each processor, at most 8.

    Returns:
        The files that changed, or with `check` those that differ, are missing or do not belong.
    """
    root = Path(directory)
    made = _all_files(step, workers or min(os.cpu_count() or 1, 8))
    there = {path.relative_to(root).as_posix() for path in _our_files(root)}
    changed = [
        name
        for name, content in made.items()
        if name not in there or files.read_file(root / name) != content
    ]
    stale = sorted(there - made.keys())
    if not check:
        for name in changed:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            files.write_file(root / name, made[name])
        for name in stale:
            (root / name).unlink()
        for folder in {(root / name).parent for name in stale} - {root}:
            if not any(folder.iterdir()):
                folder.rmdir()
    return changed + stale


def _all_files(step: Callable[[int, int, str], None] | None, workers: int) -> dict[str, bytes]:
    ids = [plan.id for plan in PLAN]
    made = {"case.schema.json": files.dump_json(CASE_SCHEMA)}
    with _processes(workers) as pool:
        for done, (case_id, case) in enumerate(zip(ids, pool.map(build_case, ids), strict=True)):
            made |= {f"{case_id}/{name}": content for name, content in case.items()}
            if step:
                step(done + 1, len(ids), case_id)
    index = {
        "schema": INDEX,
        "cases": ids,
        "files": {
            name: {"size": len(content), "sha256": files.sha256(content)}
            for name, content in made.items()
        },
    }
    return made | {"index.json": files.dump_json(index)}


def _our_files(root: Path) -> Iterator[Path]:
    """The files of a data folder: of its cases, and beside them."""
    if files.exists(root):
        files.require_directory(root)
        yield from (p for p in root.iterdir() if p.suffix == ".json" and p.is_file())
        yield from (p for p in root.glob("*/*") if p.suffix in (".json", ".safetensors"))


@contextmanager
def _processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    # One thread each, and no checks of shapes: what is computed here is planned.
    settings = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "JAXTYPING_DISABLE": "1"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
