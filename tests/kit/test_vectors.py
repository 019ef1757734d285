"""The shipped test vectors: reproducible, exact in every precision, true, and sharp."""

import hashlib
import json
from dataclasses import replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support import naive
from vitspec import NotWellFormed, ViTConfig, complex_step_derivative
from vitspec.models.parameters import check_model
from vitspec.models.transformer import TransformerEncoder, encoder_trace
from vitspec.testing.catalogue import CATALOGUE, deviation, planted
from vitspec.testing.families import MODELS
from vitspec.testing.implementations import Subject
from vitspec.testing.precision import PRECISIONS, RoundingArithmetic, rounded
from vitspec.testing.reference import SpecImplementation
from vitspec.testing.tolerance import grade
from vitspec.testing.vectors import build, check_vectors, ids, load
from vitspec.testing.vectors.building import Built, build_case, correctly_rounded, round_to_digits
from vitspec.testing.vectors.folder import DATA
from vitspec.testing.vectors.format import VectorError
from vitspec.testing.vectors.layers import LAYERS, build_layers, evaluate_layer
from vitspec.testing.vectors.plan import KINK_MARGIN, PLAN, IllFormedPlan, LayerPlan, ModelPlan
from vitspec.testing.vectors.schema import CASE_SCHEMA

flint = pytest.importorskip("flint", reason="real balls need the extra 'reals'")
jsonschema = pytest.importorskip("jsonschema")

PLANS = {plan.id: plan for plan in PLAN}
WELL_FORMED = [plan for plan in PLAN if not isinstance(plan, IllFormedPlan)]
MODEL_PLANS = [plan for plan in PLAN if isinstance(plan, ModelPlan)]
SOME = [
    "basic-cls-overlap", "edge-cls-no-layers", "basic-multi-head-attention-masked",
    "adversarial-layer-norm-offset", "adversarial-attention-blocked", "ill-formed-several",
]  # fmt: skip
"""Cases that are made anew here; `vitspec vectors build --check` makes all."""


def by_id(plan):
    return plan.id


# ---- the files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("case_id", SOME)
def test_made_anew_a_case_has_the_same_bytes(case_id):
    made = build_case(case_id)
    assert sorted(made) == sorted(path.name for path in (DATA / case_id).iterdir())
    for name, content in made.items():
        assert content == (DATA / case_id / name).read_bytes(), name


def test_the_folder_holds_what_is_planned_and_nothing_else():
    assert ids() == [plan.id for plan in PLAN]
    assert len(set(ids())) == len(PLAN)
    beside = {"index.json", "case.schema.json"}
    assert {path.name for path in DATA.iterdir()} == {*ids(), *beside}


def test_vectors_are_small():
    sizes = {i: sum(p.stat().st_size for p in (DATA / i).iterdir()) for i in ids()}
    assert max(sizes.values()) < 100_000
    assert sum(sizes.values()) < 4_000_000


def test_the_schema_is_one_and_every_case_follows_it():
    shipped = json.loads((DATA / "case.schema.json").read_bytes())
    assert shipped == CASE_SCHEMA
    jsonschema.Draft202012Validator.check_schema(shipped)
    validator = jsonschema.Draft202012Validator(shipped)
    for case_id in ids():
        validator.validate(json.loads((DATA / case_id / "case.json").read_bytes()))


@pytest.mark.parametrize(
    ("case_id", "change"),
    [
        ("basic-vit", lambda case: case.pop("spec")),
        ("basic-vit", lambda case: case.update(unknown=1)),
        ("basic-vit", lambda case: case["config"].update(stride=-1)),
        ("basic-vit", lambda case: case["outputs"].update(logits=[2.5])),
        ("basic-vit", lambda case: case["tolerance"].update(float8={})),
        ("basic-vit", lambda case: case["tolerance"]["float32"]["logits"].pop("row")),
        ("basic-vit", lambda case: case["kill_margin"]["float32"].update(x=0.5)),
        ("basic-softmax", lambda case: case.update(id="../basic-softmax")),
        ("basic-softmax", lambda case: case.update(schema="vitspec-vector/2")),
        ("ill-formed-several", lambda case: case.update(violations=[])),
    ],
)
def test_the_schema_refuses_what_is_no_case(case_id, change):
    case = json.loads((DATA / case_id / "case.json").read_bytes())
    change(case)
    assert not jsonschema.Draft202012Validator(CASE_SCHEMA).is_valid(case)


