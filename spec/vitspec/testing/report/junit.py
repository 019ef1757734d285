"""A report as JUnit XML: a test case for each result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from vitspec.testing.report.report import UNMATCHED, Report, summary
from vitspec.testing.report.text import printable, ratio
from vitspec.testing.report.words import departs, told
from vitspec.testing.results import Result


def to_junit(reports: Sequence[Report]) -> str:
    """The reports as one XML document: a suite for each implementation."""
    root = ET.Element("testsuites", name="vitspec")
    for report in reports:
        _suite(root, report)
    for key in ("tests", "failures", "errors", "skipped"):
        root.set(key, str(sum(int(suite.get(key, "0")) for suite in root)))
    ET.indent(root, " ")
    text = ET.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def _suite(root: ET.Element, report: Report) -> None:
    passed, bad = report.count()["passed"], Counter(result.status for result in report.bad)
    suite = ET.SubElement(
        root,
        "testsuite",
        name=printable(f"vitspec.{report.name}"),
        tests=str(len(report.results) + len(report.unmatched) + len(report.shortfalls)),
        failures=str(bad["failed"] + bad["xpassed"] + len(report.unmatched)),
        errors=str(bad["errored"] + bad["undecided"] + len(report.shortfalls)),
        skipped=str(len(report.results) - passed - bad.total()),
        time=f"{report.seconds:.3f}",
    )
    properties = ET.SubElement(suite, "properties")
    values = {
        name: getattr(report, name) for name in ("version", "spec", "dtype", "seed", "verdict")
    }
    for name, value in {"target": report.target or report.name, **values}.items():
        value = printable(str(value))
        ET.SubElement(properties, "property", name=name, value=value)
    counted = {id(result) for result in report.bad}
    for result in report.results:
        _case(suite, report, result, id(result) in counted)
    for words in report.shortfalls:
        case = _named(suite, report, f"enough compared: {words.partition(':')[0]}")
        ET.SubElement(case, "error", message=printable(words), type="shortfall")
    for glob in report.unmatched:
        case = _named(suite, report, f"declared deviation {glob}")
        message = printable(f"{UNMATCHED}{glob}")
        ET.SubElement(case, "failure", message=message, type="unmatched")
    if report.output:
        ET.SubElement(suite, "system-out").text = printable(report.output, keep="\n\t")
    ET.SubElement(suite, "system-err").text = summary(report)


def _named(suite: ET.Element, report: Report, name: str) -> ET.Element:
    classname = printable(f"vitspec.{report.name}.{report.dtype}")
    return ET.SubElement(suite, "testcase", classname=classname, name=printable(name), time="0")


def _case(suite: ET.Element, report: Report, result: Result, counted: bool) -> None:
    case = _named(suite, report, f"{result.check} [{result.place or 'all'}]")
    reason = printable(result.reason)
    if not counted:
        if result.status != "passed":  # what is only told does not fail a build
            ET.SubElement(case, "skipped", message=reason or result.status)
        return
    kind = "error" if result.status in ("errored", "undecided") else "failure"
    if not reason and (g := result.worst) is not None:
        reason = printable(f"{g.tensor}: {ratio(g.ratio)} x its bound")
    node = ET.SubElement(case, kind, message=reason or departs(result), type=result.status)
    reproduce = printable(f"reproduce: {report.reproduce(result)}")
    node.text = "\n".join([*told(result, reason), reproduce])
