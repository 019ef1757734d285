"""Run the checks: in this process (`check`), or in processes of their own (`check_targets`).

Processes of their own survive an implementation that crashes, hangs, or writes to its standard
output, and use all cores.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from multiprocessing import get_context
from typing import Any, Literal, get_args

from vitspec.testing import checks, implementations
from vitspec.testing.cases import MODELS
from vitspec.testing.implementations import AdapterError
from vitspec.testing.kinds import KINDS, Config
from vitspec.testing.precision import PRECISIONS, Precision
from vitspec.testing.results import Report, Result

Kind = Literal["photograph", "vectors", "law", "identities", "interpolation", "case", "ill-formed"]
"""The kinds of job, the longest first."""
Job = tuple[Kind, int]
"""What to check, and which one of its kind."""

BATCH = 5
"""Small cases that a process checks before it reports."""


@dataclass(frozen=True)
class Settings:
    """What to check.

    Attributes:
        seed: what everything is drawn from.
        cases: small random cases.
        interpolations: small cases with images of another size, for implementations that say that
            they interpolate positions.
        laws: small cases on which the laws are checked as well.
        photograph: whether to check on the photograph with ViT-Base/16 at full size.
        vectors: whether to check on the shipped test vectors.
        ill_formed: whether to check that ill-formed configurations are refused.
        identities: check only what needs no specification.
        dtype: the precision; None for the implementation's default.
        config: the one configuration to check on, instead of random ones.
        only: checks whose name matches this glob; None for all.
        vector: the one test vector to check on; None for all.
        jobs: exactly these; None for what the fields above say.
    """

    seed: int = 0
    cases: int = 100
    interpolations: int = 12
    laws: int = 4
    photograph: bool = True
    vectors: bool = True
    ill_formed: bool = True
    identities: bool = False
    dtype: str | None = None
    config: Config | None = None
    only: str | None = None
    vector: str | None = None
    jobs: tuple[Job, ...] | None = None

    def plan(self) -> list[Job]:
        """The jobs, the longest first."""
        if self.jobs is not None:
            return list(self.jobs)
        if self.identities:
            return [("identities", i) for i in range(self.laws)]
        jobs: list[Job] = [("photograph", 0)] if self.photograph and self.config is None else []
        jobs += [("vectors", 0)] if self.vectors and self.config is None else []
        jobs += [("law", i) for i in range(self.laws)]
        jobs += [("interpolation", i) for i in range(self.interpolations)]
        jobs += [("case", i) for i in range(self.cases)]
        jobs += [("ill-formed", 0)] if self.ill_formed else []
        return [job for job in jobs if any(self.wants(name) for name in checks_of(job[0]))]

    def wants(self, check: str) -> bool:
        """Whether a check of this name is asked for."""
        return self.only is None or fnmatchcase(check, self.only)


QUICK = Settings(cases=8, interpolations=2, photograph=False, vectors=False)
"""What `check` does by default: some seconds."""


def check(implementation: Any, settings: Settings = QUICK, **changes: Any) -> Report:
    """Check an implementation in this process.

    Args:
        implementation: see `vitspec.testing.implementations`.
        settings: what to check.
        changes: fields of the settings to change, such as `cases=100, dtype="float64"`.

    Raises:
        AdapterError: it is no implementation, or it does not even work on a one-block model.

    >>> from vitspec.testing.reference import SpecImplementation
    >>> check(SpecImplementation("vit"), cases=1, laws=1).verdict
    'conforms, as tested'
    """
    settings = replace(settings, **changes)
    if problems := list(implementations.interface_problems(implementation)):
        raise AdapterError("; ".join(problems))
    start = time.monotonic()
    report = new_report(implementation.name, implementation, settings)
    if implementation.spec != "other":
        checks.smoke(implementation, PRECISIONS[report.dtype], settings.config)
    for job in settings.plan():
        report.results += run_job(implementation, settings, job)
    report.seconds = time.monotonic() - start
    return report


def new_report(target: str, implementation: Any, settings: Settings) -> Report:
    """A report without results.

    Raises:
        AdapterError: the implementation cannot be checked so.
    """
    if implementation.spec == "other" and not settings.identities:
        raise AdapterError(
            f"{implementation.name} is of a function that vitspec has no specification of; "
            "only its identities can be checked: --identities"
        )
    kind = KINDS.get(implementation.spec)
    if kind and settings.config and not isinstance(settings.config, kind.config_type):
        raise AdapterError(
            f"{implementation.name} claims to be {kind.name!r}, whose configurations are "
            f"{kind.config_type.__name__}, got {type(settings.config).__name__}"
        )
    precision = implementations.precision_of(implementation, settings.dtype)
    i = implementation
    return Report(target, i.name, i.version, i.spec, precision.name, settings.seed)


def run_job(implementation: Any, settings: Settings, job: Job) -> list[Result]:
    """One job; what keeps the implementation from running is a result too."""
    place = place_of(job)
    precision = implementations.precision_of(implementation, settings.dtype)
    results: list[Result] = []
    try:
        for result in _results(implementation, settings, precision, job):
            results.append(result)
    except AdapterError as error:
        results.append(Result("run", place, "errored", reason=str(error)))
    return results


def place_of(job: Job) -> str:
    """What results call a job."""
    kind, index = job
    numbered = ("case", "interpolation", "law", "identities")
    return f"{kind} {index}" if kind in numbered else kind


def _results(
    implementation: Any, settings: Settings, precision: Precision, job: Job
) -> Iterator[Result]:
    kind, index = job
    if kind == "ill-formed":
        results = checks.check_ill_formed(implementation, precision, kind)
        yield from (result for result in results if settings.wants(result.check))
        return
    if kind == "vectors":
        yield from _check_vectors(implementation, settings, precision)
        return
    if kind == "identities":
        yield from _check_identities(implementation, settings, precision, index)
        return
    if kind == "interpolation":
        yield from _check_interpolation(implementation, settings, precision, index)
        return
    if kind == "photograph":
        trial = checks.photograph_trial(implementation, precision, settings.seed)
    else:
        make = checks.law_trial if kind == "law" else checks.random_trial
        trial = make(implementation, precision, settings.seed, index, settings.config)
    if reason := implementations.why_unsupported(implementation, trial.point.config):
        yield trial.skip("supports", reason)
        return
    yield from (c(trial) for name, c in CASE_CHECKS.items() if settings.wants(name))
    if kind == "law":
        yield from _check_laws(implementation, settings, trial)


CASE_CHECKS: dict[str, checks.Check] = {
    "forward": checks.check_forward,
    "vjp": checks.check_vjp,
}
"""What every trial is checked for."""

INTERPOLATION_CHECKS: dict[str, checks.Check] = {
    "interpolation.forward": checks.check_interpolated_forward,
    "interpolation.vjp": checks.check_interpolated_vjp,
}
"""What a trial of images of another size is checked for."""

LAW_CHECKS: dict[str, checks.Check] = {
    "determinism": checks.check_determinism,
    "linearity": checks.check_linearity,
    "scale": checks.check_scale,
    "batch-split": checks.check_batch_split,
}
"""What a trial of the laws is checked for besides; then the permutations."""


def _check_laws(implementation: Any, settings: Settings, trial: checks.Trial) -> Iterator[Result]:
    for name, check_of_one in LAW_CHECKS.items():
        if not settings.wants(name):
            continue
        if name in ("linearity", "scale") and not implementations.has_vjp(implementation):
            yield trial.skip(name, "it has no vjp")
        else:
            yield check_of_one(trial)
    if settings.only is None or any(settings.wants(n) for n in PERMUTATIONS):
        yield from (r for r in checks.check_laws(trial) if settings.wants(r.check))


PERMUTATIONS = (
    "permute-patches", "permute-heads", "permute-head-columns", "permute-features",
    "permute-hidden", "permute-classes", "permute-batch",
)  # fmt: skip
"""The permutations of `vitspec.testing.laws`."""


def _check_interpolation(
    implementation: Any, settings: Settings, precision: Precision, index: int
) -> Iterator[Result]:
    if not KINDS[implementation.spec].interpolates:
        return
    if index and not implementations.takes_other_sizes(implementation):
        return  # one result is enough to say that nothing was checked
    trial = checks.interpolation_trial(
        implementation, precision, settings.seed, index, settings.config
    )
    config, size = trial.point.config, trial.point.images.shape[2:]
    reason = implementations.why_unsupported(implementation, config)
    reason = reason or implementations.why_size_unsupported(implementation, config, size)
    if reason:
        yield trial.skip("interpolation.supports", reason)
        return
    yield from (c(trial) for name, c in INTERPOLATION_CHECKS.items() if settings.wants(name))


def _check_vectors(
    implementation: Any, settings: Settings, precision: Precision
) -> Iterator[Result]:
    from vitspec.testing.vectors import check_vectors

    if implementation.spec not in MODELS and settings.vector is None:
        reason = f"there are no test vectors of {implementation.spec}"
        yield Result("vector.forward", "vectors", "skipped", reason=reason)
    for result in check_vectors(implementation, precision, settings.vector):
        if settings.wants(result.check):
            yield result


def _check_identities(
    implementation: Any, settings: Settings, precision: Precision, index: int
) -> Iterator[Result]:
    from vitspec.testing.identity_checks import check_identities

    results = check_identities(implementation, precision, settings.seed, index, settings.config)
    yield from (r for r in results if settings.wants(r.check))


def checks_of(kind: Kind) -> tuple[str, ...]:
    """The checks that a kind of job may run."""
    every = {
        "ill-formed": tuple(
            dict.fromkeys(
                f"ill-formed.{label}" for one in KINDS.values() for label in one.ill_formed
            )
        ),
        "interpolation": tuple(INTERPOLATION_CHECKS),
        "vectors": ("vector.forward", "vector.vjp", "vector.layer", "vector.ill-formed"),
        "law": (*CASE_CHECKS, *LAW_CHECKS, *PERMUTATIONS),
    }
    return every.get(kind, tuple(CASE_CHECKS))


# ---- in processes ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """Some jobs of one target are done."""

    target: str
    jobs: tuple[Job, ...]
    results: list[Result]
    output: str


def check_targets(
    reports: dict[str, Report], settings: Settings, workers: int, timeout: float
) -> Iterator[Progress]:
    """Check implementations, by their targets, in processes; the reports receive the results.

    Args:
        reports: a new report for each target.
        settings: what to check.
        workers: how many processes.
        timeout: seconds without any result after which the implementation hangs.

    Yields:
        Whatever is done, as it comes.

    Raises:
        AdapterError: an implementation does not even work on a one-block model.
    """
    start = time.monotonic()
    with processes(workers) as pool:
        first = {pool.submit(_smoke_job, target, settings): target for target in reports}
        _collect_smoke(pool, first, timeout)
        futures: dict[Future[Any], tuple[str, tuple[Job, ...]]] = {}
        for kind in get_args(Kind):
            jobs = [job for job in settings.plan() if job[0] == kind]
            size = BATCH if kind in ("case", "interpolation") else 1
            for i in range(0, len(jobs), size):
                some = tuple(jobs[i : i + size])
                for target in reports:
                    futures[pool.submit(_jobs, target, settings, some)] = (target, some)
        pending = set(futures)
        while pending:
            done, pending = wait(pending, timeout, FIRST_COMPLETED)
            trouble = None if done else f"gave no result for {timeout:g} s (--timeout)"
            for future in done or pending:
                target, jobs_done = futures[future]
                results, output, problem = _outcome(future, jobs_done, trouble)
                reports[target].results += results
                reports[target].output += output
                reports[target].seconds = time.monotonic() - start
                trouble = trouble or problem
                yield Progress(target, jobs_done, results, output)
            if trouble:
                for future in pending if done else ():
                    target, jobs_done = futures[future]
                    results, output, _ = _outcome(future, jobs_done, trouble)
                    reports[target].results += results
                    yield Progress(target, jobs_done, results, output)
                _terminate(pool)
                return


def _outcome(
    future: Future[Any], jobs: tuple[Job, ...], trouble: str | None
) -> tuple[list[Result], str, str | None]:
    """A future's results, or one that says why there are none."""
    if future.done() and not future.cancelled():
        try:
            results, output = future.result()
            return results, output, None
        except BrokenProcessPool:
            trouble = "ended its process (a crash in native code, or out of memory?)"
    place = place_of(jobs[0]) if len(jobs) == 1 else f"{place_of(jobs[0])} and {len(jobs) - 1} more"
    return [Result("run", place, "errored", reason=f"it {trouble}")], "", trouble


