"""A report as JSON, "vitspec-report/2"; `report.schema.json` beside this file describes it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from typing import Any

import vitspec
from vitspec.testing.report.parts import false_alarm, suspicions
from vitspec.testing.report.report import Report, summary
from vitspec.testing.report.rows import looks_like
from vitspec.testing.results import Result, environment
from vitspec.testing.tolerance import Grade

SCHEMA = "vitspec-report/2"


@cache
def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of what `to_json` gives."""
    text = files("vitspec.testing.report").joinpath("report.schema.json").read_text("utf-8")
    return json.loads(text)


def to_json(reports: Sequence[Report]) -> dict[str, Any]:
    """Reports as JSON-serialisable data; an infinite number is the string "inf"."""
    return {
        "schema": SCHEMA,
        "vitspec": vitspec.__version__,
        "environment": environment(),
        "conforms": bool(reports) and all(report.conforms for report in reports),
        "implementations": [_report(report) for report in reports],
    }


def _report(report: Report) -> dict[str, Any]:
    return {
        "target": _text(report.target or report.name),
        **{name: _text(getattr(report, name)) for name in ("name", "version")},
        "spec": report.spec,
        "dtype": report.dtype,
        "seed": report.seed,
        "seconds": round(report.seconds, 3),
        "exit_code": report.exit_code,
        "conforms": report.conforms,
        "verdict": report.verdict,
        "summary": summary(report),
        "hint": looks_like(report),
        "count": dict(report.count()),
        "asked": report.asked,
        "compared": report.compared,
        "shortfalls": [_text(words) for words in report.shortfalls],
        "statements": {
            "computes": [_text(words) for words in report.computes],
            "refuses": _text(report.refuses),
        },
        "cannot_be_told": sorted({r.check for r in report.bad if r.status == "undecided"}),
        "suspicions": suspicions(report.results),
        "false_alarm": false_alarm(report.results),
        "unmatched": [_text(glob) for glob in report.unmatched],
        "output": _text(report.output),
        "results": [_result(report, result) for result in report.results],
    }


def _result(report: Report, result: Result) -> dict[str, Any]:
    return {
        "check": _text(result.check),
        "place": _text(str(result.place)),
        "status": result.status,
        "reason": _text(result.reason),
        "point": _text(result.point),
        "reproduce": _text(report.reproduce(result)),
        "grades": [_grade(g) for g in result.grades],
        "undecided": None if result.undecided is None else _grade(result.undecided),
    }


def _grade(g: Grade) -> dict[str, Any]:
    return {
        "tensor": _text(g.tensor),
        "metric": g.metric,
        **{name: _number(getattr(g, name)) for name in ("error", "price", "bound", "ratio")},
        "cancelled": g.cancelled,
        "conforms": g.conforms,
        "confirmation": _confirmation(g),
    }


def _confirmation(g: Grade) -> dict[str, Any] | None:
    """What new points said of a suspicion; None where there was none."""
    if g.confirmation is None:
        return None
    return asdict(g.confirmation) | {"mean": _number(g.confirmation.mean)}


def _number(x: float) -> float | str:
    return float(x) if math.isfinite(x) else str(float(x))


def _text(text: str) -> str:
    """Lone surrogates, which no strict JSON parser takes, written as Python would."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
