"""A report as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence

from vitspec.testing.report.rows import explain
from vitspec.testing.report.text import in_html
from vitspec.testing.results import Report


def to_html(reports: Sequence[Report]) -> str:
    """The page."""
    return f"<pre>{in_html(chr(10).join(map(explain, reports)))}</pre>"
