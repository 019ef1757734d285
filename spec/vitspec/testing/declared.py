"""Declared deviations: the failures that an adopter knows, explains, and expects.

They are in a TOML file, which `vitspec check TARGET --declared FILE` reads and
`docs/declared-deviations.md` describes:

    schema = 1

    [[deviation]]
    checks = ["vjp.encoder.layers.*.mha.*"]     # globs over "check.tensor", or "check"
    kind   = "bug"                              # bug, choice, unsupported or precision
    reason = "the scale is missing in the backward"
    link   = "https://example.org/issues/1"     # required for a bug
    expect = "attention-gradient-scale-missing" # optional: of the catalogue; it must fail so
    until  = "2030-01"                          # optional: then the declaration is an error
"""

from __future__ import annotations

import datetime
import re
import tomllib
from calendar import monthrange
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from vitspec.testing.report.report import Report
from vitspec.testing.results import Result

KINDS = ("bug", "choice", "unsupported", "precision")
KEYS = ("checks", "kind", "reason", "link", "expect", "until")
REQUIRED = ("checks", "kind", "reason")

UNTIL = re.compile(r"([0-9]{4})-([0-9]{2})(?:-([0-9]{2}))?")

Diagnose = Callable[[Report, Result], str | None]
"""Says which deviation of the catalogue a failing result looks like, or None."""


class DeclarationError(ValueError):
    """The file of declared deviations is not what it must be."""


@dataclass(frozen=True)
class Deviation:
    """What is known to depart.

    Attributes:
        checks: globs over "check.tensor", or "check" for all of its tensors.
        kind: one of `KINDS`.
        reason: why, for people.
        link: where it is discussed.
        expect: the deviation of the catalogue that it must look like.
        until: the last day on which it may be declared.
    """

    checks: tuple[str, ...]
    kind: str
    reason: str
    link: str = ""
    expect: str = ""
    until: datetime.date | None = None

    def names(self, name: str) -> bool:
        """Whether one of the globs is of this name."""
        return any(fnmatchcase(name, glob) for glob in self.checks)

    def covers(self, check: str, tensor: str = "") -> bool:
        """Whether a check is declared, or this tensor of it."""
        return self.names(check) or bool(tensor and self.names(f"{check}.{tensor}"))

    def __str__(self) -> str:
        """Kind, reason, link."""
        return f"{self.kind}: {self.reason}" + (f" ({self.link})" if self.link else "")


@dataclass(frozen=True)
class Declaration:
    """All that is declared, and in which file."""

    deviations: tuple[Deviation, ...]
    path: str = ""


# ---- reading -----------------------------------------------------------------------------------


def load(path: Path | str, today: datetime.date | None = None) -> Declaration:
    """Read a file of declared deviations.

    Args:
        path: the TOML file.
        today: what is past is an error.

    Raises:
        DeclarationError: it cannot be read, is no TOML, has something wrong or past; the message
            says where and what was expected.
    """
    try:
        data = tomllib.loads(Path(path).read_bytes().decode("utf-8"))
    except OSError as error:
        raise DeclarationError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DeclarationError(f"{path}: is not UTF-8: {error.reason}") from error
    except ValueError as error:  # mostly a TOMLDecodeError, which has line and column
        raise DeclarationError(f"{path}: is no TOML: {error}") from error
    except RecursionError as error:
        raise DeclarationError(f"{path}: is nested too deeply") from error
    try:
        return Declaration(_deviations(data, today or datetime.date.today()), str(path))
    except DeclarationError as error:
        raise DeclarationError(f"{path}: {error}") from error


