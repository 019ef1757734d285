"""The tests can fail: every named deviation of the catalogue is seen by a property of the suite.

The properties are the bodies of the tests in `test_three_roads.py` and of the masked-attention test
below, on cases in which nothing is square, nothing divides, and padding, overlap and several heads,
layers and channels are present. What one image or exact arithmetic cannot show has its own tests.
"""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from support import naive, roads
from support.compare import assert_close
from vitspec import InvalidArray, ViTConfig, scalars
from vitspec.layers import activation, normalization
from vitspec.layers.attention import scaled_dot_product_attention
from vitspec.models import transformer
from vitspec.testing import reference
from vitspec.testing.catalogue import (
    CATALOGUE,
    GROUPS,
    KINDS,
    LATER,
    ConflictError,
    Deviation,
    Patch,
    catalogue_markdown,
    deviation,
    planted,
)
from vitspec.testing.families import Case

CONFIG = ViTConfig(
    patch_h=2, patch_w=3, stride=2, padding=1,
    embed_dim=7, hidden_dim=4, head_count=2, num_layers=2, num_classes=3,
)  # fmt: skip
CASES = [Case(spec, CONFIG, 2, 4, 6, seed=7) for spec in ("vit", "vit-cls")]

LEAN = (*CATALOGUE, *LATER)
EXACT = [
    d for d in LEAN
    if d.kind not in ("batch", "accuracy") and not d.function.startswith("testing.")
]  # fmt: skip
BATCH = [d for d in CATALOGUE if d.kind == "batch"]
DIFFERENTIATED = [d for d in EXACT if d.specs and d.derivatives is not None]


def masked_attention_is_the_loops():
    rng = np.random.default_rng(11)
    q, k, v = (rng.standard_normal((n, d)) for n, d in ((4, 3), (5, 3), (5, 2)))
    mask = rng.random((4, 5)) < 0.5
    mask[2], mask[3, 0] = False, True
    truth = np.array(naive.attention(q.tolist(), k.tolist(), v.tolist(), mask))
    assert_close(scaled_dot_product_attention(q, k, v, mask), truth, 1e-14)


def every_property():
    """The properties, cheap ones first, each with the case it runs on."""
    properties = [
        roads.forward_is_the_loops,
        roads.dot_identity,
        roads.jvp_is_the_complex_step,
        roads.backward_along_a_direction_is_the_complex_step,
        roads.backward_is_the_complex_step,
    ]
    yield masked_attention_is_the_loops
    yield from (lambda p=p, c=c: p(c) for p in properties for c in CASES)


def fails(check):
    """Whether a property fails, or the specification refuses an array that the mistake made.

    Any other exception would be a mistake in the catalogue, and passes through.
    """
    try:
        check()
    except (AssertionError, InvalidArray, TypeCheckError):
        return True
    return False


def some_property_fails():
    return any(fails(check) for check in every_property())


def test_the_specification_itself_passes():
    assert not some_property_fails()


@pytest.mark.parametrize("mistake", EXACT, ids=lambda d: d.name)
def test_a_planted_mistake_is_seen(mistake):
    with planted(mistake):
        assert some_property_fails(), f"no property sees that {mistake.description}"


@pytest.mark.parametrize("mistake", EXACT, ids=lambda d: d.name)
def test_a_mistake_shows_in_the_models_that_it_names(mistake):
    """In logits and cotangents of those, if it is visible in a model at all, and of no other."""
    shown = set()
    for case in CASES:
        right = results(case)
        with planted(mistake):
            if not same(results(case), right):
                shown.add(case.spec)
    assert shown == (set(mistake.specs) if mistake.visible_in_model else set())


def results(case):
    """Logits and cotangents, or the refusal of an array."""
    model, image = case.model(), case.image()
    try:
        grads, d_image = model.backward(image, case.d_logits())
        return [model.forward(image), d_image, *grads.to_flat().values()]
    except (InvalidArray, TypeCheckError):
        return []


def same(some, others):
    return len(some) == len(others) and all(map(np.array_equal, some, others))


