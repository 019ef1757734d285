"""Check implementations on a photograph at full size and on many small random configurations.

On the photograph the model is ViT-Base/16 with 1000 classes and fresh random parameters. The small
configurations have several heads, layers and channels, images and patches that are not square,
strides unlike the patch, padding, and heads that do not divide the width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from vitspec.config import ViTConfig, vit_base_patch16_config
from vitspec.testing import implementations
from vitspec.testing.cases import MODELS, Case, away_from_kinks, random_case
from vitspec.testing.catalogue import Deviation, planted
from vitspec.testing.tolerance import Errors, Grade, errors, grade, reordering
from vitspec.typing import Array

PHOTOGRAPH = Path(__file__).with_name("data") / "astronaut.png"
PHOTOGRAPH_RUNS = 4
"""Runs that set the price at full size, where each has millions of roundings to average over."""
CASE_RUNS = 12
"""Runs that set the price of a small case, where each is a small sample of rounding."""
BATCH = 5
"""Cases that a process checks before it reports."""


@dataclass(frozen=True)
class Point:
    """A model, an image and a cotangent; the numbers are exact in the precision under test."""

    spec: str
    config: ViTConfig
    params: dict[str, Array]
    image: Array
    d_logits: Array

    @classmethod
    def of(cls, spec: str, model: Any, image: Array, d_logits: Array, dtype: str) -> Point:
        """The point rounded to the precision under test, with every ReLU away from its kink."""
        flat = away_from_kinks(model, image).astype(dtype).to_flat()
        point = cls(spec, model.config, flat, image.astype(dtype), d_logits.astype(dtype))
        for array in (*flat.values(), point.image, point.d_logits):
            array.setflags(write=False)  # an implementation that writes into its inputs is refused
        return point


@dataclass(frozen=True)
class PhotographResult:
    """How one implementation did on the photograph."""

    implementation: str
    grades: list[Grade]


@dataclass(frozen=True)
class CaseResult:
    """How one implementation did on one small case."""

    implementation: str
    case: Case
    tensors: int
    worst: Grade
    failures: tuple[Grade, ...]


def evaluate_spec(point: Point, params: dict[str, Array], dtype: Any) -> dict[str, Array]:
    """Logits and all cotangents by the specification, at `params`, in another precision."""
    C, H, W = point.image.shape
    flat = {name: leaf.astype(dtype, copy=False) for name, leaf in params.items()}
    model = MODELS[point.spec].from_flat(point.config, flat, in_channels=C, height=H, width=W)
    image = point.image.astype(dtype, copy=False)
    trace = model.trace(image)
    grads, d_image = model.backward(image, point.d_logits.astype(dtype, copy=False), trace)
    return {"logits": trace.logits, "image": d_image, **grads.to_flat()}


SEQUENTIAL_SUMS = Deviation(
    "sequential-sums",
    "both",
    "scalars:matmul",
    "return np.matmul(a, b)",
    "return np.matmul(a, b) if b.ndim > 1 else np.cumsum(a * b, axis=-1)[..., -1]",
    "no mistake: matrix-vector products are summed one term after the other",
)
"""BLAS sums in blocks, which is more exact than the plain loop that XLA and others compile for the
product with a vector; both orders belong to the price."""


def price_runs(
    point: Point, truth: dict[str, Array], runs: int, rng: np.random.Generator
) -> Iterator[dict[str, Errors]]:
    """The errors of the specification in the point's precision, with its sums reordered."""
    for run in range(runs):
        reorder, restore = reordering(point.config, rng)
        with planted(SEQUENTIAL_SUMS) if run % 2 else nullcontext():
            found = evaluate_spec(point, reorder(point.params), point.image.dtype)
        found |= restore({name: found[name] for name in point.params})
        yield {name: errors(found[name], truth[name]) for name in truth}


