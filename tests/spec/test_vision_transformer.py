"""The practical family: three roads on every option, an independent forward, and all worlds.

`OPTIONS` has each option once, by name; `examples()` draws them all together.
"""

import numpy as np
import pytest
from hypothesis import given, settings

from support import naive_practical, practical
from support.compare import assert_close
from support.practical import EVERYTHING, OPTIONS, examples
from vitspec import distance_bound, from_reals, radius, scalars
from vitspec.models.dropout import draw
from vitspec.models.vision_transformer import Conditions
from vitspec.vision_transformer_config import DropoutRates

OPTION = pytest.mark.parametrize("example", OPTIONS.values(), ids=OPTIONS)


# ---- the forward ---------------------------------------------------------------------------------


def the_forward_is_the_loops(example):
    found = practical.named(example.model().forward(example.image(), example.conditions()))
    truth = naive_practical.forward(example)
    assert found.keys() == truth.keys()
    for name, value in found.items():
        assert_close(value, np.array(truth[name]), 1e-12, name)


@OPTION
def test_forward_equals_an_independent_forward_by_plain_loops(example):
    the_forward_is_the_loops(example)


@given(examples())
@settings(max_examples=60)
def test_forward_equals_plain_loops_whatever_the_options(example):
    the_forward_is_the_loops(example)


@OPTION
def test_the_trace_has_what_the_forward_computes(example):
    model, image, conditions = example.model(), example.image(), example.conditions()
    trace = model.trace(image, conditions)
    for name, value in practical.named(model.forward(image, conditions)).items():
        np.testing.assert_array_equal(getattr(trace.outputs, name), value)
    n, L = example.rows, example.config.num_layers
    assert [h.shape for h in trace.hidden_states] == [(n, example.config.embed_dim)] * (L + 1)
    assert [a.shape for a in trace.attentions] == [(example.config.head_count, n, n)] * L
    grads, d_image = model.backward(image, conditions=conditions, trace=trace)
    assert not any(leaf.any() for leaf in [*grads.to_flat().values(), d_image])


def test_hidden_states_are_before_the_final_norm_and_attentions_before_any_factor():
    example = OPTIONS["factors head_mask"]
    model, image = example.model(), example.image()
    trace = model.trace(image, example.conditions())
    np.testing.assert_array_equal(trace.hidden_states[-1], trace.layers[-1].output)
    assert not np.allclose(trace.hidden_states[-1], trace.last_hidden_state)
    for weights in trace.attentions:
        np.testing.assert_allclose(weights.sum(axis=-1), 1)


def test_a_blocked_row_attends_to_nothing_and_blocked_weights_are_zero():
    example = OPTIONS["blocked rows"]
    conditions = example.conditions()
    mask = conditions.attention_mask
    assert not mask.any(axis=1).all()
    for weights in example.model().trace(example.image(), conditions).attentions:
        assert not weights[:, ~mask].any()
        np.testing.assert_allclose(weights.sum(axis=-1), [mask.any(axis=1)] * len(weights))


# ---- three roads ---------------------------------------------------------------------------------


@OPTION
def test_backward_jvp_and_complex_step_agree(example):
    practical.roads_agree(example)


@given(examples())
@settings(max_examples=60)
def test_backward_jvp_and_complex_step_agree_whatever_the_options(example):
    practical.roads_agree(example)


@pytest.mark.parametrize("name", ["everything", "decoder without CLS token", "pooler"])
def test_entries_of_the_backward_are_the_complex_step(name):
    practical.backward_is_the_complex_step(OPTIONS[name])


@given(examples(max_layers=1))
@settings(max_examples=4)
def test_entries_of_the_backward_whatever_the_options(example):
    practical.backward_is_the_complex_step(example)