def _deviations(data: dict[str, Any], today: datetime.date) -> tuple[Deviation, ...]:
    _known(data, ("schema", "deviation"), "")
    schema = data.get("schema")
    if type(schema) is not int or schema != 1:
        found = "there is none" if schema is None else f"got {schema!r}"
        raise DeclarationError(f"expected `schema = 1`, {found}")
    tables = data.get("deviation", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise DeclarationError("expected tables [[deviation]], with two brackets")
    return tuple(_deviation(table, i, today) for i, table in enumerate(tables, 1))


def _deviation(table: dict[str, Any], index: int, today: datetime.date) -> Deviation:
    where = f"deviation {index}: "
    _known(table, KEYS, where)
    if missing := [key for key in REQUIRED if key not in table]:
        raise DeclarationError(f"{where}{', '.join(missing)}: missing")
    checks = table["checks"]
    good = isinstance(checks, list) and checks and all(isinstance(c, str) and c for c in checks)
    if not good:
        raise DeclarationError(f"{where}checks: expected a list of globs, got {checks!r}")
    texts = {key: _text(table, key, where) for key in ("kind", "reason", "link", "expect")}
    if texts["kind"] not in KINDS:
        raise DeclarationError(
            f"{where}kind: expected one of {', '.join(KINDS)}, got {texts['kind']!r}"
        )
    if texts["kind"] == "bug" and not texts["link"]:
        raise DeclarationError(f"{where}link: a bug needs one, to where it is tracked")
    if texts["link"] and not texts["link"].startswith(("https://", "http://")):
        raise DeclarationError(f"{where}link: expected https://..., got {texts['link']!r}")
    if texts["expect"]:
        texts["expect"] = _known_deviation(texts["expect"], where)
    until = _until(table["until"], where) if "until" in table else None
    if until is not None and until < today:
        raise DeclarationError(
            f"{where}until: {until} is past; mend what departs ({texts['reason']}), "
            "or declare it anew"
        )
    return Deviation(tuple(checks), until=until, **texts)


def _known(table: dict[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in keys:
            near = get_close_matches(key, keys, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(keys)}"
            raise DeclarationError(f"{where}{key!r}: unknown{hint}")


def _text(table: dict[str, Any], key: str, where: str) -> str:
    value = table.get(key, "")
    if not isinstance(value, str) or (key in table and not value.strip()):
        raise DeclarationError(f"{where}{key}: expected a text, got {value!r}")
    return " ".join(value.split())


def _known_deviation(name: str, where: str) -> str:
    """The name that a diagnosis gives the deviation, which may be read by an older one."""
    from vitspec.testing.catalogue import EVERY, deviation

    try:
        return deviation(name).name
    except KeyError:
        near = get_close_matches(name, [d.name for d in EVERY], 1)
    hint = f"; did you mean {near[0]}?" if near else "; docs/catalogue.md lists them"
    raise DeclarationError(f"{where}expect: no deviation is named {name!r}{hint}")


def _until(value: Any, where: str) -> datetime.date:
    """The last day: of the month, if no day is given; TOML's own dates will do."""
    if type(value) is datetime.date:
        return value
    if isinstance(value, str) and (match := UNTIL.fullmatch(value)):
        year, month, day = (int(part or 1) for part in match.groups())
        try:
            first = datetime.date(year, month, day)
        except ValueError as error:
            raise DeclarationError(f"{where}until: {value}: {error}") from error
        return first if match[3] else first.replace(day=monthrange(year, month)[1])
    raise DeclarationError(f"{where}until: expected YYYY-MM or YYYY-MM-DD, got {value!r}")


# ---- applying ----------------------------------------------------------------------------------


def apply(
    declaration: Declaration,
    report: Report,
    diagnose: Diagnose | None = None,
    complete: bool = True,
) -> Report:
    """The report with what is declared taken into account.

    - A result that fails is `xfailed` if all of its failing tensors are declared, and fail in the
      way that is expected of them. Otherwise it stays failed, and the reason says why.
    - A deviation of which nothing fails any more makes what it covers `xpassed`: it is mended, and
      no longer to be declared.
    - Globs that match nothing at all go to `Report.unmatched`: a check was renamed, or misspelt.

    Args:
        declaration: what is declared.
        report: what was found; it is not changed.
        diagnose: needed where a deviation says what to expect.
        complete: whether everything was run. Part of the checks (`--only`, `--case`) cannot tell
            that something passes everywhere, or matches nothing.

    Raises:
        DeclarationError: `diagnose` is needed.
    """
    deviations = declaration.deviations
    if diagnose is None and any(d.expect for d in deviations):
        raise DeclarationError("`expect` needs a diagnosis, and there is none here")
    results = [_failed(report, r, deviations, diagnose) for r in report.results]
    unmatched = list(report.unmatched)
    if complete:
        mended = [d for d in deviations if not any(_fails(d, r) for r in report.results)]
        results = [_passed(r, mended) for r in results]
        globs = dict.fromkeys(glob for d in deviations for glob in d.checks)
        unmatched += [g for g in globs if not any(_matches(g, r) for r in report.results)]
    return replace(report, results=results, unmatched=unmatched)


def _failed(
    report: Report, result: Result, deviations: tuple[Deviation, ...], diagnose: Diagnose | None
) -> Result:
    if result.status != "failed":
        return result
    tensors = [g.tensor for g in result.failures] or [""]
    used = {t: next((d for d in deviations if d.covers(result.check, t)), None) for t in tensors}
    declared = list(dict.fromkeys(d for d in used.values() if d is not None))
    if not declared:
        return result
    reason = "declared as " + "; as ".join(map(str, declared))
    if undeclared := [t for t, d in used.items() if d is None]:
        known = [t for t, d in used.items() if d is not None]
        return replace(result, reason=_join(
            result.reason, f"not declared: {_some(undeclared)}; declared: {_some(known)}"
        ))  # fmt: skip
    for deviation in declared:
        if not deviation.expect or diagnose is None:
            continue
        if (found := diagnose(report, result)) != deviation.expect:
            looks = f"looks like {found}" if found else "looks like nothing that is known"
            reason = f"{reason}, which expects {deviation.expect}; but it {looks}"
            return replace(result, reason=_join(result.reason, reason))
    return replace(result, status="xfailed", reason=_join(result.reason, reason))


def _passed(result: Result, mended: list[Deviation]) -> Result:
    if result.status != "passed":
        return result
    for deviation in mended:
        if any(_matches(glob, result) for glob in deviation.checks):
            reason = f"it passes: remove what declares it as {deviation}"
            return replace(result, status="xpassed", reason=_join(result.reason, reason))
    return result


def _fails(deviation: Deviation, result: Result) -> bool:
    """Whether something fails that the deviation covers."""
    tensors = [g.tensor for g in result.failures] or [""]
    return result.status == "failed" and any(deviation.covers(result.check, t) for t in tensors)


def _matches(glob: str, result: Result) -> bool:
    """Whether a glob is of a result, or of one of its tensors, or of one that it would have."""
    if fnmatchcase(result.check, glob):
        return True
    if result.status in ("skipped", "errored") and glob.startswith(f"{result.check}."):
        return True
    return any(fnmatchcase(f"{result.check}.{g.tensor}", glob) for g in result.grades)


def _join(first: str, second: str) -> str:
    return f"{first}; {second}" if first else second


def _some(names: list[str], count: int = 5) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
