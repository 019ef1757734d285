"""The report of a check: tables for people, JSON and JUnit XML for programs, Markdown, a page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitspec.testing.report.files import write_atomically, write_json
    from vitspec.testing.report.html import to_html
    from vitspec.testing.report.json_file import schema, to_json
    from vitspec.testing.report.junit import to_junit
    from vitspec.testing.report.markdown import to_markdown
    from vitspec.testing.report.rows import explain, looks_like, summary
    from vitspec.testing.report.terminal import print_reports

__all__ = [
    "explain",
    "looks_like",
    "print_reports",
    "schema",
    "summary",
    "to_html",
    "to_json",
    "to_junit",
    "to_markdown",
    "write_atomically",
    "write_json",
]

_MODULES = {
    "explain": "rows",
    "looks_like": "rows",
    "print_reports": "terminal",
    "schema": "json_file",
    "summary": "rows",
    "to_html": "html",
    "to_json": "json_file",
    "to_junit": "junit",
    "to_markdown": "markdown",
    "write_atomically": "files",
    "write_json": "files",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: only the tables need rich."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
