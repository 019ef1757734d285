"""The check accepts the specification and rejects it with any mistake of the catalogue."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from support.trials import (
    check_forward,
    check_vjp,
    default_trial,
    results_of,
    same_point,
    trial_at,
)
from vitspec import ViTConfig
from vitspec.testing import check
from vitspec.testing.catalogue import CATALOGUE, Deviation, planted
from vitspec.testing.families import FAMILIES, Case, nearest_gap
from vitspec.testing.families.lean import ILL_FORMED, SMOKE_CONFIGS
from vitspec.testing.implementations import AdapterError, Subject
from vitspec.testing.laws import PERMUTATIONS, permutations
from vitspec.testing.photograph import load_photograph
from vitspec.testing.precision import PRECISIONS
from vitspec.testing.reference import Point, SpecImplementation, evaluate_spec, price_spec
from vitspec.testing.settings import Settings
from vitspec.testing.suites import LAWS
from vitspec.testing.suites.laws import permuted
from vitspec.testing.suites.photograph import photograph_trial
from vitspec.testing.tolerance import grade
from vitspec.testing.variants import VARIANTS

CONFIG = ViTConfig(
    patch_h=2, patch_w=3, stride=2, padding=1,
    embed_dim=6, hidden_dim=5, head_count=2, num_layers=2, num_classes=4,
)  # fmt: skip
SMALL = ViTConfig(
    patch_h=32, patch_w=32, stride=32, padding=0,
    embed_dim=16, hidden_dim=24, head_count=4, num_layers=2, num_classes=5,
)  # fmt: skip
FLOAT32 = PRECISIONS["float32"]


def case(spec, scale=1.0):
    return Case(spec, CONFIG, in_channels=2, height=5, width=8, seed=5, scale=scale, batch=2)


# ---- the specification conforms to itself --------------------------------------------------------


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_the_specification_conforms_to_itself_in_every_precision(dtype, spec_name):
    report = check(SpecImplementation(spec_name, dtype), cases=3, laws=1)
    assert report.verdict == "conforms, as tested", [r for r in report.results if r.failures]
    names = {r.check for r in report.results}
    assert names >= {"forward", "vjp", *LAWS, *PERMUTATIONS, "ill-formed.patchH_ne0"}


def test_every_gradient_is_graded(implementation, spec_name):
    result = check_vjp(trial_at(implementation(spec_name), case(spec_name)))
    names = set(case(spec_name).model().to_flat()) | {"image"}
    assert {g.tensor for g in result.grades} == names


def test_a_report_names_what_was_checked(implementation):
    settings = Settings(seed=3).nothing_but(cases=1)
    report = check(implementation("vit-cls"), settings)
    assert (report.spec, report.dtype, report.seed) == ("vit-cls", "float32", 3)
    assert [(r.check, str(r.place)) for r in report.results] == [
        ("forward", "case 0"),
        ("vjp", "case 0"),
    ]
    assert report.results[1].again == Settings(dtype="float32", seed=3, only="vjp", case=(0,))


def test_a_case_of_a_number_is_the_same_in_every_run(implementation):
    one, again, other = (
        default_trial(implementation("vit"), "float32", i, seed=3) for i in (7, 7, 8)
    )
    assert one.description == again.description != other.description
    assert np.array_equal(one.point.images, again.point.images)
    grades = [check_vjp(t).grades for t in (one, again)]
    assert grades[0] == grades[1]


# ---- mistakes are seen ---------------------------------------------------------------------------

FORMS = [
    (f"{d.name}{suffix}", form)
    for d in CATALOGUE
    if d.visible_in_model
    for suffix, form in (("", d), (", differentiated", d.differentiated()))
    if form is not None and (not suffix or form.patches != d.patches)
]
CASES_UNTIL_SEEN = 12
"""Of the hundred that `vitspec check` runs: these are its first."""


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "mistake"), FORMS, ids=[name for name, _ in FORMS])
def test_every_mistake_is_seen_at_default_settings(name, mistake, dtype):
    spec = mistake.specs[-1]
    for index in range(CASES_UNTIL_SEEN):
        right = trial_of_default(spec, dtype, index)
        results = _seen(same_point(right, SpecImplementation(spec, dtype, [mistake])))
        if results is None or any(r.status == "failed" for r in results):
            return
    pytest.fail(f"{name} is not seen in the first {CASES_UNTIL_SEEN} small cases")


@cache
def trial_of_default(spec, dtype, index):
    """A small case of `vitspec check`; the truth and its price are computed once for all tests."""
    return default_trial(SpecImplementation(spec), dtype, index)


def _seen(one):
    """The results of the case; None if the mistake made shapes that do not fit."""
    try:
        return [check_forward(one), check_vjp(one)]
    except AdapterError:
        return None


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_correct_variants_pass(variant, dtype):
    """`vitspec tolerances` does this on more seeds."""
    for seed in range(4):
        right = trial_of_default(("vit", "vit-cls")[seed % 2], dtype, seed)
        one = same_point(right, SpecImplementation(right.point.spec, dtype))
        with planted(variant):
            results = [check_forward(one), check_vjp(one)]
        assert all(r.status == "passed" for r in results)


def test_the_variants_compute_something_else():
    """Otherwise they would test nothing: each moves some bits of some result."""
    moved = {variant.name: False for variant in VARIANTS[1:]}
    for seed in range(6):
        a_case = FAMILIES["vit"].random_case(np.random.default_rng([seed, 20]))
        point = Point.of(a_case).rounded(FLOAT32)
        before = evaluate_spec(point, np.float32)
        for variant in VARIANTS[1:]:
            with planted(variant):
                found = evaluate_spec(point, np.float32)
            moved[variant.name] |= any(not np.array_equal(found[n], before[n]) for n in before)
    moved.pop("fused-qkv")  # where BLAS computes each column alike, it moves nothing
    assert all(moved.values()), [name for name, changed in moved.items() if not changed]


# ---- laws ----------------------------------------------------------------------------------------

LAW_BREAKERS = {
    "permute-patches": Deviation(
        "sees-order", "forward", "models.tokens:grid_to_tokens",
        "patches.reshape(D, out_h * out_w).T",
        "patches.reshape(D, out_h * out_w).T"
        " * np.arange(1, out_h * out_w + 1, dtype=patches.dtype)[:, None]",
        "",
    ),
    "permute-heads": Deviation(
        "weighs-heads", "forward", "layers.multi_head_attention:combine_heads",
        "x.transpose(1, 0, 2).reshape(n, H * d)",
        "(x * __import__('numpy').arange(1, H + 1, dtype=x.dtype)[:, None, None])"
        ".transpose(1, 0, 2).reshape(n, H * d)",
        "",
    ),
    "permute-features": Deviation(
        "weighs-features", "forward", "layers.normalization:layer_norm",
        "xhat * gamma + beta",
        "xhat * gamma * np.linspace(1, 2, x.shape[-1]).astype(x.dtype) + beta",
        "",
    ),
    "permute-hidden": Deviation(
        "weighs-hidden", "forward", "layers.activation:relu",
        "scalars.maximum_with_zero(z)",
        "scalars.maximum_with_zero(z) * np.linspace(1, 2, z.shape[-1]).astype(z.dtype)",
        "",
    ),
    "permute-classes": Deviation(
        "weighs-classes", "forward", "layers.linear:linear",
        "matmul(spec.weights, x)",
        "matmul(spec.weights, x) * __import__('numpy').linspace(1, 2, len(spec.bias))"
        ".astype(x.dtype)",
        "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("law", LAW_BREAKERS)
def test_a_law_sees_what_breaks_it_without_the_truth(law):
    a_case = FAMILIES["vit"].tiled_case(np.random.default_rng(2))
    config = replace(a_case.config, head_count=4, embed_dim=9, hidden_dim=6, num_classes=6)
    a_case = replace(a_case, config=config)
    with_mistake = SpecImplementation("vit", "float64", [LAW_BREAKERS[law]])
    results = {r.check: r for r in permuted(trial_at(with_mistake, a_case))}
    assert results[law].status == "failed"
    good = SpecImplementation("vit", "float64")
    right = {r.check: r for r in permuted(trial_at(good, a_case))}
    assert right[law].status == "passed"


def test_every_law_moves_the_point(spec_name):
    a_case = FAMILIES[spec_name].tiled_case(np.random.default_rng(5))
    config = replace(a_case.config, head_count=2, embed_dim=8, hidden_dim=6, num_classes=5)
    point = Point.of(replace(a_case, config=config, height=3 * config.patch_h))
    moved = {}
    for law in permutations(point, np.random.default_rng(0)):
        arrays = [(law.point.images, point.images), (law.point.cotangent, point.cotangent)]
        arrays += [(law.point.params[n], point.params[n]) for n in point.params]
        moved[law.name] = any(not np.array_equal(a, b) for a, b in arrays)
    assert set(moved) == set(PERMUTATIONS)
    assert all(moved.values()), moved


class Bent:
    """The specification with its gradients bent."""

    name, version, spec, dtype = "bent", "0", "vit", "float64"

    def __init__(self, bend):
        self.bend, self.good = bend, SpecImplementation("vit", "float64")

    def forward(self, *args):
        return self.good.forward(*args)

    def vjp(self, config, params, images, cotangent):
        d_params, d_images = self.good.vjp(config, params, images, cotangent)
        return {n: self.bend(g, cotangent) for n, g in d_params.items()}, d_images


@pytest.mark.parametrize(
    ("law", "bend"),
    [
        ("linearity", lambda g, c: g * np.linalg.norm(c)),
        ("scale", lambda g, c: g / max(1.0, np.linalg.norm(g))),
        ("batch-split", lambda g, c: g / len(c)),
        ("determinism", lambda g, c: g * (1 + 2.0**-52 * np.random.default_rng().integers(2, 99))),
    ],
)
def test_a_bent_gradient_breaks_its_law(law, bend):
    a_case = FAMILIES["vit"].tiled_case(np.random.default_rng(3))
    assert LAWS[law](trial_at(Bent(bend), a_case)).status == "failed"
    good = SpecImplementation("vit", "float64")
    assert LAWS[law](trial_at(good, a_case)).status == "passed"


# ---- ill-formed configurations -------------------------------------------------------------------


def test_accepting_an_ill_formed_configuration_is_a_failure(implementation):
    class Accepts:
        name, version, spec, dtype = "accepts", "0", "vit", "float32"

        def forward(self, config, params, images):
            return np.zeros((len(images), config.num_classes), np.float32)

    results = results_of("ill-formed", Accepts())
    assert [r.status for r in results] == ["failed"] * 6
    good = results_of("ill-formed", implementation("vit"))
    assert [r.status for r in good] == ["passed"] * 6
    assert {r.check for r in good} == {f"ill-formed.{label}" for label in ILL_FORMED}


def test_each_ill_formed_configuration_breaks_exactly_its_rule():
    for label, change in ILL_FORMED.items():
        (violation,) = replace(SMOKE_CONFIGS[0], **change).violations()
        assert violation.startswith(f"{label}:")


# ---- the photograph ------------------------------------------------------------------------------


def test_the_photograph_is_a_picture():
    image = load_photograph()
    assert image.shape == (3, 224, 224)
    assert image.min() >= -1
    assert image.max() <= 1
    assert image.std() > 0.3
    # Its red, green and blue differ, and it is not symmetric: channels and axes cannot hide.
    assert np.abs(image[0] - image[2]).mean() > 0.05
    assert np.abs(image - image.transpose(0, 2, 1)).mean() > 0.1


def test_the_photograph_check_at_small_size(implementation, spec_name):
    one = photograph_trial(Subject(implementation(spec_name)), 0, SMALL)
    assert check_vjp(one).status == check_forward(one).status == "passed"
    wrong = implementation(spec_name, "layer-norm-eps-1e-5")
    assert check_vjp(photograph_trial(Subject(wrong), 0, SMALL)).status == "failed"


# ---- kinks ---------------------------------------------------------------------------------------


def test_away_from_kinks_keeps_every_relu_input_off_zero(spec_name):
    model, images = case(spec_name).model(), case(spec_name).images()
    moved = FAMILIES[spec_name].away_from_kinks(model, images, margin=0.1)
    hidden = [layer.ffn.hidden for image in images for layer in moved.trace(image).layers]
    assert all(np.abs(h).min() >= 0.1 * 0.999 for h in hidden)
    before, after = model.to_flat(), moved.to_flat()
    changed = [name for name in before if not np.array_equal(before[name], after[name])]
    assert changed
    assert all(name.endswith("ffn.b1") for name in changed)


def test_the_nearest_gap_is_the_nearest_free_number():
    values = np.array([[-0.0005, 5.0], [0.0012, 6.0], [0.01, -4.0]])
    gap = nearest_gap(values)
    assert gap[0] == pytest.approx(-0.0015)  # 0.0022 is free too, but farther
    assert gap[1] == 0


# ---- the price -----------------------------------------------------------------------------------


def test_a_structural_zero_is_graded_against_what_cancelled():
    """With a single token attention is constant: d_wq and d_wk are zero, but for rounding."""
    config = replace(CONFIG, patch_h=5, patch_w=8, padding=0)
    one = Case("vit", config, 2, 5, 8, seed=5, batch=2)
    point = Point.of(one).rounded(FLOAT32)
    truth = evaluate_spec(point)
    prices = price_spec(point, truth, FLOAT32, 12, np.random.default_rng(0))
    name = "encoder.layers.0.mha.wq"
    assert not truth[name].any()
    exact = grade(name, truth[name], truth[name], prices[name])
    assert exact.cancelled
    assert exact.error == 0
    size = np.abs(truth["encoder.layers.0.mha.wv"]).max()
    rounding = np.full(truth[name].shape, 2.0**-26 * size)
    assert grade(name, rounding, truth[name], prices[name]).conforms
    assert not grade(name, 1e3 * rounding, truth[name], prices[name]).conforms
    # A row of the image's gradient that no window covers gets no noise: there nothing is excused.
    assert prices["image"].slice > 0


def test_the_price_is_of_the_size_of_rounding():
    point = Point.of(case("vit")).rounded(FLOAT32)
    truth = evaluate_spec(point)
    for name, precision in PRECISIONS.items():
        prices = price_spec(point, truth, precision, 4, np.random.default_rng(0))
        verdict = grade("logits", truth["logits"], truth["logits"], prices["logits"])
        assert precision.u / 4 < verdict.price < 200 * precision.u, name