def test_building_writes_what_changed_and_takes_away_what_is_stale(tmp_path, monkeypatch):
    few = [PLANS["basic-relu"], PLANS["ill-formed-several"]]
    monkeypatch.setattr("vitspec.testing.vectors.building.PLAN", few)
    monkeypatch.setattr("vitspec.testing.vectors.building._processes", in_this_process)
    root, seen = tmp_path / "made", []
    made = build(root, step=lambda *arguments: seen.append(arguments))
    assert seen == [(1, 2, "basic-relu"), (2, 2, "ill-formed-several")]
    assert sorted(made) == sorted(p.relative_to(root).as_posix() for p in root.rglob("*.*"))
    assert build(root, check=True) == []
    stale, altered = root / "old" / "case.json", root / "basic-relu" / "outputs.safetensors"
    stale.parent.mkdir()
    stale.write_text("{}")
    altered.write_bytes(altered.read_bytes() + b"?")
    (root / "ill-formed-several" / "case.json").unlink()
    wrong = {"old/case.json", "basic-relu/outputs.safetensors", "ill-formed-several/case.json"}
    assert set(build(root, check=True)) == wrong
    assert set(build(root)) == wrong
    assert build(root, check=True) == []
    assert not stale.parent.exists()


class in_this_process:  # noqa: N801 - stands for a function
    """A pool of no processes."""

    map = staticmethod(map)

    def __init__(self, workers):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


# ---- the inputs --------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", WELL_FORMED, ids=by_id)
def test_every_input_is_exact_in_every_precision_and_none_hides_a_mistake(plan):
    vector = load(plan.id)
    for name, array in vector.inputs.items():
        for precision in PRECISIONS.values():
            np.testing.assert_array_equal(rounded(array, precision), array)
        assert name == "mask" or array.all(), f"{name} has zeros"
        if array.size > 8 and name != "mask" and plan.judges == "function":
            # 256 values are possible, so some of many are equal; no array is made of few.
            assert len(np.unique(array)) > min(array.size, 256) / 3, name


def hidden_layers(plan):
    inputs = {name: array.astype(np.float64) for name, array in load(plan.id).inputs.items()}
    if isinstance(plan, ModelPlan):
        images = inputs.pop("images")
        inputs.pop("cotangent")
        size = dict(zip(("in_channels", "height", "width"), plan.image, strict=True))
        model = MODELS[plan.spec].from_flat(plan.config, inputs, **size)
        traces = [layer for image in images for layer in model.trace(image).layers]
        return [layer.ffn.hidden for layer in traces]
    if plan.layer in ("encoder", "encoder_layer"):
        x = inputs.pop("x")
        inputs.pop("d_out")
        layers = build_layers(plan.layer, inputs, plan.settings)
        return [layer.ffn.hidden for layer in encoder_trace(TransformerEncoder(layers), x)]
    if plan.layer == "feed_forward":
        return [inputs["x"] @ inputs["w1"] + inputs["b1"]]
    return [inputs["z"]] if plan.layer == "relu" else []


@pytest.mark.parametrize("plan", WELL_FORMED, ids=by_id)
def test_every_relu_is_away_from_its_kink(plan):
    for hidden in hidden_layers(plan):
        assert np.abs(hidden).min() >= KINK_MARGIN


def test_kinks_are_looked_for_where_there_are_some():
    assert sum(bool(hidden_layers(plan)) for plan in WELL_FORMED) > 20
    hidden = np.concatenate([h.ravel() for plan in WELL_FORMED for h in hidden_layers(plan)])
    assert 0.3 < (hidden > 0).mean() < 0.7  # the ReLUs are open and closed alike


def test_the_numbers_are_those_of_the_hash():
    hashed = hashlib.shake_256(b"basic-linear/x").digest(9)
    assert hashed[:3].hex() == "7c3146"  # of the standard, not of this implementation
    expected = [(2 * byte - 255) / 256 for byte in hashed]
    assert load("basic-linear").inputs["x"].tolist() == expected