def _collect_smoke(pool: Any, futures: dict[Future[Any], str], timeout: float) -> None:
    done, pending = wait(futures, timeout)
    for future in done:
        try:
            future.result()
        except BrokenProcessPool as error:
            raise AdapterError(
                f"{futures[future]!r} ended its process on a one-block model "
                "(a crash in native code, or out of memory?)"
            ) from error
    if pending:
        _terminate(pool)
        hanging = ", ".join(sorted(futures[f] for f in pending))
        raise AdapterError(
            f"{hanging} gave no result for {timeout:g} s on a one-block model; "
            "--timeout gives it longer"
        )


@contextmanager
def processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes with one thread each, which keep their standard output to themselves."""
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
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_capture)
    try:
        yield pool
    except BaseException:
        _terminate(pool)  # Ctrl-C, or a fault: do not wait for the jobs that run
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _terminate(pool: ProcessPoolExecutor) -> None:
    for process in list((pool._processes or {}).values()):
        process.kill()


_captured: Any = None


def _capture() -> None:
    """Send what this process writes to its standard output into a file."""
    global _captured
    _captured = tempfile.TemporaryFile("w+b")  # noqa: SIM115 - it lives as long as the process
    os.dup2(_captured.fileno(), 1)
    sys.stdout = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")


def _taken_output() -> str:
    sys.stdout.flush()
    _captured.seek(0)
    text = _captured.read(10_000).decode("utf-8", "replace")
    _captured.seek(0)
    _captured.truncate()
    return text


@cache
def _found(target: str) -> Any:
    return implementations.find(target)


def _smoke_job(target: str, settings: Settings) -> None:
    implementation = _found(target)
    precision = implementations.precision_of(implementation, settings.dtype)
    if implementation.spec != "other":
        checks.smoke(implementation, precision, settings.config)


def _jobs(target: str, settings: Settings, jobs: Sequence[Job]) -> tuple[list[Result], str]:
    implementation = _found(target)
    results = [result for job in jobs for result in run_job(implementation, settings, job)]
    return results, _taken_output()