@pytest.mark.parametrize("mistake", [d for d in EXACT if d.specs], ids=lambda d: d.name)
def test_the_kind_says_what_is_wrong(mistake):
    """Backward and jvp entries leave the logits right; forward ones do not."""
    logits = [case.model().forward(case.image()) for case in CASES]
    with planted(mistake):
        moved = [case.model().forward(case.image()) for case in CASES]
        traced = [case.model().trace(case.image()).logits for case in CASES]
    assert same(moved, logits) == (mistake.kind in ("backward", "jvp"))
    assert same(traced, moved), "the two ways through the encoder disagree"


@pytest.mark.parametrize("mistake", DIFFERENTIATED, ids=lambda d: d.name)
def test_differentiated_mistakes_are_right_derivatives_of_a_wrong_forward(mistake):
    """As in an implementation whose derivatives are automatic."""
    with planted(mistake.differentiated()):
        wrong = [c for c in CASES if fails(lambda c=c: roads.forward_is_the_loops(c))]
        assert {case.spec for case in wrong} == set(mistake.specs)
        for case in wrong:
            roads.dot_identity(case)
            roads.jvp_is_the_complex_step(case)
            roads.backward_along_a_direction_is_the_complex_step(case)


# Where an entry says "Invisible ...": the configuration, the channels, or parameters by ending.
ONE_PATCH = {"patch_h": 4, "patch_w": 6, "padding": 0}
INVISIBLE = {
    "with one head": {"head_count": 1},
    "one token": ONE_PATCH,
    "with one patch": {**ONE_PATCH},
    "without patches": {"patch_h": 5, "padding": 0},
    "without layers": {"num_layers": 0},
    "with one layer": {"num_layers": 1},
    "without padding": {"padding": 0},
    "head_dim is 1": {"head_count": 7},
    "with head_dim 1": {"head_count": 7},
    "the two numbers are alike": {"head_count": 2, "embed_dim": 5},
    "as many columns as there are heads": {"head_count": 2, "embed_dim": 5},
    "embed_dim is 1": {"embed_dim": 1, "head_count": 1},
    "patches of one pixel": {"patch_h": 1, "patch_w": 1},
    "one pixel high or wide": {"patch_h": 1},
    "the stride is at least the patch": {"stride": 3},
    "a grid of one row or column": {"patch_h": 4, "padding": 0},
    "with one channel": {"in_channels": 1},
    "gamma is 1": {"gamma": 1},
    "beta is 0": {"beta": 0},
    "biases are 0": {"b1": 0, "b2": 0, "bias": 0},
    "both pairs are alike": {"gamma": 1, "beta": 0},
}
CLAIMS = [
    (d, phrase)
    for d in EXACT
    if d.visible_in_model
    for phrase in INVISIBLE
    if phrase in d.effect.partition("Invisible ")[2].partition(";")[0]
]


def special_cases(mistake, changes):
    """Cases of its models with a configuration, a number of channels or parameters changed."""
    in_channels = changes.get("in_channels", 2)
    of_config = {n: v for n, v in changes.items() if hasattr(CONFIG, n)}
    for spec in mistake.specs:
        if spec == "vit-cls" and changes is ONE_PATCH:
            of_config |= {"patch_h": 5}  # no patch: the CLS token alone
        yield Case(spec, replace(CONFIG, **of_config), in_channels, 4, 6, seed=7)


@pytest.mark.parametrize(("mistake", "phrase"), CLAIMS, ids=lambda x: getattr(x, "name", x))
def test_it_is_invisible_where_it_says(mistake, phrase):
    changes = INVISIBLE[phrase]
    for case in special_cases(mistake, changes):
        model = case.model()
        flat = {
            name: np.full_like(a, changes.get(name.rpartition("_")[2].rpartition(".")[2], np.nan))
            for name, a in model.to_flat().items()
        }
        flat = {n: np.where(np.isnan(a), model.to_flat()[n], a) for n, a in flat.items()}
        size = {"in_channels": case.in_channels, "height": case.height, "width": case.width}
        model = type(model).from_flat(case.config, flat, **size)

        def found(model=model, case=case):
            grads, d_image = model.backward(case.image(), case.d_logits())
            return [model.forward(case.image()), d_image, *grads.to_flat().values()]

        right = found()
        with planted(mistake):
            wrong = found()
        for one, other in zip(wrong, right, strict=True):
            assert_close(one, other, 1e-12)