@pytest.mark.parametrize("plan", [p for p in PLAN if isinstance(p, IllFormedPlan)], ids=by_id)
def test_ill_formed_cases_break_just_the_rules_that_they_name(plan):
    assert load(plan.id).case["violations"] == sorted(plan.violations)
    with pytest.raises(NotWellFormed) as caught:
        check_model(ViTConfig(**plan.config), *plan.image, cls=plan.spec == "vit-cls")
    labels = {violation.split(":")[0] for violation in caught.value.violations}
    assert labels == set(plan.violations)


def test_each_rule_has_an_ill_formed_case():
    rules = {
        "nat", "patchH_ne0", "patchW_ne0", "embedDim_pos", "hiddenDim_pos", "headCount_pos",
        "numClasses_ne0", "h_inC", "h_tok",
    }  # fmt: skip
    assert {v for p in PLAN if isinstance(p, IllFormedPlan) for v in p.violations} == rules


def test_each_layer_has_a_case():
    assert {plan.layer for plan in PLAN if isinstance(plan, LayerPlan)} == set(LAYERS)


# ---- the truth ---------------------------------------------------------------------------------


def conforms(vector, name, value, dtype="float64"):
    precision = PRECISIONS[dtype]
    return grade(name, value, vector.truth[name], vector.prices(precision)[name]).conforms


@pytest.mark.parametrize("plan", MODEL_PLANS, ids=by_id)
def test_the_true_logits_are_those_of_plain_loops(plan):
    vector = load(plan.id)
    inputs = {name: array.astype(np.float64) for name, array in vector.inputs.items()}
    images = inputs.pop("images")
    inputs.pop("cotangent")
    logits = [naive.forward(plan, inputs, image) for image in images]
    assert conforms(vector, "logits", np.array(logits))


@pytest.mark.parametrize(
    "plan", [p for p in MODEL_PLANS if p.config.embed_dim > 2], ids=by_id
)  # a width of 1 has no derivative to speak of
def test_the_true_gradients_pair_with_the_complex_step(plan):
    vector = load(plan.id)
    flat = {name: array.astype(np.float64) for name, array in vector.inputs.items()}
    images, cotangent = flat.pop("images"), flat.pop("cotangent")
    rng = np.random.default_rng(0)
    size = dict(zip(("in_channels", "height", "width"), plan.image, strict=True))
    model = MODELS[plan.spec].from_flat(plan.config, flat, **size)
    direction = model.map(lambda leaf: rng.standard_normal(leaf.shape))
    along_images = rng.standard_normal(images.shape)
    derivative = 0.0
    for image, along, g in zip(images, along_images, cotangent, strict=True):
        by_parameters = complex_step_derivative(
            lambda m, x=image: m.forward(x.astype(m.dtype)), model, direction
        )
        by_image = complex_step_derivative(lambda x: model.astype(x.dtype).forward(x), image, along)
        derivative += float(g @ (by_parameters + by_image))
    pairs = [(vector.truth["image"], along_images)]
    pairs += [(vector.truth[name], leaf) for name, leaf in direction.to_flat().items()]
    paired = sum(float((a * b).sum()) for a, b in pairs)
    terms = sum(float(np.abs(a * b).sum()) for a, b in pairs)
    assert abs(paired - derivative) <= 1e-13 * terms


def test_structural_zeros_are_zeros():
    one_token = load("edge-vit-one-token").truth
    assert not one_token["encoder.layers.0.mha.wq"].any()
    assert not one_token["encoder.layers.0.mha.wk"].any()
    assert one_token["encoder.layers.0.mha.wv"].all()
    no_patch = load("edge-cls-no-patch").truth
    assert not no_patch["image"].any()
    assert not no_patch["patch_embed.kernel"].any()
    blocked = load("adversarial-attention-blocked").truth
    assert not blocked["out"][:, 1].any()
    assert not blocked["d_q"][:, 1].any()
    left_over = load("basic-vit-pixels-left-over").truth["image"]
    assert not left_over[:, :, 2:4].any()
    assert left_over[:, :, :2, :3].all()


