"""The conformance kit: the same checks for anybody's implementation, in any framework or language.

    report = vitspec.testing.check(my_vit)        # or: vitspec check my_package:my_vit
    assert report.conforms, report

`parametrize_with_checks([my_vit])` makes a pytest test of each check.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitspec.testing.implementations import AdapterError
    from vitspec.testing.parametrize import parametrize_with_checks
    from vitspec.testing.results import Report
    from vitspec.testing.run import Settings, check

__all__ = ["AdapterError", "Report", "Settings", "check", "parametrize_with_checks"]

_MODULES = {
    "AdapterError": "implementations",
    "Report": "results",
    "Settings": "run",
    "check": "run",
    "parametrize_with_checks": "parametrize",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: the catalogue alone needs none of the rest."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"vitspec.testing.{_MODULES[name]}"), name)