def test_the_options_have_every_field_of_the_configuration():
    """So that a new option cannot be forgotten here."""
    for name in practical.option_fields():
        assert len({getattr(one.config, name) for one in OPTIONS.values()}) > 1, name
    kinds = {kind for one in OPTIONS.values() for kind in (*one.masks, *one.factors)}
    assert kinds == {*practical.MASKS, *practical.FACTORS}


def test_each_cotangent_alone_is_its_part_of_all():
    """None is 0: the backward is linear in the cotangents."""
    model, image, conditions = EVERYTHING.model(), EVERYTHING.image(), EVERYTHING.conditions()
    parts = [
        model.backward(image, **{f"d_{name}": value}, conditions=conditions)
        for name, value in EVERYTHING.cotangents().items()
    ]
    whole, d_image = practical.backward(EVERYTHING)
    for name, value in whole.to_flat().items():
        if not name.endswith(".bk"):  # which is 0, but for rounding
            assert_close(sum(grads.to_flat()[name] for grads, _ in parts), value, 1e-12, name)
    assert_close(sum(one for _, one in parts), d_image, 1e-12, "d_image")


# ---- worlds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.longdouble])
@given(example=examples())
@settings(max_examples=10)
def test_every_result_has_the_dtype_of_the_model(dtype, example):
    exact = practical.everything_in(example, practical.floats(np.float64))
    found = practical.everything_in(example, practical.floats(dtype))
    assert {value.dtype for value in found.values()} == {np.dtype(dtype)}
    assert {n: v.shape for n, v in found.items()} == {n: v.shape for n, v in exact.items()}


def the_floats_are_near_the_reals(example, tolerance, dtype):
    """Against enclosures of the true values; a group of tensors by its largest entry."""
    balls = practical.everything_in(example, practical.balls)
    values = practical.everything_in(example, practical.floats(dtype))
    largest = {}
    for name, ball in balls.items():
        group = name.split(" of ")[0]
        size = float(np.abs(from_reals(ball)).max(initial=0.0))
        largest[group] = max(largest.get(group, 0.0), size)
    for name, ball in balls.items():
        size = largest[name.split(" of ")[0]]
        assert scalars.all_finite(ball)
        assert radius(ball).max(initial=0.0) <= 1e-20 * size, name
        assert distance_bound(ball, values[name]).max(initial=0.0) <= tolerance * size, name


@pytest.mark.parametrize("name", ["everything", "activation gelu_tanh", "activation quick_gelu"])
def test_balls_enclose_what_floats_compute(name):
    pytest.importorskip("flint", reason="real balls need the extra 'reals'")
    the_floats_are_near_the_reals(OPTIONS[name], 1e-14, np.float64)
    the_floats_are_near_the_reals(OPTIONS[name], 100 * np.finfo(np.longdouble).eps, np.longdouble)


@given(examples(max_layers=1))
@settings(max_examples=6)
def test_balls_enclose_what_floats_compute_whatever_the_options(example):
    """Ten times more is allowed: a norm of three features may lose a digit."""
    pytest.importorskip("flint", reason="real balls need the extra 'reals'")
    the_floats_are_near_the_reals(example, 1e-13, np.float64)


# ---- laws ----------------------------------------------------------------------------------------


def test_pixels_that_fill_no_patch_are_not_read_and_have_no_gradient():
    example = OPTIONS["defaults"]
    image, c = example.image(), example.config
    rows, columns = c.grid[0] * c.patch_h, c.grid[1] * c.patch_w
    assert (rows, columns) < image.shape[1:]
    changed = image.copy()
    changed[:, rows:] += 1
    changed[:, :, columns:] += 1
    model = example.model()
    np.testing.assert_array_equal(model.forward(changed).logits, model.forward(image).logits)
    _, d_image = model.backward(image, example.rng(9).standard_normal(4))
    assert d_image[:, :rows, :columns].all()
    assert not d_image[:, rows:].any()
    assert not d_image[:, :, columns:].any()