arb = flint.arb


@pytest.fixture
def many_bits():
    with flint.ctx.workprec(256):
        yield


@pytest.mark.usefixtures("many_bits")
def test_balls_are_rounded_to_the_nearest_float64():
    tie = arb(1) + arb(2) ** -53  # half-way between 1 and the next float: to even
    above = tie + arb(2) ** -200
    third = arb(1) / 3
    balls = {
        "x": np.array([[tie, above], [third, -third], [arb(0), arb(3) * arb(2) ** 80]], object)
    }
    found = correctly_rounded(balls, "here")["x"]
    assert found.shape == (3, 2)
    assert found.tolist() == [[1.0, 1 + 2.0**-52], [1 / 3, -1 / 3], [0.0, 3 * 2.0**80]]


def test_what_cancelled_is_zero_and_not_minus_zero():
    underflow = -(arb(2) ** -2000)
    balls = {"x": np.array([arb(0, 1e-40), arb(-1e-45, 1e-40), arb(1), underflow], object)}
    found = correctly_rounded(balls, "here")["x"]
    assert found.tolist() == [0.0, 0.0, 1.0, 0.0]
    assert not np.signbit(found).any()


@pytest.mark.parametrize(
    "ball", [arb(0, 1e-20), arb(1, 1e-14), arb("nan"), arb("inf"), arb(0, "inf")]
)
def test_a_ball_that_does_not_decide_is_refused(ball):
    with pytest.raises(VectorError, match=r"here: x: .* do not decide"):
        correctly_rounded({"x": np.array([ball, arb(1)], object)}, "here")


@given(st.floats(1e-300, 1e300))
def test_frozen_numbers_are_rounded_away_from_what_they_allow(x):
    up, down = (round_to_digits(x, r) for r in (ROUND_CEILING, ROUND_FLOOR))
    # The decimals themselves are on the right side; their floats are the nearest to them.
    assert Fraction(repr(down)) <= Fraction(x) <= Fraction(repr(up))
    assert up - down <= 0.1001 * x
    for rounded_ in (up, down):
        assert len(Decimal(repr(rounded_)).normalize().as_tuple().digits) <= 2


def test_zero_stays_zero():
    assert round_to_digits(0.0, ROUND_CEILING) == 0.0


# ---- what conforms, and what does not ----------------------------------------------------------


def spec_layers(dtype):
    """The specification's layers in a precision's own arithmetic."""

    def layer(name):
        def evaluate(**given):
            settings = {n: x for n, x in given.items() if isinstance(x, int)}
            arrays = {n: x for n, x in given.items() if n not in settings}
            arithmetic = RoundingArithmetic(PRECISIONS[dtype])
            convert = (lambda x: x) if PRECISIONS[dtype].own_type else arithmetic.array
            return evaluate_layer(name, arrays, settings, convert)

        return evaluate

    return {name: layer(name) for name in LAYERS}


@pytest.mark.parametrize("spec", ["vit", "vit-cls"])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_the_specification_passes_in_every_precision(spec, dtype):
    implementation = SpecImplementation(spec, dtype)
    implementation.layers = spec_layers(dtype)
    results = [*check_vectors(Subject(implementation))]
    wrong = [r for r in results if r.status not in ("passed", "skipped")]
    assert not wrong
    passed = {r.check for r in results if r.status == "passed"}
    assert passed == {"vector.forward", "vector.vjp", "vector.layer", "vector.ill-formed"}


@pytest.mark.parametrize(
    ("case_id", "dtype"),
    [
        ("basic-vit", "float32"),
        ("basic-cls-overlap", "float64"),
        ("adversarial-vit-small-variance", "float32"),
        ("edge-vit-heads-of-width-one", "float32"),
    ],
)
def test_a_model_case_kills_what_it_claims(case_id, dtype):
    vector = load(case_id)
    margins = vector.case["kill_margin"][dtype]
    claimed = [name for name in vector.case["flags"] if margins.get(name, 0) >= 10]
    assert len(claimed) > 50
    spec = vector.case["spec"]
    for name in claimed[::4]:
        implementation = SpecImplementation(spec, dtype, [deviation(name)])
        results = [*check_vectors(Subject(implementation), case_id)]
        assert any(r.status == "failed" for r in results), name


