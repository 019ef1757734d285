"""The shipped vectors, and the folders in which programs answer them.

An exported folder holds prompts: what a case asks. Its answers are graded against the truth in this
package; nothing that the folder says about itself is believed, and a prompt that has changed since
it was exported is refused, for its answer would be one to another question.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import vitspec
from vitspec.config import ViTConfig
from vitspec.testing.precision import Precision
from vitspec.testing.reference import Flat, Point
from vitspec.testing.results import Place
from vitspec.testing.tolerance import Price
from vitspec.testing.vectors.format import (
    MAX_FILE,
    MAX_HEADER,
    VectorError,
    dump_json,
    exists,
    parse_json,
    parse_safetensors,
    read_file,
    require_directory,
    sha256,
    write_file,
)

DATA = Path(__file__).parent / "data" / "v1"
"""The vectors of this package."""

EXPORT = "vitspec-vectors-export/1"
FOR_GRADING = ("tolerance", "kill_margin", "flags", "judges", "violations")
"""What a prompt leaves out of its case: a program needs none of it, or is to find it out."""
MAX_REASON = 2**12
"""Bytes of the longest `rejected.txt`."""


# ---- the package -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Vector:
    """One case of this package.

    Attributes:
        case: its `case.json`.
        inputs: float32, by name; none if the case is ill-formed.
        truth: the outputs, float64, by name.
    """

    case: Mapping[str, Any]
    inputs: Flat
    truth: Flat

    @property
    def id(self) -> str:
        """Its name, and that of its folder."""
        return str(self.case["id"])

    @property
    def kind(self) -> str:
        """What it asks: "ill-formed", "layer" or "model"."""
        return "ill-formed" if self.case["category"] == "ill-formed" else str(self.case["kind"])

    @property
    def place(self) -> Place:
        """What results call it."""
        return Place("vectors", self.id)

    def prices(self, precision: Precision) -> dict[str, Price] | None:
        """What a precision costs each output; None if the case is not graded in it."""
        frozen = self.case["tolerance"].get(precision.name)
        if frozen is None:
            return None
        return {name: Price(**price, u=precision.u) for name, price in frozen.items()}

    def point(self) -> Point:
        """Where a model is evaluated; float32."""
        params = {n: x for n, x in self.inputs.items() if n not in ("images", "cotangent")}
        config = ViTConfig(**self.case["config"])
        images, cotangent = self.inputs["images"], self.inputs["cotangent"]
        return Point(str(self.case["spec"]), config, params, images, cotangent)


@cache
def index() -> dict[str, Any]:
    """The package's `index.json`.

    Raises:
        VectorError: it is missing or damaged; so do all functions that read the package.
    """
    path = DATA / "index.json"
    found = parse_json(read_file(path), path)
    if not isinstance(found, dict) or found.keys() != {"schema", "cases", "files"}:
        raise VectorError(f"{path}: expected an index of vectors; install vitspec again")
    return found


def ids() -> list[str]:
    """The names of all cases, in the order in which they are shown."""
    return list(index()["cases"])


def content(name: str) -> bytes:
    """A file of the package by its path below `DATA`, if its checksum is right."""
    path, listed = DATA / name, index()["files"].get(name)
    found = read_file(path)
    if listed is None or sha256(found) != listed["sha256"]:
        raise VectorError(f"{path}: is not as released (wrong checksum); install vitspec again")
    return found


@cache
def load(case_id: str) -> Vector:
    """One case of the package.

    Raises:
        VectorError: there is none of this name.
    """
    if case_id not in ids():
        raise VectorError(f"no test vector is named {case_id!r}; `vitspec vectors list` names all")
    case = parse_json(content(f"{case_id}/case.json"), case_id)
    if case["category"] == "ill-formed":
        return Vector(case, {}, {})
    arrays = [
        parse_safetensors(content(f"{case_id}/{name}.safetensors"), f"{case_id}/{name}")[0]
        for name in ("inputs", "outputs")
    ]
    return Vector(case, *arrays)


# ---- an exported folder ------------------------------------------------------------------------


def prompt(case_id: str) -> dict[str, bytes]:
    """The files of a case that a program is given, by name."""
    vector = load(case_id)
    asked = {name: value for name, value in vector.case.items() if name not in FOR_GRADING}
    files = {"case.json": dump_json(asked)}
    if vector.inputs:
        files["inputs.safetensors"] = content(f"{case_id}/inputs.safetensors")
    return files


def export(directory: Path | str) -> int:
    """Write the prompt of every case; answers that are there already stay.

    Args:
        directory: new, or empty, or an earlier export.

    Returns:
        How many cases.

    Raises:
        VectorError: it is something else. Nothing has been written then.
    """
    root = _root(directory)
    if exists(root):
        require_directory(root)
        if any(root.iterdir()):
            _require_export(root)
    prompts = {case_id: prompt(case_id) for case_id in ids()}
    for case_id in prompts:
        if exists(root / case_id):
            require_directory(root / case_id)
    root.mkdir(parents=True, exist_ok=True)
    listed = {}
    for case_id, files in prompts.items():
        (root / case_id).mkdir(exist_ok=True)
        for name, bytes_ in files.items():
            write_file(root / case_id / name, bytes_)
            listed[f"{case_id}/{name}"] = {"size": len(bytes_), "sha256": sha256(bytes_)}
    about = {"schema": EXPORT, "version": vitspec.__version__, "cases": ids(), "files": listed}
    write_file(root / "index.json", dump_json(about))
    return len(prompts)


def _root(directory: Path | str) -> Path:
    # The folder itself may be reached through links: it is the user's choice.
    return Path(os.path.realpath(directory))


def _require_export(root: Path) -> None:
    path = root / "index.json"
    if not exists(path):
        raise VectorError(
            f"{root}: is no export of test vectors (it has no index.json), and not empty; "
            "give a new folder"
        )
    found = parse_json(read_file(path), path)
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != EXPORT:
        raise VectorError(
            f"{path}: expected the schema {EXPORT}, found {str(schema)[:40]!r}; is this folder an "
            "export of test vectors?"
        )


@dataclass(frozen=True)
class Answer:
    """What a program wrote about one case.

    Attributes:
        outputs: the arrays of its `result.safetensors`; None if there is none.
        dtypes: their types, as the file names them, those that are no floats included.
        rejection: the line in its `rejected.txt`; None if there is none.
    """

    outputs: Flat | None = None
    dtypes: Mapping[str, str] | None = None
    rejection: str | None = None


def answers(directory: Path | str) -> dict[str, Answer]:
    """What a program wrote about each case.

    Raises:
        VectorError: the folder is no export, a prompt is missing or has changed, or an answer is
            damaged. Nothing outside the folder is opened.
    """
    root = _root(directory)
    require_directory(root)
    _require_export(root)
    return {case_id: _answer(root / case_id, case_id) for case_id in ids()}


def _answer(folder: Path, case_id: str) -> Answer:
    require_directory(folder)
    for name, expected in prompt(case_id).items():
        found = read_file(folder / name)
        if found != expected:
            raise VectorError(
                f"{folder / name}: is not what this version of vitspec exports (sha256 "
                f"{sha256(found)[:8]}, expected {sha256(expected)[:8]}): it has changed since, or "
                "another version exported it; export again and run your program again"
            )
    outputs = dtypes = rejection = None
    if exists(result := folder / "result.safetensors"):
        truth = load(case_id).truth.values()
        limit = min(MAX_FILE, MAX_HEADER + 16 * sum(x.size for x in truth))
        outputs, dtypes = parse_safetensors(read_file(result, limit), result)
    if exists(rejected := folder / "rejected.txt"):
        rejection = _line(read_file(rejected, MAX_REASON), rejected)
    return Answer(outputs, dtypes, rejection)


def _line(found: bytes, path: Path) -> str:
    try:
        text = found.decode("utf-8")
    except UnicodeDecodeError as error:
        raise VectorError(f"{path}: expected a line in UTF-8, found other bytes") from error
    # No control characters: this text ends up on a terminal.
    printable = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(printable.split())[:200]