EDGES = [
    Case(spec, replace(CONFIG, **changes), 1, 4, 6, seed=3)
    for spec, changes in (
        ("vit-cls", {"patch_h": 20}),  # no patch
        ("vit", {"patch_h": 6, "patch_w": 8}),  # one
        ("vit", {"head_count": 8}),  # heads without width
        ("vit-cls", {"num_layers": 0}),
        ("vit", {"embed_dim": 6, "head_count": 1, "padding": 3}),
        ("vit-cls", {"stride": 5, "hidden_dim": 1, "num_classes": 1}),
    )
]


@pytest.mark.parametrize("mistake", EXACT, ids=lambda d: d.name)
def test_a_mistake_runs_at_the_edges_and_in_float32(mistake):
    """It gives wrong numbers, but does not fail: what a user sees is a difference."""
    for form in {mistake, mistake.differentiated() or mistake}:
        with planted(form):
            for case in EDGES:
                model, image = case.model().astype(np.float32), case.image().astype(np.float32)
                grads, d_image = model.backward(image, case.d_logits().astype(np.float32))
                arrays = [model.forward(image), d_image, *grads.to_flat().values()]
                assert {a.dtype.name for a in arrays} == {"float32"}
                assert all(np.isfinite(a).all() for a in arrays)


def test_the_claims_are_many():
    assert len(CLAIMS) >= 45


def test_most_forward_mistakes_are_differentiated():
    forward = [d for d in CATALOGUE if d.specs and d.kind in ("forward", "both")]
    assert [d.name for d in forward if d.differentiated() is None] == ["softmax-shifted-by-columns"]
    assert not any(d.differentiated() for d in EXACT if d.kind in ("backward", "jvp"))


ALIKE = {"layer-norm-eps-1e-12": {"layer-norm-eps-as-floor"}}
"""Alike wherever the variance of a row is above epsilon."""


def test_no_two_mistakes_look_the_same():
    """Planted alone or differentiated: else no diagnosis could tell them apart.

    In these models the number of heads is not their width, and nothing else coincides.
    """
    config = ViTConfig(
        patch_h=2, patch_w=3, stride=2, padding=1,
        embed_dim=6, hidden_dim=5, head_count=2, num_layers=3, num_classes=3,
    )  # fmt: skip
    points = [batch_of(2, Case(spec, config, 3, 5, 9, seed=1)) for spec in ("vit", "vit-cls")]
    truths = [reference.evaluate_spec(point) for point in points]

    def look():
        """What is wrong with each tensor, relative to its size."""
        founds = [reference.evaluate_spec(point) for point in points]
        errors = [
            (found[name] - right).ravel() / np.abs(right).max()
            for found, truth in zip(founds, truths, strict=True)
            for name, right in truth.items()
        ]
        return np.concatenate(errors)

    forms = {d.name: d for d in LEAN if d.visible_in_model}
    forms |= {
        f"{d.name}, differentiated": d.differentiated() for d in forms.values() if d.derivatives
    }
    looks = {"nothing": look()}
    for name, form in forms.items():
        with planted(form):
            looks[name] = look()
    names, rows = [*looks], np.array([*looks.values()])
    for i, name in enumerate(names):
        distances = np.abs(rows[i + 1 :] - rows[i]).max(axis=1, initial=0)
        alike = {names[i + 1 + j] for j in np.flatnonzero(distances < 1e-7)} - ALIKE.get(
            name, set()
        )
        assert not alike, f"{name} looks like {alike}"


# ---- batches and accuracy ----------------------------------------------------------------------


@pytest.mark.parametrize("mistake", BATCH, ids=lambda d: d.name)
def test_a_batch_shows_it_and_one_image_does_not(mistake):
    for images in (1, 3):
        point = batch_of(images, CASES[0])
        right = reference.evaluate_spec(point)
        with planted(mistake):
            found = reference.evaluate_spec(point)
        wrong = {name for name in right if not np.allclose(found[name], right[name], rtol=1e-12)}
        parameters = right.keys() - {"logits", "image"}
        expected = {
            "batch-loss-averaged": parameters | {"image"},
            "batch-images-gradient-summed": {"image"},
        }.get(mistake.name, parameters)
        assert wrong == (set() if images == 1 else expected)


