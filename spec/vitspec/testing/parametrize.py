"""`parametrize_with_checks`: a pytest test for each check and each implementation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from vitspec.testing.implementations import takes_other_sizes
from vitspec.testing.results import Report, Result
from vitspec.testing.run import (
    CASE_CHECKS,
    INTERPOLATION_CHECKS,
    LAW_CHECKS,
    PERMUTATIONS,
    QUICK,
    check,
)

ALL_CHECKS = (
    *CASE_CHECKS, *INTERPOLATION_CHECKS, *LAW_CHECKS, *PERMUTATIONS, "ill-formed.*",
)  # fmt: skip
FULL_CHECKS = ("vector.*",)
"""Checks that need `--vitspec-full`; otherwise they are skipped."""

_options: dict[str, Any] = {}


def use_options(changed: Mapping[str, Any]) -> None:
    """Change what the checks do; the pytest plugin calls this with its options."""
    _options.clear()
    _options.update(changed)


def parametrize_with_checks(
    implementations: Sequence[Any], expected_failures: Mapping[str, str] | None = None
) -> pytest.MarkDecorator:
    """Parametrise a test over (implementation, check): call `check(implementation)` in it.

    Args:
        implementations: see `vitspec.testing.implementations`.
        expected_failures: check -> why it is known to fail; passing is then a failure.

    Raises:
        ValueError: `expected_failures` names no check.

    >>> from vitspec.testing.reference import SpecImplementation
    >>> @parametrize_with_checks([SpecImplementation("vit"), SpecImplementation("vit-cls")])
    ... def test_it_conforms(implementation, check):
    ...     check(implementation)
    """
    known = (*ALL_CHECKS, *FULL_CHECKS)
    reasons = expected_failures or {}
    if unknown := sorted(reasons.keys() - set(known)):
        raise ValueError(f"no check is named {', '.join(unknown)}; known: {', '.join(known)}")
    cases = [
        pytest.param(
            one,
            named_check(name),
            id=f"{one.name}-{name}",
            marks=[pytest.mark.xfail(reason=reasons[name], strict=True)] if name in reasons else [],
        )
        for one in implementations
        for name in known
        if name not in INTERPOLATION_CHECKS or takes_other_sizes(one)
    ]
    return pytest.mark.parametrize(("implementation", "check"), cases)


def named_check(name: str) -> Callable[[Any], None]:
    """A function that checks an implementation and raises `AssertionError` where it departs."""

    def check_implementation(implementation: Any) -> None:
        __tracebackhide__ = True
        if name in FULL_CHECKS and not _options.get("vectors"):
            pytest.skip("needs --vitspec-full")
        report = check_and_raise(implementation, {**_options, "only": name})
        if all(r.status == "skipped" for r in report.results):
            pytest.skip("; ".join({r.reason for r in report.results}) or "nothing to check")

    check_implementation.__name__ = name
    return check_implementation


def check_and_raise(implementation: Any, changed: Mapping[str, Any]) -> Report:
    """Check an implementation; `AssertionError` says where it departs."""
    __tracebackhide__ = True
    report = check(implementation, QUICK, **changed)
    bad = [r for r in report.results if r.status in ("failed", "errored")]
    if bad:
        raise AssertionError("\n".join([f"{report.name}: {report.verdict}", *map(line, bad)]))
    return report


def line(result: Result) -> str:
    """A failure in a few words."""
    tensors = [
        f"{g.tensor}: {g.metric} error {g.error:.1e}, price {g.price:.1e}, bound {g.bound:.1e}"
        for g in result.failures[:5]
    ]
    more = len(result.failures) - len(tensors)
    details = "; ".join([*tensors, *([f"and {more} more"] if more > 0 else [])])
    return f"  {result.check} at {result.place} ({result.point}): {details or result.reason}"
