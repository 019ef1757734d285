"""What the shipped vectors say of Python implementations, good and bad, and the page about them."""

import re
from pathlib import Path

import numpy as np
import pytest

from vitspec.testing import check
from vitspec.testing.implementations import AdapterError, Subject
from vitspec.testing.precision import PRECISIONS
from vitspec.testing.reference import SpecImplementation
from vitspec.testing.vectors import cases_table, check_vectors, ids, load, low_precision_table
from vitspec.testing.vectors.layers import LAYERS, evaluate_layer

FLOAT32 = PRECISIONS["float32"]
PAGE = Path(__file__).parents[2] / "docs" / "vectors.md"


class Vit(SpecImplementation):
    """The specification, with layers that may be exchanged."""

    def __init__(self, **layers):
        super().__init__("vit")
        self.layers = layers


def found(implementation, only=None, precision=FLOAT32):
    """The results by case and check."""
    results = check_vectors(Subject(implementation, precision.name), only)
    return {(r.place.index, r.check): r for r in results}


def layer(name, change=lambda outputs: outputs):
    """A layer of the specification, called as an implementation's own is."""

    def evaluate(**arguments):
        settings = {n: x for n, x in arguments.items() if isinstance(x, int)}
        inputs = {n: x for n, x in arguments.items() if n not in settings}
        assert all(not x.flags.writeable for x in inputs.values())
        assert "mask" not in inputs or inputs["mask"].dtype == bool
        inputs = {n: x.astype(np.float32) if n == "mask" else x for n, x in inputs.items()}
        return change(evaluate_layer(name, inputs, settings))

    return evaluate


# ---- models ------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["vit", "vit-cls"])
def test_an_implementation_gets_the_cases_of_its_model(spec):
    results = found(SpecImplementation(spec))
    assert {r.status for r in results.values()} == {"passed", "skipped"}
    cases = [load(case_id) for case_id in ids()]
    models = {v.id for v in cases if v.kind == "model" and v.case["spec"] == spec}
    assert {case_id for case_id, name in results if name == "vector.forward"} == models
    assert {case_id for case_id, name in results if name == "vector.vjp"} == models
    ill_formed = {v.id for v in cases if v.kind == "ill-formed" and v.case["spec"] == spec}
    assert {case_id for case_id, name in results if name == "vector.ill-formed"} == ill_formed
    # What cannot even be a ViTConfig cannot be handed over.
    skipped = {case_id for (case_id, _), r in results.items() if r.status == "skipped"}
    assert skipped == {
        v.id for v in cases if v.id in ill_formed and v.case["violations"] == ["nat"]
    }


def test_one_case_may_be_asked_for():
    assert found(SpecImplementation("vit"), "basic-vit").keys() == {
        ("basic-vit", "vector.forward"), ("basic-vit", "vector.vjp"),
    }  # fmt: skip
    (other,) = found(SpecImplementation("vit"), "basic-cls").values()
    assert (other.status, other.reason) == ("skipped", "it asks for vit-cls, this is vit")
    with pytest.raises(AdapterError, match="no test vector is named 'basic'"):
        found(SpecImplementation("vit"), "basic")


def test_check_uses_them():
    report = check(SpecImplementation("vit"), cases=0, laws=0, ill_formed=False, vectors=True)
    assert report.conforms
    one = check(SpecImplementation("vit"), vector="basic-vit")
    assert [r.check for r in one.results] == ["vector.forward", "vector.vjp"]
    assert "only='vector.forward', vector=('basic-vit',)" in one.reproduce(one.results[0])


def test_what_it_does_not_support_is_skipped():
    implementation = SpecImplementation("vit")
    implementation.supports = lambda config: "only one layer" if config.num_layers != 1 else None
    results = found(implementation)
    assert results["basic-vit", "vector.forward"].status == "passed"
    unsupported = results["basic-vit-nothing-square", "vector.forward"]
    assert (unsupported.status, unsupported.reason) == ("skipped", "only one layer")


def test_without_a_vjp_the_forward_alone_is_graded():
    implementation = SpecImplementation("vit")
    implementation.vjp = None
    results = found(implementation, "basic-vit")
    assert [r.status for r in results.values()] == ["passed", "skipped"]


def test_one_that_raises_is_errored_and_the_others_are_still_graded():
    class Raises(SpecImplementation):
        def forward(self, config, params, images):
            if config.num_layers == 2:
                raise MemoryError("two are too many")
            return super().forward(config, params, images)

    results = found(Raises("vit"))
    broken = results["basic-vit-nothing-square", "vector.forward"]
    assert broken.status == "errored"
    assert "MemoryError" in broken.reason
    assert results["edge-vit-one-token", "vector.vjp"].status == "passed"


def test_one_that_accepts_everything_fails():
    class Accepts(SpecImplementation):
        def forward(self, config, params, images):
            return np.zeros((len(images), config.num_classes), images.dtype)

    results = found(Accepts("vit"))
    accepted = [r for (_, name), r in results.items() if name == "vector.ill-formed"]
    assert {r.status for r in accepted} == {"failed", "skipped"}
    reason = results["ill-formed-no-heads", "vector.ill-formed"].reason
    assert reason == "accepted what breaks headCount_pos"