@pytest.mark.parametrize("mistake", [d for d in LATER if d.function.startswith("testing.")],
                         ids=lambda d: d.name)  # fmt: skip
def test_what_becomes_of_all_gradients_shows_in_them_alone(mistake):
    point = batch_of(3, CASES[1])
    right = reference.evaluate_spec(point)
    with planted(mistake):
        found = reference.evaluate_spec(point)
    wrong = {name for name in right if not np.allclose(found[name], right[name], rtol=1e-12)}
    assert "logits" not in wrong
    alone = {"positions": {"pos_enc.pos"}, "cls": {"cls_token"}}.get(mistake.name.split("-")[0])
    assert wrong == alone if alone else len(wrong) > 10


def batch_of(images, case):
    rng = np.random.default_rng(3)
    return reference.Point(
        spec=case.spec,
        config=case.config,
        params=case.model().to_flat(),
        images=rng.standard_normal((images, *case.image().shape)),
        cotangent=rng.standard_normal((images, case.config.num_classes)),
    )


def test_the_fast_variance_is_right_but_inaccurate():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 64))
    gamma, beta = rng.standard_normal((2, 64))

    def error(offset, dtype):
        arguments = [a.astype(dtype) for a in (x + offset, gamma, beta)]
        truth = normalization.layer_norm(*(a.astype(np.float64) for a in arguments))
        with planted(deviation("layer-norm-fast-variance")):
            found = normalization.layer_norm(*arguments)
        return np.abs(found - truth).max() / np.abs(truth).max()

    assert error(0, np.float64) < 1e-14
    assert error(0, np.float32) < 1e-6
    assert error(1000, np.float32) > 1e-3


def test_the_unshifted_softmax_is_right_until_it_overflows():
    x = np.random.default_rng(0).standard_normal((4, 5))
    truth, large = activation.softmax(x), (x + 100).astype(np.float32)
    assert np.isfinite(activation.softmax(large)).all()
    with planted(deviation("softmax-not-shifted")):
        assert_close(activation.softmax(x), truth, 1e-15)
        with np.errstate(all="ignore"):
            assert not np.isfinite(activation.softmax(large)).all()


@pytest.mark.parametrize("mistake", [d for d in CATALOGUE if d.kind == "accuracy"],
                         ids=lambda d: d.name)  # fmt: skip
def test_accuracy_alone_fails_no_property(mistake):
    with planted(mistake):
        for case in CASES:
            roads.forward_is_the_loops(case)
            roads.jvp_is_the_complex_step(case)
            roads.backward_along_a_direction_is_the_complex_step(case)


# ---- the entries -------------------------------------------------------------------------------


def test_every_entry_is_complete():
    assert len({d.name for d in CATALOGUE}) == len(CATALOGUE) >= 100
    assert sum(len(group) for group in GROUPS.values()) == len(CATALOGUE)
    for d in LEAN:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", d.name)
        assert d.kind in KINDS
        assert set(d.specs) <= {"vit", "vit-cls"}
        assert d.old != d.new
        assert d.description
        assert not d.description.endswith(".")
        assert d.effect.endswith((".", ")"))
        assert d.seen
        assert all(d.seen)


def test_no_two_entries_are_the_same():
    assert len({d.patches for d in LEAN}) == len(LEAN)


def test_few_entries_were_not_seen():
    unseen = [d.name for d in CATALOGUE if d.seen[0].startswith("not seen in public")]
    assert len(unseen) <= len(CATALOGUE) / 8, unseen
    assert all("; included " in deviation(name).seen[0] for name in unseen)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(KeyError, match="attention-scale-missing"):
        deviation("nope")


# ---- planting ----------------------------------------------------------------------------------


def logits():
    return CASES[0].model().forward(CASES[0].image())


def test_a_planted_mistake_is_gone_afterwards():
    before = logits()
    with planted(deviation("layer-norm-eps-1e-5")):
        assert not np.array_equal(logits(), before)
    assert np.array_equal(logits(), before)


def test_a_planted_mistake_is_gone_after_an_exception():
    before = logits()
    with pytest.raises(ZeroDivisionError), planted(deviation("layer-norm-eps-1e-5")):
        raise ZeroDivisionError
    assert np.array_equal(logits(), before)


