"""The report of a check: tables for people, JSON and JUnit XML for programs, Markdown, a page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitspec.testing.report.files import write_atomically, write_json
    from vitspec.testing.report.html import to_html
    from vitspec.testing.report.json_file import schema, to_json
    from vitspec.testing.report.junit import to_junit
    from vitspec.testing.report.markdown import to_markdown
    from vitspec.testing.report.report import Report, explain, summary
    from vitspec.testing.report.rows import looks_like
    from vitspec.testing.report.terminal import print_reports

__all__ = [
    "Report", "explain", "looks_like", "print_reports", "schema", "summary", "to_html", "to_json",
    "to_junit", "to_markdown", "write_atomically", "write_json",
]  # fmt: skip

_MODULES = ("files", "report", "rows", "json_file", "junit", "markdown", "html", "terminal")
"""Where to look for these: first where nothing is needed, last where rich is."""


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: only the tables need rich."""
    from importlib import import_module

    for module in _MODULES if name in __all__ else ():
        if hasattr(found := import_module(f"{__name__}.{module}"), name):
            return getattr(found, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
