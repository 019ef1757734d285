"""The models that are written to be wrong: right without mistakes, and wrong with each of them."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vitspec.testing import check
from vitspec.testing.catalogue import deviation
from vitspec.testing.diagnosis import diagnose
from vitspec.testing.families import FAMILIES
from vitspec.testing.implementations import Subject
from vitspec.testing.precision import PRECISIONS
from vitspec.testing.reference import Point, evaluate_spec

pytest.importorskip("torch")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = ("vit", "vit-cls", "vision-transformer")


@pytest.fixture
def mistaken(monkeypatch):
    """The package, which lies beside the benchmarks."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import mistaken

    return mistaken


def points(family):
    """Where a diagnosis looks, and every activation that is not there."""
    cases = list(FAMILIES[family].telling_cases)
    if family == "vision-transformer":
        cases.append(FAMILIES[family].telling_interpolated_case())
        quick = replace(cases[0].config, activation="quick_gelu")
        cases.append(replace(cases[0], config=quick))
    return [Point.of(case).rounded(PRECISIONS["float64"]) for case in cases]


# ---- without mistakes ------------------------------------------------------------------------


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_pytorch_models_conform(mistaken, family, dtype):
    right = mistaken.implementation("torch", family)
    assert check(right, case=(0, 1, 2, 3), dtype=dtype).conforms
    if family == "vision-transformer":
        assert check(right, interpolation=0, dtype=dtype).conforms


@pytest.mark.parametrize("family", NAMES)
def test_the_jax_models_conform(mistaken, family):
    assert check(mistaken.implementation("jax", family), case=(0,), dtype="float64").conforms


@pytest.mark.slow
@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_jax_models_conform_at_more_points(mistaken, family, dtype):
    right = mistaken.implementation("jax", family)
    assert check(right, case=(1, 2, 3), dtype=dtype).conforms


@pytest.mark.parametrize("framework", ["torch", pytest.param("jax", marks=pytest.mark.slow)])
def test_intermediate_values_are_the_specification_s(mistaken, framework):
    implementation = mistaken.implementation(framework, "vision-transformer")
    point = points("vision-transformer")[1]
    found = Subject(implementation, "float64").evaluate(point)
    truth = evaluate_spec(point, taps=True)
    assert found.keys() == truth.keys()
    taps = truth.keys() - {"logits", "image", *point.params}
    for name in taps:
        np.testing.assert_allclose(found[name], truth[name], rtol=1e-9, atol=1e-12)


# ---- with mistakes ---------------------------------------------------------------------------


def no_difference(mistaken, framework, family, names):
    """Those of the mistakes that change nothing at any point."""
    where = points(family)
    right = Subject(mistaken.implementation(framework, family), "float64")
    truth = [right.evaluate(point) for point in where]
    return [
        name
        for name in names
        if not any(
            differ(name, found, one)
            for found, one in zip(evaluated(mistaken, framework, family, name, where), truth,
                                  strict=True)
        )
    ]  # fmt: skip


def evaluated(mistaken, framework, family, name, where):
    """What the mistaken model says, point by point, as far as anybody asks."""
    subject = Subject(mistaken.implementation(framework, family, [name], taps=False), "float64")
    return map(subject.evaluate, where)


def differ(name, found, truth):
    """Whether logits or gradients are others: by more than rounding, if it is not all there is."""
    try:
        rounding = deviation(name).kind == "accuracy"
    except KeyError:
        rounding = False
    return any(
        (found[n] != truth[n]).any()
        if rounding
        else np.abs(found[n] - truth[n]).max() > 1e-9 * np.abs(truth[n]).max()
        for n in found
        if not n.endswith("mha.bk") or name == "key-bias-gets-query-gradient"
    )


@pytest.mark.parametrize("family", NAMES)
def test_every_mistake_changes_something_in_pytorch(mistaken, family):
    assert no_difference(mistaken, "torch", family, mistaken.made(family)) == []


@pytest.mark.slow
@pytest.mark.parametrize("family", NAMES)
def test_every_mistake_changes_something_in_jax(mistaken, family):
    assert no_difference(mistaken, "jax", family, mistaken.made(family)) == []


def test_both_frameworks_have_the_same_mistakes(mistaken):
    """Those that the source of one asks for, the source of the other asks for too."""

    def asked(framework):
        sources = (BENCHMARKS / "mistaken").glob(f"{framework}_*.py")
        text = "".join(path.read_text(encoding="utf-8") for path in sources)
        return set(re.findall(r'"([a-z]+(?:-[a-z0-9]+)+)"', text))

    assert asked("torch") - {"vision-transformer"} == asked("jax") - {"vision-transformer"}
    every = {name for family in NAMES for name in mistaken.made(family)}
    assert asked("torch") - {"vision-transformer"} <= every


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_an_unknown_name_is_refused(mistaken, framework):
    with pytest.raises(KeyError, match="no mistake of this name"):
        mistaken.implementation(framework, "vit", ["gelu-tanh"])
    with pytest.raises(KeyError, match="nobody asks it for tangents"):
        mistaken.implementation(framework, "vit", ["jvp-without-gamma"])


def test_one_of_several_is_counted_as_it_was_named(mistaken):
    from diagnosis_names import how

    from vitspec.testing.diagnosis.diagnosis import Near

    near = Near("a + b", "", 0.5, 3, 3, True, same=("c", "d + e"), equal=("c",))
    assert how({"b", "a"}, near) == "first"
    assert how({"c"}, near) == "equal"
    assert how({"e", "d"}, near) == "same"
    assert how({"a"}, near) == "no"
    assert how({"a"}, None) == "no"


# ---- what diagnosis calls them -------------------------------------------------------------------

COMMON = (
    "final-norm-missing", "queries-and-keys-swapped", "keys-and-values-swapped",
    "activation-missing", "positions-missing", "positions-twice", "channels-reversed",
    "layers-in-reverse",
)  # fmt: skip


@pytest.mark.parametrize("name", COMMON)
def test_a_common_mistake_has_its_name_in_float32_without_taps(mistaken, name):
    """As a user's model shows it: logits, and the framework's own derivatives."""
    wrong = mistaken.implementation("torch", "vision-transformer", [name])
    assert diagnose(wrong, dtype="float32").name == name


def test_two_mistakes_of_a_model_are_both_named(mistaken):
    both = ["final-norm-missing", "layer-norm-eps-1e-5"]
    wrong = mistaken.implementation("torch", "vision-transformer", both)
    assert set(diagnose(wrong, dtype="float32").nearest[0].names) == set(both)
