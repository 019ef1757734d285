"""`parametrize_with_checks`: a pytest test for each check and each implementation."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from vitspec.testing.adapter_errors import AdapterError, shown
from vitspec.testing.description import describe
from vitspec.testing.report.report import Report, advice
from vitspec.testing.results import Result
from vitspec.testing.run import check
from vitspec.testing.settings import QUICK
from vitspec.testing.suites import SUITES

CHECKS = {check: suite for suite in SUITES.values() for check in suite.tests}
"""The checks that have a test each, and the suites that they are of."""

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

    >>> from vitspec.testing import SpecImplementation
    >>> @parametrize_with_checks([SpecImplementation("vit"), SpecImplementation("vit-cls")])
    ... def test_it_conforms(implementation, check):
    ...     check(implementation)
    """
    reasons = expected_failures or {}
    if unknown := sorted(reasons.keys() - CHECKS.keys()):
        raise ValueError(f"no check is named {', '.join(unknown)}; known: {', '.join(CHECKS)}")
    cases = [
        pytest.param(
            one,
            named_check(name),
            id=f"{label}-{name}",
            marks=[pytest.mark.xfail(reason=reasons[name], strict=True)] if name in reasons else [],
        )
        for one in implementations
        for label, other_sizes in [_facts(one)]
        for name in CHECKS
        if CHECKS[name] is not SUITES["interpolation"] or other_sizes
    ]
    return pytest.mark.parametrize(("implementation", "check"), cases)


def _facts(implementation: Any) -> tuple[str, bool]:
    """Its name, and whether it takes other sizes; one that is broken has its tests too."""
    try:
        description = describe(implementation)
    except AdapterError:
        return shown(implementation, lambda one: str(one.name)), False
    return description.name, description.takes_other_sizes


def named_check(name: str) -> Callable[[Any], None]:
    """A function that checks an implementation and raises `AssertionError` where it departs."""

    def check_implementation(implementation: Any) -> None:
        __tracebackhide__ = True
        if CHECKS[name].only_in_full and not _options.get("vectors"):
            pytest.skip("needs --vitspec-full")
        report = check_and_raise(implementation, {**_options, "only": name})
        if all(r.status == "skipped" for r in report.results):
            pytest.skip("; ".join({r.reason for r in report.results}) or "nothing to check")
        if "accepted" in report.refuses:  # reported, and no failure unless --vitspec-strict
            pytest.skip(f"ill-formed configurations: {report.refuses}")

    check_implementation.__name__ = name
    return check_implementation


def check_and_raise(implementation: Any, changed: Mapping[str, Any]) -> Report:
    """Check an implementation; `AssertionError` says where it departs, and what shows it again.

    Where too little was compared for a verdict, it says so in the words of the report.
    """
    __tracebackhide__ = True
    report = check(implementation, QUICK, **changed)
    missing = [r for r in report.results if r.check.endswith("supports")]
    nothing = bool(missing) and len(missing) == len(report.results)
    bad = report.bad or (missing[:1] if nothing else [])
    if bad or report.shortfalls:
        lines = [f"{report.name}: {report.verdict}", *map(line, bad)]
        lines += [f"  {words}" for words in advice(report)]
        lines.append(f"  reproduce: {_this_test()}")
        lines += [f"  or here: {report.reproduce(result)}" for result in bad[:1]]
        raise AssertionError("\n".join(lines))
    return report


def _this_test() -> str:
    """The command that runs the test that runs now, with the options that it was given."""
    node = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    options = dict(_options)
    switches = ["--vitspec-full"] if options.pop("vectors", False) else []
    switches += ["--vitspec-strict"] if options.pop("strict", False) else []
    options.pop("photograph", None)
    words = [w for name, value in options.items() for w in (f"--vitspec-{name}", str(value))]
    return shlex.join(["pytest", node, *switches, *words])


def line(result: Result) -> str:
    """A failure in a few words."""
    tensors = [
        f"{g.tensor}: {g.metric} error {g.error:.1e}, price {g.price:.1e}, bound {g.bound:.1e}"
        for g in result.failures[:5]
    ]
    more = len(result.failures) - len(tensors)
    details = "; ".join([*tensors, *([f"and {more} more"] if more > 0 else [])])
    return f"  {result.check} at {result.place} ({result.point}): {details or result.reason}"