@pytest.mark.parametrize("plan", [p for p in PLAN if isinstance(p, LayerPlan)], ids=by_id)
def test_a_layer_case_kills_what_it_claims(plan):
    flags = load(plan.id).case["flags"]
    assert flags
    for name in flags[::3]:
        implementation = SpecImplementation("vit", "float32")
        implementation.layers = spec_layers("float32")
        with planted(deviation(name)), np.errstate(all="ignore"):
            results = [*check_vectors(Subject(implementation), plan.id)]
        assert [r.status for r in results] == ["failed"], name


def test_an_altered_truth_is_noticed_in_every_precision():
    vector = load("basic-vit")
    for dtype, precision in PRECISIONS.items():
        for name, truth in vector.truth.items():
            prices = vector.prices(precision)[name]
            at = np.unravel_index(np.abs(truth).argmax(), truth.shape)
            altered = truth.copy()
            altered[at] *= 1 + 8 * (prices.max / np.abs(truth).max() + precision.u)
            assert not conforms(vector, name, altered, dtype), (name, dtype)


def seen(dtype, least, plans=WELL_FORMED):
    """The deviations with a margin of at least `least` in a precision, by any of these cases."""
    cases = [load(plan.id).case for plan in plans]
    return {
        name
        for case in cases
        for name, margin in case["kill_margin"].get(dtype, {}).items()
        if margin >= least
    }


VISIBLE = {d.name for d in CATALOGUE if d.kind != "jvp"}  # vectors ask for no tangents


def test_margins_name_deviations_of_the_catalogue():
    assert seen("float32", 0) <= VISIBLE


@pytest.mark.parametrize(
    ("dtype", "unseen"),
    [
        ("float32", set()),
        ("float64", {"layer-norm-fast-variance"}),  # harmless there
        ("tf32", {"layer-norm-fast-variance"}),
        ("bfloat16", {"layer-norm-fast-variance"}),
        # Epsilon is below what float16 adds to a variance of 1, and smaller ones it cannot hold.
        ("float16", {
            "layer-norm-fast-variance", "layer-norm-eps-1e-5", "layer-norm-eps-1e-12",
            "layer-norm-eps-outside-root",
        }),
    ],
)  # fmt: skip
def test_the_vectors_kill_the_whole_catalogue_but_for(dtype, unseen):
    assert VISIBLE - seen(dtype, 10) == unseen


@pytest.mark.parametrize("plan", [p for p in WELL_FORMED if p.category == "adversarial"], ids=by_id)
def test_an_adversarial_case_shows_what_no_basic_case_shows(plan):
    basic = [p for p in WELL_FORMED if p.category == "basic"]
    new = {
        (dtype, name)
        for dtype, margins in load(plan.id).case["kill_margin"].items()
        for name in {n for n, m in margins.items() if m >= 5} - seen(dtype, 5, basic)
    }
    new |= {
        (dtype, name)
        for dtype, margins in load(plan.id).case["kill_margin"].items()
        for name in {n for n, m in margins.items() if m >= 10} - seen(dtype, 10, basic)
    }
    assert new


@pytest.mark.parametrize("name", ["layer-norm-not-centred", "layer-norm-over-tokens"])
def test_the_smaller_margin_of_a_mistake_and_its_derivatives_counts(name):
    built = Built(replace(PLANS["basic-layer-norm"], dtypes=("float32",)))
    mistake = deviation(name)
    alone = [
        built.margins([replace(form, derivatives=None)])["float32"][name]
        for form in (mistake, mistake.differentiated())
    ]
    assert 1 < min(alone) < max(alone)
    assert built.margins([mistake])["float32"][name] == min(alone)


def test_inputs_are_drawn_before_a_mistake_is_planted():
    built = Built(PLANS["basic-encoder-layer"])
    built.margins([deviation("attention-scale-missing")])
    expected = PLANS["basic-encoder-layer"].inputs()
    for name, array in built.inputs.items():
        np.testing.assert_array_equal(array, expected[name])