def test_a_precision_that_a_case_leaves_out_is_skipped():
    (result,) = found(
        SpecImplementation("vit", "float16"), "adversarial-vit-small-variance",
        PRECISIONS["float16"],
    ).values()  # fmt: skip
    assert result.status == "skipped"
    assert result.reason.startswith("not graded in float16")


# ---- layers ------------------------------------------------------------------------------------


def test_layers_are_graded_if_it_has_them():
    results = found(Vit(**{name: layer(name) for name in LAYERS}))
    layers = {case_id: r for (case_id, name), r in results.items() if name == "vector.layer"}
    assert layers.keys() == {v.id for v in map(load, ids()) if v.kind == "layer"}
    assert {r.status for r in layers.values()} == {"passed"}


def test_layers_that_it_lacks_are_skipped():
    results = found(Vit(softmax=layer("softmax")))
    assert results["basic-softmax", "vector.layer"].status == "passed"
    assert results["basic-linear", "vector.layer"].status == "skipped"
    assert not any(name == "vector.layer" for _, name in found(SpecImplementation("vit")))
    (asked,) = found(SpecImplementation("vit"), "basic-softmax").values()
    assert asked.reason == "it exposes no layer 'softmax'"


def changed(name, change):
    return lambda outputs: outputs | {name: change(outputs[name])}


WRONG = {
    "a wrong gradient": (changed("d_gamma", lambda x: 1.001 * x), None),
    "NaN": (changed("out", lambda x: x * np.nan), None),
    "another shape": (changed("out", lambda x: x.T), "out: expected shape (5, 12), got (12, 5)"),
    "float64": (changed("d_beta", np.float64), "expected floats of the precision, got float64"),
    "integers": (changed("d_beta", np.int64), "expected floats of the precision, got int64"),
    "one missing": (lambda o: {n: x for n, x in o.items() if n != "d_x"}, "d_x: missing"),
    "one more": (lambda o: o | {"d_eps": o["out"]}, "'d_eps': unexpected name"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_layer_fails(case):
    change, reason = WRONG[case]
    results = found(Vit(layer_norm=layer("layer_norm", change)), "basic-layer-norm")
    result = results["basic-layer-norm", "vector.layer"]
    assert result.status == "failed"
    assert reason in result.reason if reason else result.failures


@pytest.mark.parametrize("change", [None, list, lambda _: 1 / 0])
def test_a_layer_that_does_not_work_is_errored(change):
    broken = layer("softmax", change or (lambda _: 7))
    (result,) = found(Vit(softmax=broken), "basic-softmax").values()
    assert result.status == "errored"
    assert "layers['softmax']" in result.reason


def test_a_failure_of_accuracy_says_so():
    def fast_variance(x, gamma, beta, d_out):
        exact = evaluate_layer(
            "layer_norm", {"x": x, "gamma": gamma, "beta": beta, "d_out": d_out}, {}
        )
        mean = x.mean(axis=-1, keepdims=True)
        variance = (x * x).mean(axis=-1, keepdims=True) - mean**2
        return exact | {"out": (x - mean) / np.sqrt(variance + np.float32(1e-6)) * gamma + beta}

    results = found(Vit(layer_norm=fast_variance))
    assert results["basic-layer-norm", "vector.layer"].status == "passed"
    result = results["adversarial-layer-norm-offset", "vector.layer"]
    assert result.status == "failed"
    assert result.reason.startswith("this case judges accuracy")


# ---- tables and the page -----------------------------------------------------------------------


def test_the_table_has_every_case():
    cells = [str(cell) for cell in cases_table().columns[0].cells]
    assert [cell for cell in cells if not cell.startswith("  ")] == ids()


def test_the_page_has_the_table_of_low_precision():
    assert PAGE.read_text().endswith("\n" + low_precision_table())


@pytest.mark.parametrize("dtype", ["float32", "tf32", "bfloat16"])
def test_vectors_see_what_low_precision_hides_in_ordinary_models(dtype):
    table = low_precision_table(dtype)
    assert "layer-norm-eps" in table  # ordinary models do hide something
    assert "| none |" not in table


def test_the_page_says_how_many_cases_and_names_every_layer():
    text = PAGE.read_text()
    assert f"{len(ids())} cases as files" in text
    named = re.findall(r"^\| `(\w+)` \| .* \| .*\|$", text, re.MULTILINE)
    assert set(LAYERS) <= set(named)
    for name in LAYERS:  # with the arguments that its cases have
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        for vector in map(load, ids()):
            if vector.case.get("layer") == name and not name.startswith("encoder"):
                arguments = vector.inputs.keys() - {"d_out"} | vector.case["settings"].keys()
                assert all(f"`{argument}`" in row for argument in arguments), (name, arguments)


def test_the_page_lists_what_an_exported_case_has():
    from vitspec.testing.vectors.folder import FOR_GRADING

    text = PAGE.read_text()
    keys = {key for case_id in ids() for key in load(case_id).case} - set(FOR_GRADING)
    rows = "".join(line for line in text.splitlines() if line.startswith("| `"))
    assert not [key for key in keys if f"`{key}`" not in rows]
    assert not [key for key in FOR_GRADING if f"`{key}`" not in text]
