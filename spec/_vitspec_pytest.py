"""vitspec's pytest plugin: the options of `parametrize_with_checks`, and a fixture.

It stands alone at the top level, so that pytest, which imports every plugin at its start, does not
import vitspec (NumPy and more) for test suites that never use it.
"""

from __future__ import annotations

from typing import Any

import pytest


def pytest_addoption(parser: Any) -> None:
    """Options in a group of their own."""
    group = parser.getgroup("vitspec", "conformance of Vision Transformers")
    group.addoption("--vitspec-seed", type=int, default=0, help="what cases are drawn from")
    group.addoption("--vitspec-cases", type=int, default=8, help="small random configurations")
    group.addoption("--vitspec-dtype", help="the precision, if the implementation has several")
    group.addoption(
        "--vitspec-strict", action="store_true",
        help="an accepted ill-formed configuration is a failure",
    )  # fmt: skip
    group.addoption(
        "--vitspec-full", action="store_true",
        help="also the photograph with ViT-Base/16, and the shipped test vectors",
    )  # fmt: skip


def pytest_report_header(config: Any) -> str | None:
    """What is checked, if anything but the default was asked for."""
    changed = _settings(config)
    return f"vitspec: {', '.join(f'{k}={v}' for k, v in changed.items())}" if changed else None


def _settings(config: Any) -> dict[str, Any]:
    option = config.getoption
    changed: dict[str, Any] = {}
    if option("vitspec_seed"):
        changed["seed"] = option("vitspec_seed")
    if option("vitspec_cases") != 8:
        changed["cases"] = option("vitspec_cases")
    if option("vitspec_dtype"):
        changed["dtype"] = option("vitspec_dtype")
    if option("vitspec_strict"):
        changed["strict"] = True
    if option("vitspec_full"):
        changed |= {"photograph": True, "vectors": True}
    return changed


def pytest_runtest_setup(item: Any) -> None:
    """Give the options to the checks, if this test uses them."""
    import sys

    if "vitspec.testing.parametrize" in sys.modules:
        sys.modules["vitspec.testing.parametrize"].use_options(_settings(item.config))


@pytest.fixture
def vitspec_check(request: pytest.FixtureRequest) -> Any:
    """A function: check an implementation with the options given; fails the test if it departs."""
    from vitspec.testing.parametrize import check_and_raise, use_options

    changed = _settings(request.config)
    use_options(changed)  # this import may be the first: the plugin has not given them yet
    return lambda implementation, **settings: check_and_raise(implementation, changed | settings)
