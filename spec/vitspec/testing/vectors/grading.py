"""Grades by the shipped vectors: of a Python implementation, and of a folder of answers."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vitspec.config import ViTConfig
from vitspec.errors import NotWellFormed
from vitspec.models.parameters import parameter_shapes
from vitspec.testing.adapter_errors import AdapterError
from vitspec.testing.confirmation import GROSS
from vitspec.testing.families import MODELS
from vitspec.testing.implementations import Subject
from vitspec.testing.noise import SUSPICION
from vitspec.testing.precision import PRECISIONS, Precision
from vitspec.testing.reference import Flat, Point
from vitspec.testing.refusal import refusal
from vitspec.testing.report.report import Report
from vitspec.testing.results import WHOLE, Result, graded
from vitspec.testing.settings import Settings
from vitspec.testing.tolerance import grade
from vitspec.testing.trial import Trial
from vitspec.testing.vectors import folder
from vitspec.testing.vectors.folder import Answer, Vector
from vitspec.testing.vectors.format import VectorError, parse_json, read_file, sha256
from vitspec.testing.vectors.layers import MASK
from vitspec.typing import Array

FORWARD, VJP = "vector.forward", "vector.vjp"
LAYER, ILL_FORMED = "vector.layer", "vector.ill-formed"

ACCURACY = (
    "this case judges accuracy: the function may be right, and computed in a way that loses digits;"
    " the layer's other cases tell whether it is right"
)


def _names(vector: Vector) -> dict[str, list[str]]:
    """For each check of a well-formed case, the outputs that it grades."""
    if vector.kind == "layer":
        return {LAYER: list(vector.truth)}
    return {FORWARD: ["logits"], VJP: [name for name in vector.truth if name != "logits"]}


def _graded(
    vector: Vector, check: str, names: list[str], found: Flat, precision: Precision
) -> Result:
    prices = vector.prices(precision) or {}
    with np.errstate(all="ignore"):  # what was found may be anything
        grades = [grade(n, found[n], vector.truth[n], prices[n]) for n in names]
    result = graded(check, vector.place, grades, _words(vector))
    if result.status == "failed" and vector.case["judges"] == "accuracy":
        return replace(result, reason=ACCURACY)
    return result


def _result(vector: Vector, check: str, status: Any, reason: str) -> Result:
    return Result(check, vector.place, status, reason=reason, point=_words(vector))


def _words(vector: Vector) -> str:
    what = vector.case.get("layer") or vector.case["spec"]
    return f"{what}: {vector.case['description']}"


def _not_graded(vector: Vector, precision: Precision) -> str:
    dtypes = ", ".join(vector.case["tolerance"])
    return f"not graded in {precision.name}, whose range is too small for it; only in {dtypes}"


# ---- a Python implementation -------------------------------------------------------------------


def check_vectors(subject: Subject, only: str | None = None) -> Iterator[Result]:
    """The shipped vectors that concern an implementation.

    These are the cases of its own model, and, if it has an attribute `layers`, those of the layers
    there: a mapping of a layer's name to a function of its arguments by name, `d_out` and its
    settings, which returns a mapping of `out` and `d_<argument>` to arrays.

    Args:
        subject: what is checked.
        only: the one case to check on; None for all.

    Raises:
        VectorError: the package is damaged.
        AdapterError: no case is named `only`.
    """
    if only is not None and only not in folder.ids():
        raise AdapterError(f"no test vector is named {only!r}; `vitspec vectors list` names all")
    for case_id in [only] if only else folder.ids():
        vector = folder.load(case_id)
        try:
            yield from _check(subject, vector, asked_for=only is not None)
        except AdapterError as error:
            check = {"layer": LAYER, "ill-formed": ILL_FORMED}.get(vector.kind, FORWARD)
            yield _result(vector, check, "errored", str(error))


def _check(subject: Subject, vector: Vector, asked_for: bool) -> Iterator[Result]:
    if vector.kind == "layer":
        yield from _check_layer(subject, vector, asked_for)
    elif vector.case["spec"] != subject.spec:
        if asked_for:
            reason = f"it asks for {vector.case['spec']}, this is {subject.spec}"
            yield _result(vector, FORWARD, "skipped", reason)
    elif vector.kind == "ill-formed":
        yield _check_ill_formed(subject, vector)
    elif vector.prices(subject.precision) is None:
        yield _result(vector, FORWARD, "skipped", _not_graded(vector, subject.precision))
    else:
        yield from _check_model(subject, vector)


def _check_model(subject: Subject, vector: Vector) -> Iterator[Result]:
    point = vector.point().rounded(subject.precision)
    reason = subject.why_unsupported(point.config)
    if reason is not None:
        yield _result(vector, FORWARD, "skipped", reason)
        return
    evaluators: dict[str, Any] = {FORWARD: subject.forward, VJP: subject.vjp}
    for check, names in _names(vector).items():
        if check == VJP and not subject.has_vjp:
            yield _result(vector, check, "skipped", "it has no vjp")
            continue
        try:
            found = evaluators[check](point)
        except AdapterError as error:
            yield _result(vector, check, "errored", str(error))
            continue
        result = _graded(vector, check, names, found, subject.precision)
        yield result if result.status == "passed" else _looked_at_again(subject, vector, result)


def _looked_at_again(subject: Subject, vector: Vector, result: Result) -> Result:
    """A result with the kit's own verdict on every tensor that is beyond its frozen bound.

    A frozen price is one draw of rounding. Here the noise can be drawn anew, and new points asked.
    What is far beyond all of its bounds is not looked at again.
    """
    doubtful = [g for g in result.grades if not g.conforms and g.ratio <= GROSS / SUSPICION]
    if not doubtful:
        return result
    point, rng = vector.point().rounded(subject.precision), np.random.default_rng(0)
    trial = Trial(subject, point, rng, place=vector.place, structured=True)
    trial.reference.truth = vector.truth
    with np.errstate(all="ignore"):
        grades = [trial.grades[g.tensor] if g in doubtful else g for g in result.grades]
    again = graded(result.check, result.place, grades, result.point)
    return again if again.status == "passed" else replace(again, reason=result.reason)


def _check_layer(subject: Subject, vector: Vector, asked_for: bool) -> Iterator[Result]:
    precision, layer = subject.precision, vector.case["layer"]
    layers = subject.description.layers
    if layer not in layers:
        if layers or asked_for:
            yield _result(vector, LAYER, "skipped", f"it exposes no layer {layer!r}")
        return
    if vector.prices(precision) is None:
        yield _result(vector, LAYER, "skipped", _not_graded(vector, precision))
        return
    arguments: dict[str, Array] = {}
    for name, x in vector.inputs.items():
        arguments[name] = x > 0 if name == MASK else x.astype(precision.carrier)
        arguments[name].setflags(write=False)
    found = subject.layer(layer, arguments, vector.case["settings"])
    dtypes = {name: str(x.dtype) for name, x in found.items()}
    right = {n: x for n, x in found.items() if _is_of(x, precision)}
    if problems := _problems(vector, right, dtypes):
        yield _result(vector, LAYER, "failed", "; ".join(problems))
        return
    wide = {n: x if precision.own_type else x.astype(np.float64) for n, x in right.items()}
    yield _graded(vector, LAYER, list(vector.truth), wide, precision)


def _is_of(x: Array, precision: Precision) -> bool:
    """Whether an array may be a result in a precision: of its own type, if NumPy has that."""
    return str(x.dtype) == precision.carrier if precision.own_type else "float" in str(x.dtype)


def _check_ill_formed(subject: Subject, vector: Vector) -> Result:
    rules = ", ".join(vector.case["violations"])
    try:
        config = ViTConfig(**vector.case["config"])
    except NotWellFormed:
        reason = (
            f"breaks {rules}: ViTConfig itself refuses it, so no implementation can be given it"
        )
        return _result(vector, ILL_FORMED, "skipped", reason)
    refused = refusal(subject, _any_point(vector, config).rounded(subject.precision))
    if refused is None:
        return _result(vector, ILL_FORMED, "failed", f"accepted what breaks {rules}")
    return _result(vector, ILL_FORMED, "passed", refused)


def _any_point(vector: Vector, config: ViTConfig) -> Point:
    """Arrays of the shapes that an ill-formed configuration asks for."""
    spec, image = vector.case["spec"], vector.case["image"]
    C, H, W = image["in_channels"], image["height"], image["width"]
    shapes = parameter_shapes(config, C, H, W, cls=MODELS[spec].has_cls_token)
    params = {name: np.full(shape, 0.5) for name, shape in shapes.items()}
    return Point(spec, config, params, np.ones((2, C, H, W)), np.ones((2, config.num_classes)))


# ---- a folder of answers -----------------------------------------------------------------------


class AnswersReport(Report):
    """The report of a folder of answers."""

    @property
    def verdict(self) -> str:
        """The one sentence that may be quoted."""
        if self.exit_code == 1:
            return "does not conform"
        if self.exit_code == 3:
            return "has no answers to grade"
        skipped = self.count()["skipped"]
        return "conforms, as tested" + (f" ({skipped} cases not answered)" if skipped else "")

    def reproduce(self, result: Result) -> str:
        """The command that grades the folder again."""
        return f"vitspec vectors grade {shlex.quote(self.target)} --dtype {self.dtype}"


def grade_report(directory: Path | str, dtype: str = "float32") -> Report:
    """Grade what a program wrote into an exported folder.

    Args:
        directory: the folder.
        dtype: the precision that the program computes in.

    Raises:
        VectorError: the folder is no export, is damaged or has been altered, or there is no such
            precision.
    """
    if dtype not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise VectorError(f"--dtype: expected one of {known}, got {dtype!r}")
    answers = folder.answers(directory)
    name = Path(directory).name or str(directory)
    # A program is told which cases it must reject, so one that it answers is a failure.
    settings = Settings(strict=True)
    report = AnswersReport(str(directory), name, "", "vit, vit-cls", dtype, settings)
    if all(answer == Answer() for answer in answers.values()):
        reason = "no case has a result.safetensors or a rejected.txt; run your program first"
        report.results.append(Result("vector", WHOLE, "errored", reason=reason))
        return report
    for case_id, answer in answers.items():
        report.results += _grade_answer(folder.load(case_id), answer, PRECISIONS[dtype])
    return report


def _grade_answer(vector: Vector, answer: Answer, precision: Precision) -> Iterator[Result]:
    if vector.kind == "ill-formed":
        yield _grade_rejection(vector, answer)
        return
    for check, names in _names(vector).items():
        if answer.rejection is not None:
            reason = f"rejected, but it is well-formed: {answer.rejection}"
            yield _result(vector, check, "failed", reason)
        elif answer.outputs is None and vector.kind == "layer":
            yield _result(vector, check, "skipped", "not answered")
        elif answer.outputs is None:
            yield _result(vector, check, "failed", "missing: there is no result.safetensors")
        elif vector.prices(precision) is None:
            yield _result(vector, check, "skipped", _not_graded(vector, precision))
        elif problems := _problems(vector, answer.outputs, answer.dtypes or {}, names):
            yield _result(vector, check, "failed", "; ".join(problems))
        else:
            yield _graded(vector, check, names, answer.outputs, precision)


def _grade_rejection(vector: Vector, answer: Answer) -> Result:
    rules = ", ".join(vector.case["violations"])
    if answer.outputs is not None:
        reason = f"has a result, but breaks {rules}: it must be rejected"
        return _result(vector, ILL_FORMED, "failed", reason)
    if answer.rejection is None:
        reason = f"missing: it breaks {rules}, and there is no rejected.txt"
        return _result(vector, ILL_FORMED, "failed", reason)
    return _result(vector, ILL_FORMED, "passed", f"rejected: {answer.rejection}")


def _problems(
    vector: Vector, found: Flat, dtypes: Mapping[str, str], names: list[str] | None = None
) -> list[str]:
    """What is wrong with the names, shapes and types of outputs, at most eight items.

    Names that nothing asked for are a problem of the last check, so that each is told once.
    """
    wanted = list(vector.truth) if names is None else names
    unexpected = [] if "logits" in wanted and len(wanted) == 1 else dtypes.keys() - vector.truth
    problems = [f"{name[:80]!r}: unexpected name" for name in sorted(unexpected)]
    for name in wanted:
        shape = vector.truth[name].shape
        if name not in dtypes:
            problems.append(f"{name}: missing, expected shape {shape}")
        elif name not in found:
            problems.append(f"{name}: expected floats of the precision, got {dtypes[name]}")
        elif found[name].shape != shape:
            problems.append(f"{name}: expected shape {shape}, got {found[name].shape}")
    return problems[:8] + (["..."] if len(problems) > 8 else [])


# ---- the package -------------------------------------------------------------------------------


def verify() -> int:
    """Check the shipped vectors: every file, its checksum, and its schema.

    Returns:
        How many cases there are.

    Raises:
        VectorError: something is missing, altered, or should not be there.
    """
    import jsonschema  # type: ignore[import-untyped]

    listed = folder.index()["files"]
    present = {p.relative_to(folder.DATA).as_posix() for p in folder.DATA.rglob("*") if p.is_file()}
    if strange := sorted(present - {*listed, "index.json"}):
        raise VectorError(f"{folder.DATA / strange[0]}: is no file of the vectors; remove it")
    for name in listed:
        if sha256(read_file(folder.DATA / name)) != listed[name]["sha256"]:
            raise VectorError(f"{folder.DATA / name}: is not as released; install vitspec again")
    path = folder.DATA / "case.schema.json"
    validator = jsonschema.Draft202012Validator(parse_json(read_file(path), path))
    for case_id in folder.ids():
        vector = folder.load(case_id)
        if error := next(validator.iter_errors(vector.case), None):
            raise VectorError(f"{folder.DATA / case_id}: breaks the schema: {error.message[:200]}")
        shapes = {"inputs": vector.inputs, "outputs": vector.truth}
        for part, arrays in shapes.items():
            if vector.case.get(part, {}) != {n: list(x.shape) for n, x in arrays.items()}:
                raise VectorError(f"{folder.DATA / case_id}: its {part} have other shapes")
    return len(folder.ids())