def test_masked_patches_have_no_gradient_and_unmasked_ones_none_of_the_mask_token():
    example = OPTIONS["masked patches"]
    conditions, c = example.conditions(), example.config
    masked = conditions.masked_patches
    assert 0 < masked.sum() < masked.size
    grads, d_image = practical.backward(example)
    assert grads.d_mask_token.any()
    for t, hidden in enumerate(masked):
        i, j = divmod(t, c.grid[1])
        patch = d_image[:, i * c.patch_h :, j * c.patch_w :][:, : c.patch_h, : c.patch_w]
        assert patch.any() == (not hidden)
    grads, _ = example.model().backward(example.image(), example.rng(9).standard_normal(4))
    assert not grads.d_mask_token.any()


def test_factors_of_one_are_no_factors():
    example = OPTIONS["factors hidden"]
    model, image = example.model(), example.image()
    ones = practical.in_world(example.conditions(), np.ones_like)
    np.testing.assert_array_equal(model.forward(image, ones).logits, model.forward(image).logits)


# ---- dropout -------------------------------------------------------------------------------------

RATES = DropoutRates(
    embedding=0.1, attention=0.2, projection=0.3, activation=0.4, output=0.5, stochastic_depth=0.6
)


def test_drawn_factors_are_zero_or_one_over_the_rest_as_often_as_the_rate_says():
    config = practical.small(
        image_h=30, image_w=40, embed_dim=24, hidden_dim=36, num_layers=3, dropout=RATES
    )
    drawn = draw(config, np.random.default_rng(0), np.dtype(np.float64))
    first = drawn.block_factors[0]  # stochastic depth leaves it alone
    for factors, rate in (
        (drawn.embedding_factors, 0.1),
        (first.attention_weights, 0.2),
        (first.attention, 0.3),
        (first.hidden, 0.4),
        (first.mlp, 0.5),
    ):
        kept = factors != 0
        np.testing.assert_allclose(factors[kept], 1 / (1 - rate))
        spread = 4 * np.sqrt(rate * (1 - rate) / factors.size)
        assert abs((1 - kept.mean()) - rate) < spread


def test_stochastic_depth_grows_from_nothing_to_its_rate():
    config = practical.small(num_layers=4, dropout=DropoutRates(stochastic_depth=0.6))
    rng = np.random.default_rng(0)
    draws = [draw(config, rng, np.dtype(np.float64)).block_factors for _ in range(2000)]
    for i, rate in enumerate((0.0, 0.2, 0.4, 0.6)):
        if rate == 0:
            assert all(one[i].attention is None and one[i].mlp is None for one in draws)
            continue
        for name in ("attention", "mlp"):
            branch = np.array([getattr(one[i], name) for one in draws])
            assert branch.shape[1:] == (1, 1)
            assert abs((branch == 0).mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / 2000)
            np.testing.assert_allclose(branch.max(), 1 / (1 - rate))
    both = [one[3].attention.item() == one[3].mlp.item() for one in draws]
    assert 0.3 < np.mean(both) < 0.7  # the branches fall one without the other


def test_a_drawn_forward_is_a_function_like_any_other():
    config = practical.small(dropout=RATES, mask_token=True)
    example = practical.Example(config)
    masks = Conditions(masked_patches=np.arange(config.token_count - 1) % 2 == 0)
    drawn = draw(config, np.random.default_rng(1), np.dtype(np.float64), masks)
    again = draw(config, np.random.default_rng(1), np.dtype(np.float64), masks)
    assert drawn.masked_patches is masks.masked_patches
    model, image = example.model(), example.image()
    logits = model.forward(image, drawn).logits
    np.testing.assert_array_equal(logits, model.forward(image, again).logits)
    assert not np.allclose(logits, model.forward(image, masks).logits)


def test_no_rate_draws_no_factor():
    drawn = draw(practical.small(), np.random.default_rng(0), np.dtype(np.float32))
    assert drawn.embedding_factors is None
    assert all(one.to_flat() == {} for one in drawn.block_factors)