def grade_point(
    implementation: Any,
    point: Point,
    truth: dict[str, Array],
    runs: int,
    rng: np.random.Generator,
) -> list[Grade]:
    """The verdict on the logits and on every cotangent."""
    found = implementations.evaluate(
        implementation, point.config, point.params, point.image, point.d_logits
    )
    prices = [*price_runs(point, truth, runs, rng)]
    return [grade(name, found[name], truth[name], [run[name] for run in prices]) for name in truth]


# ---- the photograph ----------------------------------------------------------------------------


def load_photograph() -> Array:
    """The photograph as float64 in [-1, 1], (3, 224, 224)."""
    from PIL import Image

    with Image.open(PHOTOGRAPH) as picture:
        pixels = np.asarray(picture.convert("RGB"), np.float64)
    return (pixels / 127.5 - 1).transpose(2, 0, 1)


def check_photograph(
    implementation: Any,
    seed: int,
    config: ViTConfig = vit_base_patch16_config,
) -> list[Grade]:
    """Grade the implementation on the photograph with a fresh random model."""
    image = load_photograph()
    rng = np.random.default_rng([seed, 1])
    model = MODELS[implementation.spec].init(config, in_channels=3, height=224, width=224, rng=rng)
    d_logits = rng.standard_normal(config.num_classes)
    point = Point.of(implementation.spec, model, image, d_logits, implementation.dtype)
    del model
    truth = evaluate_spec(point, point.params, np.float64)
    return grade_point(implementation, point, truth, PHOTOGRAPH_RUNS, rng)


# ---- small random configurations ---------------------------------------------------------------


def check_case(implementation: Any, case: Case, name: str | None = None) -> CaseResult:
    """Grade the implementation, reported under `name` (its own by default), on one small case."""
    point = Point.of(case.spec, case.model(), case.image(), case.d_logits(), implementation.dtype)
    truth = evaluate_spec(point, point.params, np.float64)
    rng = np.random.default_rng([case.seed, 3])
    grades = grade_point(implementation, point, truth, CASE_RUNS, rng)
    failures = tuple(g for g in grades if not g.conforms)
    worst = max(grades, key=lambda g: (not g.conforms, g.ratio))
    return CaseResult(name or implementation.name, case, len(grades), worst, failures)


def check_seeds(name: str, seeds: Sequence[int]) -> list[CaseResult]:
    """Check an installed implementation on the small cases of these seeds."""
    implementation = implementations.load(name)
    cases = [random_case(np.random.default_rng(s), implementation.spec) for s in seeds]
    return [check_case(implementation, case, name) for case in cases]


def check_installed_photograph(name: str, seed: int) -> PhotographResult:
    """Check an installed implementation on the photograph."""
    return PhotographResult(name, check_photograph(implementations.load(name), seed))


def check_installed(
    names: Sequence[str], seed: int, cases: int, photograph: bool, workers: int
) -> Iterator[PhotographResult | list[CaseResult]]:
    """Check installed implementations in processes: the photograph, and `cases` small cases each.

    Yields:
        The results as they come; small cases in batches.
    """
    # One thread each: threads of several processes that wait for each other cost more than they
    # bring. No shape checks on what is drawn here. And a GPU is shared by the processes.
    settings = {
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "JAXTYPING_DISABLE": "1",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        jobs: list[Future[Any]] = []
        if photograph:
            jobs += [pool.submit(check_installed_photograph, name, seed) for name in names]
        for batch in np.array_split(np.arange(cases), max(cases // BATCH, 1)):
            seeds = [seed * 100_003 + int(i) for i in batch]
            jobs += [pool.submit(check_seeds, name, seeds) for name in names]
        yield from (job.result() for job in as_completed(jobs))
    except BrokenProcessPool as error:
        raise implementations.AdapterError(
            "an implementation ended its process (a crash in native code, or out of memory?); "
            "--no-photograph and a smaller --cases narrow it down"
        ) from error
    except BaseException:
        # Ctrl-C, or a fault: do not wait for the jobs that run.
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
