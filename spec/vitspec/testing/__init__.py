"""The conformance kit: the same checks for anybody's implementation, in any framework or language.

    report = vitspec.testing.check(my_vit)        # or: vitspec check my_package:my_vit
    assert report.conforms, report

`parametrize_with_checks([my_vit])` makes a pytest test of each check, `diagnose(my_vit)` names what
is wrong, and `from_torch`, `from_torch_function`, `from_jax` and `from_nnx` make an implementation
of a model in these frameworks. `strategies` has Hypothesis strategies for tests of your own.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitspec.testing import strategies
    from vitspec.testing.adapters import (
        NameMap,
        from_jax,
        from_nnx,
        from_torch,
        from_torch_function,
    )
    from vitspec.testing.diagnosis import Diagnosis, diagnose
    from vitspec.testing.finding import find
    from vitspec.testing.implementations import AdapterError, Implementation, Subject
    from vitspec.testing.parametrize import parametrize_with_checks
    from vitspec.testing.reference import Point, SpecImplementation
    from vitspec.testing.report.report import Report
    from vitspec.testing.results import Place, Result
    from vitspec.testing.run import check
    from vitspec.testing.settings import Settings

_HOMES = {
    "AdapterError": "implementations",
    "Diagnosis": "diagnosis",
    "Implementation": "implementations",
    "NameMap": "adapters",
    "Place": "results",
    "Point": "reference",
    "Report": "report.report",
    "Result": "results",
    "Settings": "settings",
    "SpecImplementation": "reference",
    "Subject": "implementations",
    "check": "run",
    "diagnose": "diagnosis",
    "find": "finding",
    "from_jax": "adapters",
    "from_nnx": "adapters",
    "from_torch": "adapters",
    "from_torch_function": "adapters",
    "parametrize_with_checks": "parametrize",
}
"""In which module each is; a module is imported when something of it is asked for."""

__all__ = [
    "AdapterError",
    "Diagnosis",
    "Implementation",
    "NameMap",
    "Place",
    "Point",
    "Report",
    "Result",
    "Settings",
    "SpecImplementation",
    "Subject",
    "check",
    "diagnose",
    "find",
    "from_jax",
    "from_nnx",
    "from_torch",
    "from_torch_function",
    "parametrize_with_checks",
    "strategies",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: the catalogue alone needs none of the rest."""
    if name == "strategies":
        return import_module("vitspec.testing.strategies")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"vitspec.testing.{_HOMES[name]}"), name)