def test_several_mistakes_at_once_are_the_same_as_nested_ones():
    pairs = [
        ("layer-norm-eps-1e-5", "attention-scale-missing"),  # two modules
        ("attention-residual-missing", "layer-norm-shared"),  # one function
        ("mean-pool-sums", "layer-norm-over-tokens"),  # a function and its callee
    ]
    alone = {}
    for name in {name for pair in pairs for name in pair}:
        with planted(deviation(name)):
            alone[name] = logits()
    before = logits()
    for first, second in pairs:
        with planted(deviation(first), deviation(second)):
            together = logits()
        with planted(deviation(first)):
            with planted(deviation(second)):
                assert np.array_equal(logits(), together)
            assert np.array_equal(logits(), alone[first])
        assert np.array_equal(logits(), before)
        assert not np.array_equal(together, alone[first])
        assert not np.array_equal(together, alone[second])


def test_a_planted_function_calls_the_planted_ones():
    """`encoder_layer_trace` has `layer_norm` by name; both are replaced."""
    outer, inner = deviation("attention-residual-missing"), deviation("layer-norm-without-shift")
    for order in ((outer, inner), (inner, outer)):
        with planted(order[0]), planted(order[1]):
            nested = logits()
        with planted(*order):
            assert np.array_equal(logits(), nested)


def test_mistakes_in_the_same_text_conflict():
    before = logits()
    first, second = deviation("layer-norm-eps-1e-5"), deviation("layer-norm-eps-1e-12")
    message = f"{second.name} cannot be planted together with {first.name}"
    with pytest.raises(ConflictError, match=message), planted(first, second):
        pass
    with planted(first):
        wrong = logits()
        with pytest.raises(ConflictError), planted(second):
            pass
        assert np.array_equal(logits(), wrong)
    assert np.array_equal(logits(), before)


def test_a_conflict_plants_nothing():
    """Also where the deviation has other patches that do not conflict."""
    before = logits()
    first, second = deviation("last-norm-missing"), deviation("last-layer-skipped")
    with pytest.raises(ConflictError), planted(first, second):
        pass
    assert np.array_equal(logits(), before)


def test_a_stale_patch_is_refused():
    stale = Deviation("stale", "both", "layers.linear:linear", "not in the source", "", "")
    with pytest.raises(LookupError, match="out of date"), planted(stale):
        pass
    second = Patch("layers.linear:linear_jvp", "not in the source", "")
    also = Deviation("half", "both", "layers.linear:linear", "spec.bias", "0", "", also=(second,))
    with pytest.raises(LookupError, match="out of date"), planted(also):
        pass


def test_planting_goes_wherever_the_function_is_held():
    """`scalars.matmul` is held by many modules."""
    holders = [activation.softmax, scalars.matmul]
    spy = Deviation("spy", "both", "scalars:matmul", "np.matmul(a, b)", "2 * np.matmul(a, b)", "")
    a = np.eye(2)
    before = scaled_dot_product_attention(a, a, a)
    with planted(spy):
        assert np.array_equal(scalars.matmul(a, a), 2 * a)
        assert not np.array_equal(scaled_dot_product_attention(a, a, a), before)
    assert np.array_equal(scaled_dot_product_attention(a, a, a), before)
    assert holders == [activation.softmax, scalars.matmul]


def test_a_mistake_is_compiled_once():
    """Diagnosis plants each many times; finding and compiling the source is what costs."""
    mistake = deviation("pre-norm")
    planted_functions = []
    for _ in range(3):
        with planted(mistake):
            planted_functions.append(transformer.encoder_layer_trace)
    assert planted_functions[0] is planted_functions[1] is planted_functions[2]
    assert planted_functions[0] is not transformer.encoder_layer_trace


# ---- the page ----------------------------------------------------------------------------------


def test_the_page_is_up_to_date():
    page = Path(__file__).parents[2] / "docs" / "catalogue.md"
    assert page.read_text("utf-8") == catalogue_markdown(), (
        "run: vitspec catalogue --markdown > docs/catalogue.md"
    )


def test_the_page_names_everything():
    page = catalogue_markdown()
    for d in CATALOGUE:
        assert f"### {d.name}\n" in page
        assert f"@@ {d.function} @@" in page
