"""The kit on the practical family: what conforms passes, and every named mistake is seen."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from support.trials import (
    check_forward,
    check_vjp,
    default_trial,
    results_of,
    same_point,
    trial_at,
)
from vitspec import ViTConfig, bench, scalars
from vitspec.cli import app
from vitspec.commands.bench import bench_tables
from vitspec.errors import InvalidParameters
from vitspec.layers.gelu import ACTIVATIONS
from vitspec.models import heads
from vitspec.models.block import Setting, block_trace
from vitspec.models.vision_transformer import VisionTransformer
from vitspec.presets import PRESETS
from vitspec.testing import AdapterError, check
from vitspec.testing.adapters import Rule, from_jax
from vitspec.testing.adapters.maps import PRACTICAL_NAMES
from vitspec.testing.catalogue import (
    CATALOGUE,
    EVERY,
    LATER,
    Patch,
    catalogue_markdown,
    deviation,
    deviations_of,
    planted,
)
from vitspec.testing.catalogue import (
    KINDS as KINDS_OF_MISTAKES,
)
from vitspec.testing.catalogue.entries import ALIASES, LATER_GROUPS, PRACTICAL_GROUPS
from vitspec.testing.catalogue.functions import RELU
from vitspec.testing.catalogue.practical_gradients import DECODER
from vitspec.testing.description import describe
from vitspec.testing.diagnosis import diagnose, points
from vitspec.testing.diagnosis.candidates import Candidate, mistaken
from vitspec.testing.diagnosis.search import Search
from vitspec.testing.families import FAMILIES, VisionTransformerCase
from vitspec.testing.families.family import SMOKE_IMAGE
from vitspec.testing.families.practical import NAME, TELLING_CASES, VALUES
from vitspec.testing.finding import planted_implementation
from vitspec.testing.implementations import Subject
from vitspec.testing.laws import PERMUTATIONS, permutations
from vitspec.testing.precision import (
    PRECISIONS,
    NoisyArithmetic,
    RoundingArithmetic,
    primitives_of,
    rounded,
)
from vitspec.testing.reference import Point, SpecImplementation, evaluate_spec, trace_taps
from vitspec.testing.settings import QUICK, Settings
from vitspec.testing.smoke import smoke
from vitspec.testing.strategies import vision_transformer_configs, vision_transformer_points
from vitspec.testing.suites import LAWS
from vitspec.testing.suites.photograph import photograph_trial
from vitspec.testing.suites.suite import against_the_truth
from vitspec.testing.trial import Trial
from vitspec.testing.variants import VARIANTS, Variant
from vitspec.vision_transformer_config import VisionTransformerConfig

FAMILY = FAMILIES[NAME]
FLOAT32 = PRECISIONS["float32"]
CONFIG = VisionTransformerConfig(
    image_h=7, image_w=8, in_channels=2, patch_h=2, patch_w=3, embed_dim=6, hidden_dim=5,
    head_count=2, num_layers=2, num_classes=4, layer_scale=True,
)  # fmt: skip
SMALL = VisionTransformerConfig(
    patch_h=32, patch_w=32, embed_dim=16, hidden_dim=24, head_count=4, num_layers=2, num_classes=5
)
CASE = VisionTransformerCase(CONFIG, seed=5, batch=2)


def spec(*mistakes, dtype=("float32", "float64")):
    return SpecImplementation(NAME, dtype, mistakes)


# ---- the specification conforms to itself --------------------------------------------------------


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_the_specification_conforms_to_itself_in_every_precision(dtype):
    report = check(spec(dtype=dtype), cases=4, laws=1)
    assert report.verdict == "conforms, as tested", [r for r in report.results if r.failures]
    names = {r.check for r in report.results}
    assert names >= {"forward", "vjp", *LAWS, *PERMUTATIONS, "ill-formed.cls_needed"}
    assert report.spec == NAME


def test_every_gradient_is_graded():
    result = check_vjp(trial_at(spec(), CASE))
    assert {g.tensor for g in result.grades} == set(CASE.model().to_flat()) | {"image"}


def test_the_taps_are_every_intermediate_value():
    taps = trace_taps(CASE.model().trace(CASE.image()))
    layer = ["normed1", "mha.q", "mha.k", "mha.v", "mha.weights", "mha.concat", "mha.output"]
    layer += ["residual", "normed2", "ffn.hidden", "ffn.activated", "ffn.output", "output"]
    expected = ["embedded", *(f"encoder.layers.{i}.{name}" for i in range(2) for name in layer)]
    assert list(taps) == [*expected, "last_hidden_state", "pooled"]


def test_the_photograph_check_at_small_size():
    one = photograph_trial(Subject(spec()), 0, SMALL)
    assert check_vjp(one).status == check_forward(one).status == "passed"
    wrong = photograph_trial(Subject(spec(deviation("gelu-tanh"))), 0, SMALL)
    assert check_forward(wrong).status == "failed"


def test_full_size_is_vit_base_16():
    assert FAMILY.full_size == PRESETS["hf-vit-base"]
    shapes = FAMILY.any_shapes(FAMILY.full_size)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 86_567_656


# ---- the cases -----------------------------------------------------------------------------------


def test_the_cases_of_a_check_have_every_option():
    cases = [FAMILY.random_case(np.random.default_rng([0, i])) for i in range(60)]
    configs = [case.config for case in cases]
    assert {c.activation for c in configs} == set(ACTIVATIONS)
    assert {(c.pool, c.cls_token) for c in configs} == {
        ("cls", True), ("mean", True), ("mean", False), ("cls_mean", True)
    }  # fmt: skip
    assert {c.layer_norm_eps for c in configs} == {1e-12, 1e-6, 1e-5}
    assert {case.values for case in cases} == set(VALUES)
    for name in ("qkv_bias", "output_bias", "layer_scale"):
        assert {getattr(c, name) for c in configs} == {True, False}
    assert any(c.image_h % c.patch_h for c in configs)
    assert any(c.image_w % c.patch_w == 0 for c in configs)
    assert any(c.patch_h != c.patch_w for c in configs)
    assert {c.head_count for c in configs} == {1, 2, 3, 4}
    assert not [c for c in configs if c.violations()]
    assert {case.batch for case in cases} == {1, 2, 3}


def test_a_case_prints_so_that_it_can_be_made_again():
    namespace = {"VisionTransformerCase": VisionTransformerCase}
    namespace["VisionTransformerConfig"] = VisionTransformerConfig
    from vitspec.vision_transformer_config import DropoutRates

    again = eval(repr(CASE), namespace | {"DropoutRates": DropoutRates})
    assert again == CASE
    assert np.array_equal(again.images(), CASE.images())
    assert CASE.images().shape == (2, 2, 7, 8)


@pytest.mark.parametrize("values", VALUES)
def test_values_change_what_they_say(values):
    def stream(case):
        return case.model().trace(case.image()).hidden_states[-1]

    normal, other = stream(CASE), stream(replace(CASE, values=values))
    ratio = other.std() / normal.std()
    if values == "tiny":
        assert 0.05 < ratio < 0.3
    if values == "offset":
        assert 2 < other.mean() - normal.mean() < 4
    if values == "large":
        rows = [
            c.model().trace(c.image()).attentions[0] for c in (CASE, replace(CASE, values=values))
        ]
        assert rows[1].max(axis=-1).mean() > rows[0].max(axis=-1).mean() + 0.1
    with pytest.raises(ValueError, match="normal, tiny"):
        replace(CASE, values="huge").model()


def test_only_relu_has_kinks():
    config = replace(CONFIG, activation="relu")
    case = replace(CASE, config=config)
    moved = FAMILY.away_from_kinks(case.model(), case.images(), margin=0.1)
    for image in case.images():
        for layer in moved.trace(image).layers:
            assert np.abs(layer.ffn.hidden).min() >= 0.1 * 0.999
    model = CASE.model()
    assert FAMILY.away_from_kinks(model, CASE.images(), 0.1) is model


# ---- mistakes are seen ---------------------------------------------------------------------------

FORMS = [
    (f"{d.name}{suffix}", form)
    for d in deviations_of(NAME)
    if d.visible_in_model
    for suffix, form in (("", d), (", differentiated", d.differentiated()))
    if form is not None and (not suffix or form.patches != d.patches)
]
STEP = 1e-100j
SHOWN = [d for d in deviations_of(NAME) if d.visible_in_model]
ALONE = [d for d in EVERY if d.specs == (NAME,)]
BOTH = [d for d in EVERY if d.practical is not None and d.visible_in_model]
"""What each family shows in a function of its own."""
CASES_UNTIL_SEEN = 12
"""Of the hundred that `vitspec check` runs: these are its first."""


@cache
def trial_of_default(dtype, index):
    return default_trial(spec(), dtype, index)


def verdicts(one, implementation):
    """Passed, failed; or "failed" alone where the mistake made shapes that do not fit."""
    one = same_point(one, implementation)
    try:
        return {check_forward(one).status, check_vjp(one).status}
    except AdapterError:
        return {"failed"}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "mistake"), FORMS, ids=[name for name, _ in FORMS])
def test_every_mistake_is_seen_at_default_settings(name, mistake, dtype):
    for index in range(CASES_UNTIL_SEEN):
        if "failed" in verdicts(trial_of_default(dtype, index), spec(mistake)):
            return
    pytest.fail(f"{name} is not seen in the first {CASES_UNTIL_SEEN} small cases")


@pytest.mark.parametrize("mistake", SHOWN, ids=lambda d: d.name)
def test_the_kind_says_what_is_wrong(mistake):
    """Backward entries leave all logits right; forward ones do not."""
    for index in range(CASES_UNTIL_SEEN):
        one = trial_of_default("float64", index)
        with planted(mistake):
            wrong = evaluate_spec(one.point)["logits"]
        if not np.array_equal(wrong, one.truth["logits"]):
            assert mistake.kind in ("forward", "both")
            return
    assert mistake.kind in ("backward", "batch")


@pytest.mark.parametrize(
    "mistake", [d for d in SHOWN if d.derivatives is not None], ids=lambda d: d.name
)
def test_differentiated_mistakes_are_right_derivatives_of_a_wrong_forward(mistake):
    """Backward and JVP of the mistaken forward are its complex step."""
    seen = False
    for index in range(CASES_UNTIL_SEEN):
        case = FAMILY.random_case(np.random.default_rng([0, index]))
        if case.config.activation == "relu" and mistake.function != RELU:
            continue
        model, image, tangent, d_image = case.model(), case.image(), case.tangent(), case.d_image()
        right = model.forward(image).logits
        with planted(mistake.differentiated()):
            bent = model.map(lambda a, b: a + STEP * b, tangent)
            truth = bent.forward(image + STEP * d_image).logits.imag / 1e-100
            jvp = model.jvp(image, tangent, d_image).logits
            grads, d_x = model.backward(image, case.d_logits())
            seen |= not np.array_equal(model.forward(image).logits, right)
        flat = tangent.to_flat()
        pairs = [(grads.to_flat()[n], flat[n]) for n in flat] + [(d_x, d_image)]
        scale = sum(np.abs(g * v).sum() for g, v in pairs)
        assert np.abs(jvp - truth).max() <= 1e-11 * np.abs(truth).max(), index
        assert abs(sum((g * v).sum() for g, v in pairs) - case.d_logits() @ truth) <= 1e-12 * scale
    assert seen


def test_every_entry_is_complete():
    for d in (*ALONE, *DECODER):
        assert d.kind in KINDS_OF_MISTAKES
        assert d.description
        assert not d.description.endswith(".")
        assert d.effect.endswith(".")
        assert all(d.seen)
        assert f"### {d.name}\n" in catalogue_markdown()
    assert len({d.name for d in EVERY}) == len(EVERY)
    assert len({d.patches for d in EVERY}) == len(EVERY)
    grouped = [d for group in (*PRACTICAL_GROUPS.values(), *LATER_GROUPS.values()) for d in group]
    assert {d.name for d in (*ALONE, *DECODER)} <= {d.name for d in grouped}


@pytest.mark.parametrize("mistake", BOTH, ids=lambda d: d.name)
def test_a_name_plants_the_mistake_in_both_families(mistake):
    """Whoever asks for it by its name need not know in which functions it sits."""
    lean, practical = mistake.families
    assert lean in (*CATALOGUE, *LATER)
    assert practical in deviations_of(NAME)
    assert lean.name == practical.name == mistake.name
    assert (*lean.specs, *practical.specs) == mistake.specs
    assert set(mistake.patches) == {*lean.patches, *practical.patches}
    known = [one for one in (lean, practical) if one.derivatives is not None]
    if (both := mistake.differentiated()) is not None:
        assert both.specs == tuple(spec for one in known for spec in one.specs)
        assert set(both.patches) == {p for one in known for p in one.differentiated().patches}
    assert (mistake.differentiated() is None) == (not known)


MERGED = {
    "block-norms-shared": "layer-norm-shared",
    "patch-rows-channels-last": "window-channels-last",
    "patch-grid-column-major": "patches-column-major",
    "block-attention-residual-gradient-dropped": "attention-residual-gradient-dropped",
    "block-mlp-residual-gradient-dropped": "feed-forward-residual-gradient-dropped",
}
"""Names that version 0.5 had for the practical family alone."""


@pytest.mark.parametrize(("alias", "name"), MERGED.items())
def test_an_alias_is_the_mistake_of_the_practical_family_under_its_name_of_today(alias, name):
    assert deviation(alias) == deviation(name).of(NAME)
    assert deviation(alias) in deviations_of(NAME)
    assert alias not in {d.name for d in EVERY}
    assert MERGED == ALIASES
    one = planted_implementation(alias)
    assert (one.spec, one.name) == (NAME, f"planted:{name}")
    assert f"also read as `{alias}`" in " ".join(catalogue_markdown().split())


def test_a_mistake_in_a_method_is_gone_afterwards():
    before = CASE.model().forward(CASE.image()).logits
    method = VisionTransformer._outputs
    with planted(deviation("final-norm-missing")):
        assert VisionTransformer._outputs is not method
        assert not np.array_equal(CASE.model().forward(CASE.image()).logits, before)
    assert VisionTransformer._outputs is method
    assert np.array_equal(CASE.model().forward(CASE.image()).logits, before)
    with pytest.raises(ZeroDivisionError), planted(deviation("gelu-tanh")):
        raise ZeroDivisionError
    assert np.array_equal(CASE.model().forward(CASE.image()).logits, before)


# ---- images of another size: interpolated positions ----------------------------------------------

OTHER_SIZES = [d for d in EVERY if d.other_sizes_only]
INTERPOLATED_FORMS = [
    pytest.param(d, dtype, id=f"{d.name}-{dtype}")
    for d in OTHER_SIZES
    for dtype in ("float32", "float64")
]


@cache
def interpolated_trial(dtype, index):
    return default_trial(spec(), dtype, index, "interpolation")


def interpolated_verdicts(one, implementation):
    results = against_the_truth(same_point(one, implementation), Settings(), "interpolation.")
    forward, vjp = results
    assert (forward.check, vjp.check) == ("interpolation.forward", "interpolation.vjp")
    return forward.status, vjp.status


@pytest.mark.parametrize(("mistake", "dtype"), INTERPOLATED_FORMS)
def test_an_interpolation_trap_is_seen_by_the_quick_check_and_on_other_sizes_only(mistake, dtype):
    for index in range(QUICK.interpolations):
        verdicts_here = interpolated_verdicts(interpolated_trial(dtype, index), spec(mistake))
        if "failed" in verdicts_here:
            break
    else:
        pytest.fail("not seen")
    assert verdicts_here == (("failed" if mistake.kind == "both" else "passed"), "failed")
    assert verdicts(trial_of_default(dtype, 0), spec(mistake)) == {"passed"}
    assert mistake not in deviations_of(NAME)
    assert mistake in deviations_of(NAME, other_sizes=True)


@pytest.mark.parametrize("index", range(4))
def test_the_specification_conforms_to_itself_on_images_of_another_size(index):
    one = interpolated_trial("float32", index)
    assert interpolated_verdicts(one, spec()) == ("passed", "passed")
    config, size = one.point.config, one.point.images.shape[2:]
    assert config.grid_of(*size) != config.grid
    assert str(one.place) == f"interpolation {index}"


def test_cases_of_another_size_are_of_every_kind():
    cases = [FAMILY.interpolated_case(np.random.default_rng([0, i])) for i in range(40)]
    configs = [case.config for case in cases]
    grids = [(c.grid, c.grid_of(*case.image_size)) for c, case in zip(configs, cases, strict=True)]
    assert all(own != other for own, other in grids)
    for axis in (0, 1):
        signs = {np.sign(other[axis] - own[axis]) for own, other in grids}
        assert signs == {-1, 0, 1}
    square = [own[0] == own[1] and c.patch_h == c.patch_w
              for c, (own, _) in zip(configs, grids, strict=True)]  # fmt: skip
    assert 10 < sum(square) < 30
    assert {c.cls_token for c in configs} == {True, False}


@pytest.mark.parametrize("grid", [(1, 3), (4, 2)])
def test_a_users_configuration_is_taken_with_images_of_another_size(grid):
    config = replace(CONFIG, image_h=2 * grid[0], image_w=3 * grid[1])
    one = default_trial(spec(), "float32", 0, "interpolation", config=config)
    assert one.point.config == config
    assert config.grid_of(*one.point.images.shape[2:]) != grid
    assert interpolated_verdicts(one, spec()) == ("passed", "passed")


def test_only_what_says_so_is_given_images_of_another_size():
    class Own(SpecImplementation):
        supports_size = None

    class Wide(SpecImplementation):
        def supports_size(self, config, height, width):
            return None if height < width else f"{height} x {width} is not wide"

    class Wrong(SpecImplementation):
        def supports_size(self, config, height, width):
            return height == width

    def results(one):
        settings = Settings().nothing_but(interpolations=6)
        report = check(one, settings)
        return [(r.check, r.status, r.reason) for r in report.results]

    (only,) = results(Own(NAME))
    assert only[:2] == ("interpolation.supports", "skipped")
    assert "supports_size" in only[2]
    found = results(Wide(NAME))  # cases are drawn within what it takes
    assert {status for _, status, _ in found} <= {"passed", "skipped"}
    assert [status for _, status, _ in found].count("passed") >= 6
    assert all("is not wide" in reason for _, status, reason in found if status == "skipped")
    assert {status for _, status, _ in results(Wrong(NAME))} == {"errored"}
    assert results(SpecImplementation("vit")) == []
    one = spec()
    one.supports_size = "yes"
    with pytest.raises(AdapterError, match=r"^supports_size: expected a method, or none$"):
        describe(one)


@pytest.mark.parametrize("name", ["positions-antialiased", "interpolation-gradient-resampled"])
def test_an_interpolation_trap_is_named(name):
    assert diagnose(spec(deviation(name))).name == name


def test_traps_of_other_sizes_are_candidates_where_there_are_some():
    one, names = spec(), {d.name for d in OTHER_SIZES}
    for other_sizes in (True, False):
        subject = Subject(one)
        chosen, _ = points.cases(subject)
        assert any(case.image_size for case in chosen) == other_sizes
        search = Search([points.Sample.of(subject, case) for case in chosen])
        assert {c.names[0] for c in search.all} & names == (names if other_sizes else set())
        one.supports_size = None


def test_a_result_of_another_size_says_how_to_run_it_again():
    report = check(spec(deviation("cubic-a-half")), cases=0, laws=0, interpolations=1)
    failed = next(r for r in report.results if r.status == "failed")
    assert failed.again.only == "interpolation.forward"
    assert failed.again.interpolation == (0,)


# ---- what the check does not see: the decoder ----------------------------------------------------


def test_the_check_has_no_decoder():
    for mistake in DECODER:
        assert not mistake.visible_in_model
        assert verdicts(trial_of_default("float64", 0), spec(mistake)) == {"passed"}


def test_the_pixel_shuffle_trap_moves_pixels_and_stays_invertible():
    y = np.random.default_rng(2).standard_normal((6, 3 * 4))
    right = heads.pixel_shuffle(y, (2, 3), 2)
    with planted(deviation("pixel-shuffle-channels-last").differentiated()):
        wrong = heads.pixel_shuffle(y, (2, 3), 2)
        assert np.array_equal(heads.pixel_unshuffle(wrong, 2), y)
    assert np.array_equal(np.sort(wrong.ravel()), np.sort(right.ravel()))
    assert not np.allclose(wrong, right)
    one_channel = heads.pixel_shuffle(y[:, :4], (2, 3), 2)
    with planted(deviation("pixel-shuffle-channels-last")):
        assert np.array_equal(heads.pixel_shuffle(y[:, :4], (2, 3), 2), one_channel)


# ---- correct variants pass -----------------------------------------------------------------------

ATTENTION = "layers.self_attention:self_attention_trace"
NORMAL = "layers.gelu:normal_distribution"
OWN_VARIANTS = (
    Variant(
        "gelu-by-erf", "the normal distribution as (1 + erf(x / sqrt 2)) / 2, as PyTorch has it",
        (Patch(NORMAL, "scalars.erfc(x / -np.sqrt(scalar(2, x.dtype))) / 2",
               "(1 + (1 - scalars.erfc(x / np.sqrt(scalar(2, x.dtype))))) / 2"),),
    ),
    Variant(
        "logistic-by-exp", "the logistic function by one exponential",
        (Patch("layers.gelu:logistic", "(1 + np.tanh(z / 2)) / 2", "1 / (1 + np.exp(-z))"),),
    ),
    Variant(
        "gelu-factors-in-another-order", "the exact GELU as (x / 2) (2 P)",
        (Patch("layers.gelu:gelu", "x * normal_distribution(x)",
               "(x / 2) * (2 * normal_distribution(x))"),),
    ),
    Variant(
        "scale-on-the-weight", "the first layer scale is folded into the output projection",
        (Patch("models.block:block_trace", "times(times(mha.output, block.layer_scale1)",
               "times(times(mha.output, None) if block.layer_scale1 is None else"
               " mha.concat @ (block.mha.wo * block.layer_scale1)"
               " + (0 if block.mha.bo is None else block.mha.bo * block.layer_scale1)"),),
    ),
)  # fmt: skip
PRACTICAL_VARIANTS = tuple(
    v for v in (*VARIANTS, *OWN_VARIANTS)
    if not any("multi_head_attention_" in p.function for p in v.patches)
)  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("variant", PRACTICAL_VARIANTS, ids=lambda v: v.name)
def test_correct_variants_pass(variant, dtype):
    for index in range(8):
        one = trial_of_default(dtype, index)
        assert one.reference.more_noises  # before the variant is planted
        with planted(variant):
            assert verdicts(one, spec()) == {"passed"}, index


# ---- precision -----------------------------------------------------------------------------------


def test_erfc_errs_once_and_by_its_constant():
    x = np.linspace(-3, 6, 2000)
    u = primitives_of(FLOAT32)["erfc"] * FLOAT32.u
    noisy = NoisyArithmetic(FLOAT32, np.random.default_rng(0)).array(x)
    error = np.asarray(scalars.erfc(noisy)) - scalars.erfc(x)
    size = np.maximum(scalars.erfc(x), 1)
    assert 0.9 * u < np.abs(error / size).max() <= 1.01 * u
    assert abs((error / size).mean()) < 0.1 * u
    bfloat16 = PRECISIONS["bfloat16"]
    half = np.asarray(scalars.erfc(RoundingArithmetic(bfloat16).array(x)))
    assert np.array_equal(half, rounded(scalars.erfc(x), bfloat16).astype(float))


def test_what_is_concatenated_goes_on_erring():
    arithmetic = NoisyArithmetic(FLOAT32, np.random.default_rng(0))
    both = np.concatenate([arithmetic.array(np.ones(500)), np.ones(500)])
    assert np.array_equal(np.asarray(both), np.ones(1000))
    assert np.abs(np.asarray(both * 1.0) - 1).max() > FLOAT32.u / 2


def test_the_prices_are_of_the_size_of_rounding():
    for dtype in ("float64", "bfloat16", "float16"):
        one = trial_at(spec(dtype=dtype), CASE)
        for name, truth in one.truth.items():
            size = np.linalg.norm(truth)
            if size > 100 * one.prices[name].norm:
                assert one.prices[name].norm > PRECISIONS[dtype].u / 8 * size, (dtype, name)
                assert one.prices[name].norm < 500 * PRECISIONS[dtype].u * size, (dtype, name)


def test_the_key_bias_is_graded_against_what_cancels():
    one = trial_at(spec(), CASE)
    (result,) = [g for g in check_vjp(one).grades if g.tensor.endswith("0.mha.bk")]
    assert result.cancelled
    assert result.conforms
    swapped = trial_at(spec(deviation("key-bias-gets-query-gradient")), CASE)
    failures = {g.tensor for g in check_vjp(swapped).failures}
    assert failures == {f"encoder.layers.{i}.mha.bk" for i in range(2)}


# ---- laws, ill-formed configurations -------------------------------------------------------------


@pytest.mark.parametrize("pool", ["cls", "mean", "cls_mean"])
def test_every_law_moves_the_point_and_holds(pool):
    case = FAMILY.tiled_case(np.random.default_rng(3))
    config = replace(
        case.config, head_count=2, embed_dim=6, hidden_dim=5, num_classes=4, pool=pool,
        cls_token=True, layer_scale=True, image_h=3 * case.config.patch_h, activation="gelu",
    )  # fmt: skip
    point = Point.of(replace(case, config=config))
    truth = evaluate_spec(point)
    moved = set()
    for law in permutations(point, np.random.default_rng(0)):
        arrays = [(law.point.images, point.images), (law.point.cotangent, point.cotangent)]
        arrays += [(law.point.params[n], point.params[n]) for n in point.params]
        if any(not np.array_equal(a, b) for a, b in arrays):
            moved.add(law.name)
        found = law.restore(evaluate_spec(law.point))
        for name in truth.keys() & found.keys():
            # Not relative to itself: the key bias's gradient is rounding noise.
            scale = max(np.abs(truth[name]).max(), 1e-3)
            assert np.abs(found[name] - truth[name]).max() < 1e-11 * scale, (law.name, name)
    assert moved == set(PERMUTATIONS)


def test_each_ill_formed_configuration_breaks_exactly_its_rule():
    for label, change in FAMILY.ill_formed.items():
        (violation,) = replace(FAMILY.smoke_configs[0], **change).violations()
        assert violation.startswith(f"{label}:")


def test_accepting_an_ill_formed_configuration_is_a_failure():
    class Accepts:
        name, version, spec, dtype = "accepts", "0", NAME, "float32"

        def forward(self, config, params, images):
            return np.zeros((len(images), config.num_classes), np.float32)

    results = results_of("ill-formed", Accepts())
    assert [r.status for r in results] == ["failed"] * len(FAMILY.ill_formed)
    good = results_of("ill-formed", spec())
    assert [r.status for r in good] == ["passed"] * len(FAMILY.ill_formed)
    assert all("NotWellFormed" in r.reason for r in good), [r.reason for r in good]


def test_every_smoke_configuration_is_tried():
    class Picky(SpecImplementation):
        def supports(self, config):
            return None if config.pool == "mean" and not config.cls_token else "mean only"

    assert smoke(Subject(Picky(NAME))) == FAMILY.smoke_configs[2]
    shape = FAMILY.smoke_case(FAMILY.smoke_configs[0]).image_shape
    assert shape == SMOKE_IMAGE
    report = check(Picky(NAME), cases=8, laws=0)
    assert report.conforms, str(report)
    assert report.compared["forward"] == 8  # each was drawn within what it supports


# ---- strategies ----------------------------------------------------------------------------------


@given(vision_transformer_configs())
def test_drawn_configurations_are_well_formed(config):
    assert not config.violations()
    assert config.num_classes


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(vision_transformer_points(values=None), st.integers(0, 2**31))
def test_drawn_points_conform(point, seed):
    point = point.away_from_kinks(1e-3).rounded(FLOAT32)
    one = Trial(Subject(spec()), point, np.random.default_rng(seed))
    assert check_forward(one).status == check_vjp(one).status == "passed"


def test_drawn_configurations_can_be_constrained():
    @given(vision_transformer_configs(max_layers=1, activation=st.just("relu"), qkv_bias=False))
    def inner(config):
        assert config.activation == "relu"
        assert not config.qkv_bias
        assert config.num_layers <= 1

    inner()


# ---- adapters ------------------------------------------------------------------------------------

BARE = replace(CONFIG, qkv_bias=False, output_bias=False, layer_scale=False, cls_token=False,
               pool="mean")  # fmt: skip


@pytest.mark.parametrize("config", [CONFIG, BARE, replace(CONFIG, num_layers=0)])
def test_without_a_map_the_names_are_the_specifications(config):
    flat = VisionTransformer.init(config, rng=np.random.default_rng(0)).to_flat()
    bound = PRACTICAL_NAMES.bind(config)
    assert bound.their_shapes == {name: leaf.shape for name, leaf in flat.items()}
    again = bound.to_ours(bound.to_theirs(flat))
    assert list(again) == list(flat)
    assert all(np.array_equal(again[name], flat[name]) for name in flat)


def test_a_map_may_stack_and_transpose_and_name_what_is_not_always_there():
    layer = "encoder.layers.{i}."
    qkv = [tuple(f"{layer}mha.{kind}{c}" for c in "qkv") for kind in "wb"]
    theirs = PRACTICAL_NAMES.replacing(
        Rule("blocks.{i}.qkv.weight", qkv[0], "qkv-out-in"), Rule("blocks.{i}.qkv.bias", qkv[1])
    )
    flat = CASE.model().to_flat()
    found = theirs.bind(CONFIG).to_theirs(flat)
    weight = found["blocks.1.qkv.weight"]
    assert np.array_equal(weight[6:12], flat["encoder.layers.1.mha.wk"].T)
    assert np.array_equal(found["blocks.0.qkv.bias"][2], flat["encoder.layers.0.mha.bv"])
    assert not any("bias" in name for name in theirs.bind(BARE).their_shapes
                   if "qkv" in name)  # fmt: skip
    with pytest.raises(InvalidParameters, match=r"no parameter .*wx"):
        theirs.replacing(Rule("x", f"{layer}mha.wx")).bind(CONFIG)


def test_an_adapter_of_a_function_in_jax_conforms():
    pytest.importorskip("jax")
    import jax.numpy as jnp

    def linear(config, params, images):
        return jnp.zeros((len(images), config.num_classes), images.dtype) + params["head.bias"]

    adapter = from_jax(linear, name="linear", version="1", spec=NAME)
    one = trial_at(adapter, CASE)
    assert one.found["head.bias"].shape == (4,)
    assert check_vjp(one).status == "failed"
    right = {g.tensor for g in check_vjp(one).grades if g.conforms}
    assert "head.bias" in right
    assert "head.weights" not in right


# ---- a configuration of the user's ---------------------------------------------------------------


def test_a_configuration_of_another_kind_is_refused():
    with pytest.raises(AdapterError, match="VisionTransformerConfig"):
        check(spec(), cases=1, config=ViTConfig())
    with pytest.raises(AdapterError, match="ViTConfig"):
        check(SpecImplementation("vit"), cases=1, config=CONFIG)
    report = check(spec(), cases=2, laws=1, config=CONFIG)
    assert report.conforms
    assert all("image_h=7" in r.point for r in report.results if r.check == "vjp")


# ---- the commands --------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    return lambda *args: CliRunner().invoke(app, [str(a) for a in args])


@pytest.mark.slow
def test_the_command_checks_an_implementation(run, tmp_path):
    adapter = tmp_path / "mine.py"
    adapter.write_text(
        "from vitspec.testing.reference import SpecImplementation\n"
        f"mine = SpecImplementation({NAME!r})\n"
        "from vitspec.testing.catalogue import deviation\n"
        f"wrong = SpecImplementation({NAME!r}, mistakes=[deviation('gelu-tanh')])\n"
    )
    files = {kind: tmp_path / f"report.{kind}" for kind in ("json", "markdown", "html", "junit")}
    options = [part for kind, file in files.items() for part in (f"--{kind}", file)]
    few = ("--cases", 3, "--laws", 0, "--no-photograph")
    result = run("check", f"{adapter}:mine", f"{adapter}:wrong", *few, *options)
    assert result.exit_code == 1, result.output
    right, wrong = json.loads(files["json"].read_text())["implementations"]
    assert right["conforms"]
    assert right["spec"] == wrong["spec"] == NAME
    assert not wrong["conforms"]
    assert [r["reason"] for r in right["results"] if r["place"] == "vectors"] == [
        f"there are no test vectors of {NAME}"
    ]
    assert f"as {NAME}, float32" in files["markdown"].read_text()
    reproduced = next(r["reproduce"] for r in wrong["results"] if r["status"] == "failed")
    assert run(*reproduced.split()[1:]).exit_code == 1


@pytest.mark.slow
def test_a_preset_can_be_checked_by_the_command(run, tmp_path):
    file = tmp_path / "report.json"
    config = "d2l,image_h=32,image_w=48,embed_dim=8,hidden_dim=6,head_count=2,num_layers=1"
    options = ("--cases", 1, "--laws", 0, "--config", config, "--json", file)
    result = run("check", "planted:gelu-exact-for-tanh", *options)
    assert result.exit_code == 1, result.output
    (report,) = json.loads(file.read_text())["implementations"]
    assert any("image_w=48" in r["point"] for r in report["results"])
    assert run("check", "planted:gelu-tanh", "--config", "hf-vit-base,nothing=1").exit_code == 2


def test_planted_mistakes_are_of_the_first_model_that_shows_them():
    assert planted_implementation("layer-norm-shared").spec == "vit"
    assert planted_implementation("gelu-tanh").spec == NAME
    assert planted_implementation("attention-scale-missing").spec == "vit"
    both = planted_implementation("gelu-tanh,attention-scale-missing")
    assert both.spec == NAME
    assert planted_implementation("cubic-a-half").spec == NAME
    with pytest.raises(AdapterError, match="no model shows"):
        planted_implementation("pixel-shuffle-channels-last")
    assert describe(both).spec == NAME


ALIKE = {"layer-norm-eps-1e-12": {"layer-norm-eps-as-floor"}}
"""No telling case has rows of a variance below epsilon."""


def test_no_two_mistakes_look_the_same_to_a_diagnosis():
    """By hand or differentiated: so each is the one that a diagnosis can name."""
    places = [Point.of(case) for case in TELLING_CASES]
    truths = [evaluate_spec(point) for point in places]

    def look(*mistakes):
        """What is wrong with each tensor, relative to its size, unless that is rounding noise."""
        with mistaken(Candidate(mistakes)):
            founds = [evaluate_spec(point) for point in places]
        return np.concatenate([
            (found[name] - right).ravel() / max(np.abs(right).max(), 1e-6)
            for found, truth in zip(founds, truths, strict=True)
            for name, right in truth.items()
        ])  # fmt: skip

    looks = {"nothing": look()} | {name: look(form) for name, form in FORMS}
    names, rows = [*looks], np.array([*looks.values()])
    for i, name in enumerate(names):
        distances = np.abs(rows[i + 1 :] - rows[i]).max(axis=1, initial=0)
        alike = {names[i + 1 + j] for j in np.flatnonzero(~(distances >= 1e-7))} - ALIKE.get(
            name, set()
        )
        assert not alike, f"{name} looks like {alike}"


NAMED = ["gelu-tanh", "block-norm-eps-1e-6", "key-bias-gets-query-gradient", "positions-twice"]


@pytest.mark.parametrize("name", NAMED)
def test_diagnosis_names_a_planted_mistake(name):
    found = diagnose(spec(deviation(name)))
    assert found.name == name or name in found.nearest[0].same, found.verdict


def test_diagnosis_of_what_conforms():
    found = diagnose(spec())
    assert found.conforms
    assert "does anything depart" in found.verdict


def test_block_traces_agree_with_the_models():
    """The kinks are looked for with `block_trace`, on what the model embeds."""
    model = CASE.model()
    x = model.embed(CASE.image())
    for block, layer in zip(model.encoder.layers, model.trace(CASE.image()).layers, strict=True):
        x = block_trace(block, x, Setting()).output
        assert np.array_equal(x, layer.output)


# ---- bench ---------------------------------------------------------------------------------------


def test_the_products_are_those_that_the_specification_multiplies(monkeypatch, run):
    """Forward and backward of a small model, with every matmul of the specification counted."""
    seen = []
    spy = Patch(
        "scalars:matmul", "return np.matmul(a, b)",
        "_seen.append(2 * a.size * (b.shape[-1] if b.ndim > 1 else 1)); return np.matmul(a, b)",
    )  # fmt: skip
    monkeypatch.setattr(scalars, "_seen", seen, raising=False)
    case = VisionTransformerCase(replace(CONFIG, pool="cls_mean"), seed=1)
    model, shapes = case.model(), bench.practical_products(case.config)
    with planted(Variant("spy", "", (spy,))):
        model.forward(case.image())
        assert sum(seen) == bench.flops(shapes)
        seen.clear()
        model.backward(case.image(), case.d_logits())
    # The backward runs the forward once, then two products for each; the head's outer product is
    # no matmul here, but counts as one.
    outer = 2 * CONFIG.num_classes * 2 * CONFIG.embed_dim
    assert sum(seen) == bench.flops(shapes) + bench.flops(bench.adjoint_products(shapes)) - outer
    assert run("bench", "--family", "resnet").exit_code == 2


def test_the_practical_family_is_timed_with_its_own_activation():
    timing = bench.measure("float32", 1, replace(SMALL, activation="quick_gelu"))
    assert "quick_gelu" in timing.parts
    assert {one.name for one in timing.passes} == {"forward", "backward"}
    assert "practical" in bench_tables([timing, timing], "vision-transformer")[0].title
