"""The ledger of docs/deviations.md, entry by entry: each test shows what the page says.

The judge of a derivative is the complex step. Lean was not run: `vitspec.upstream.forms` was
written from its text, so these tests hold the page to that module, and the module to itself. The
page's tables come from `vitspec.upstream.figures`.
"""

import doctest
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.compare import assert_close, relative_error
from vitspec import ViTClsSpec, ViTConfig, ViTSpec, complex_step_derivative
from vitspec.geometry import sliding_window_out_dim
from vitspec.layers.activation import hard_masked_softmax
from vitspec.layers.attention import attention_scale_denom, causal_mask
from vitspec.layers.conv2d import Conv2DSpec, conv2d
from vitspec.layers.feed_forward import FeedForward, feed_forward
from vitspec.layers.multi_head_attention import (
    combine_heads,
    multi_head_attention,
    multi_head_attention_backward,
    multi_head_attention_jvp,
    split_heads,
)
from vitspec.layers.normalization import layer_norm
from vitspec.models.transformer import encoder, encoder_backward, encoder_layer
from vitspec.testing.strategies import seeds
from vitspec.upstream import figures
from vitspec.upstream import forms as upstream

PAGE = (Path(__file__).parents[2] / "docs" / "deviations.md").read_text(encoding="utf-8")

# tokens, heads, head_dim, D: several heads and tokens; D is I, more than I, less than I
MIXING = [(2, 2, 1, 2), (2, 2, 2, 4), (3, 2, 2, 4), (4, 4, 1, 4), (5, 2, 3, 7), (3, 3, 2, 5)]
# one head, or one token
HARMLESS = [(1, 2, 2, 4), (3, 1, 4, 4), (1, 3, 2, 7), (4, 1, 3, 5)]


def attention_case(shape, seed):
    """Attention weights, tokens and a cotangent, all normal."""
    n, head_count, head_dim, embed_dim = shape
    rng = np.random.default_rng([seed, *shape])
    mha = figures.random_attention(head_count, head_dim, embed_dim, rng)
    return mha, *rng.standard_normal((2, n, embed_dim))


def flat(result):
    grads, d_x = result
    return {"x": d_x, **grads.to_flat()}


def layers_case(num_layers, seed):
    """An encoder, tokens and a cotangent."""
    config = ViTConfig(
        patch_h=2, patch_w=2, stride=2, embed_dim=6, hidden_dim=7, head_count=2,
        num_layers=num_layers, num_classes=3,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    model = ViTSpec.init(config, in_channels=1, height=4, width=4, rng=rng)
    return model.encoder, *rng.standard_normal((2, 4, 6))


def same(a, b):
    left, right = a.to_flat(), b.to_flat()
    return all(np.array_equal(left[name], right[name]) for name in left)


# ---- DEV-1 (a): the order of the encoder's gradients ---------------------------------------------


@pytest.mark.parametrize("num_layers", range(5))
def test_a_published_list_is_last_layer_first(num_layers):
    spec, x, d_out = layers_case(num_layers, seed=1)
    ours, d_x = encoder_backward(spec, x, d_out)
    published, published_d_x = upstream.literal_encoder_backward(spec, x, d_out)
    assert np.array_equal(d_x, published_d_x)
    assert all(same(a, b) for a, b in zip(published, reversed(ours), strict=True))
    in_layer_order = all(same(a, b) for a, b in zip(published, ours, strict=True))
    assert in_layer_order == (num_layers < 2)


@pytest.mark.parametrize("num_layers", [2, 3])
def test_a_layer_order_is_the_derivative_and_the_published_order_is_not(num_layers):
    spec, x, d_out = layers_case(num_layers, seed=2)
    ours, _ = encoder_backward(spec, x, d_out)
    published, _ = upstream.literal_encoder_backward(spec, x, d_out)
    rng = np.random.default_rng(3)
    for i in range(num_layers):
        still = spec.map(np.zeros_like)
        moved = spec.layers[i].map(lambda leaf: rng.standard_normal(leaf.shape))
        direction = replace(still, layers=(*still.layers[:i], moved, *still.layers[i + 1 :]))
        truth = np.sum(
            d_out
            * complex_step_derivative(lambda s: encoder(s, x.astype(complex)), spec, direction)
        )

        def along(grads, tangent=moved):
            pairs = zip(grads.to_flat().values(), tangent.to_flat().values(), strict=True)
            return sum(np.sum(g * v) for g, v in pairs)

        assert_close(along(ours[i]), truth, 1e-12, f"layer {i}")
        middle = i == num_layers - 1 - i
        assert (relative_error(along(published[i]), truth) > 1e-2) == (not middle)


def test_a_training_with_the_published_order_moves_a_layer_by_another_ones_gradient():
    config = ViTConfig(
        patch_h=2, patch_w=2, stride=2, embed_dim=6, hidden_dim=8, head_count=2, num_layers=3,
        num_classes=3,
    )  # fmt: skip
    rng = np.random.default_rng(4)
    model = ViTSpec.init(config, in_channels=3, height=4, width=6, rng=rng)
    image, d_logits = rng.standard_normal((3, 4, 6)), rng.standard_normal(3)
    grads, _ = model.backward(image, d_logits)
    published, _ = upstream.literal_encoder_backward(
        model.encoder,
        model.trace(image).embedded,
        np.tile(model.head.weights.T @ d_logits / 6, (6, 1)),
    )
    for i, layer in enumerate(model.encoder.layers):
        # Every shape fits, so nothing refuses the step of layer i with the entry i of the list.
        steps, wanted = published[i].to_flat(), grads.d_encoder[2 - i].to_flat()
        for name, leaf in layer.to_flat().items():
            assert_close((leaf - steps[name]) - leaf, -wanted[name], 1e-12, f"{i}.{name}")
    images, targets = [*rng.standard_normal((2, 3, 4, 6))], [*rng.standard_normal((2, 3))]
    start, right = figures.descend(model, images, targets, 15, literal=False)
    _, wrong = figures.descend(model, images, targets, 15, literal=True)
    assert right < start
    assert wrong > 2 * right


# ---- DEV-2 (b): the first release's multi-head backward ------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", MIXING)
def test_b_published_backward_is_not_the_derivative_of_its_forward(shape, seed):
    mha, x, d_out = attention_case(shape, seed)
    truth = figures.attention_truth(upstream.first_release_multi_head_attention, mha, x, d_out)
    published = flat(upstream.first_release_multi_head_attention_backward(mha, x, d_out))
    for name in ("x", "wq", "wk", "wv"):
        assert relative_error(published[name], truth[name]) > 1e-2, name
    assert_close(published["wo"], truth["wo"], 1e-12, "wo")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", HARMLESS)
def test_b_published_backward_is_right_for_one_head_or_one_token(shape, seed):
    mha, x, d_out = attention_case(shape, seed)
    truth = figures.attention_truth(upstream.first_release_multi_head_attention, mha, x, d_out)
    published = flat(upstream.first_release_multi_head_attention_backward(mha, x, d_out))
    for name, gradient in truth.items():
        assert_close(published[name], gradient, 1e-12, name)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", MIXING + HARMLESS)
def test_b_true_adjoints_would_have_been_right(shape, masked):
    mha, x, d_out = attention_case(shape, seed=5)
    mask = causal_mask(shape[0]) if masked else None
    truth = figures.attention_truth(
        upstream.first_release_multi_head_attention, mha, x, d_out, mask
    )
    true = flat(upstream.first_release_multi_head_attention_true_backward(mha, x, d_out, mask))
    for name, gradient in truth.items():
        assert_close(true[name], gradient, 1e-12, name)


@given(seed=seeds, shape=st.tuples(*[st.integers(1, 4)] * 4))
def test_b_split_and_combine_are_inverse_for_one_head_or_one_token_only(seed, shape):
    n, head_count, head_dim, _ = shape
    x = np.random.default_rng(seed).standard_normal((n, head_count * head_dim))
    early = upstream.first_release_split_heads(x, head_count)
    assert np.array_equal(upstream.first_release_split_heads_backward(early), x)
    assert np.array_equal(combine_heads(split_heads(x, head_count)), x)
    harmless = head_count == 1 or n == 1
    assert np.array_equal(combine_heads(early), x) == harmless
    assert np.array_equal(early, split_heads(x, head_count)) == harmless


@pytest.mark.parametrize("shape", MIXING)
def test_b_published_jvp_is_right_and_does_not_match_the_published_backward(shape):
    mha, x, d_out = attention_case(shape, seed=6)
    tangent, dx, _ = attention_case(shape, seed=7)
    jvp = upstream.first_release_multi_head_attention_jvp(mha, x, tangent, dx)
    along_weights = complex_step_derivative(
        lambda m: upstream.first_release_multi_head_attention(m, x.astype(complex)), mha, tangent
    )
    along_x = complex_step_derivative(
        lambda z: upstream.first_release_multi_head_attention(mha.astype(complex), z), x, dx
    )
    assert_close(jvp, along_weights + along_x, 1e-12)
    published = flat(upstream.first_release_multi_head_attention_backward(mha, x, d_out))
    directions = {"x": dx, **tangent.to_flat()}
    by_backward = sum(np.sum(directions[name] * published[name]) for name in directions)
    assert relative_error(by_backward, np.sum(jvp * d_out)) > 1e-2


@pytest.mark.parametrize("shape", MIXING + HARMLESS)
def test_b_one_exchange_in_the_specification_gives_the_whole_first_release(shape):
    mha, x, d_out = attention_case(shape, seed=8)
    tangent, dx, _ = attention_case(shape, seed=9)
    explicit = flat(upstream.first_release_multi_head_attention_backward(mha, x, d_out))
    with upstream.first_release_heads():
        forward = multi_head_attention(mha, x)
        backward = flat(multi_head_attention_backward(mha, x, d_out))
        jvp = multi_head_attention_jvp(mha, x, tangent, dx)
    assert_close(forward, upstream.first_release_multi_head_attention(mha, x), 1e-14)
    for name, gradient in explicit.items():
        assert_close(backward[name], gradient, 1e-12, name)
    assert_close(jvp, upstream.first_release_multi_head_attention_jvp(mha, x, tangent, dx), 1e-13)
    # And the specification is itself again.
    assert_close(
        combine_heads(split_heads(x @ mha.wq, mha.head_count)), x @ mha.wq, 0, "after the exchange"
    )


ATTENTION = {f"encoder.layers.0.mha.{name}" for name in ("wq", "wk", "wv")}
BELOW = {"patch_embed.kernel", "patch_embed.bias", "pos_enc.pos", "image"}


@pytest.mark.parametrize("spec", [ViTSpec, ViTClsSpec])
def test_b_whole_model_wrong_leaves_are_the_projections_and_all_below(spec):
    errors = figures.leaf_errors(spec, head_count=2)
    wrong = {name for name, error in errors.items() if error > 1e-2}
    assert wrong == ATTENTION | BELOW | ({"cls_token"} if spec is ViTClsSpec else set())
    assert all(error <= 1e-12 for name, error in errors.items() if name not in wrong)


def test_b_whole_model_of_one_head_is_right():
    assert max(figures.leaf_errors(ViTClsSpec, head_count=1).values()) <= 1e-12


def test_b_whole_model_of_two_layers_is_wrong_in_all_of_the_lower_one():
    errors = figures.leaf_errors(ViTSpec, head_count=2, num_layers=2)
    wrong = {name for name, error in errors.items() if error > 1e-2}
    lower = {name for name in errors if name.startswith("encoder.layers.0.")}
    upper = {f"encoder.layers.1.mha.{name}" for name in ("wq", "wk", "wv")}
    assert wrong == lower | upper | BELOW


def test_b_upstreams_cpu_and_cuda_comparison_could_not_see_it():
    mha, x, d_out, mask = figures.upstream_attention_test()
    assert not np.allclose(mha.wq, mha.wk)
    cpu = flat(upstream.first_release_multi_head_attention_backward(mha, x, d_out, mask))
    cuda = flat(multi_head_attention_backward(mha, x, d_out, mask))
    assert relative_error(cpu["wo"], cuda["wo"]) > 0.1
    for name, gradient in cuda.items():
        assert np.abs(cpu[name] - gradient).max() < 2e-2, name
    # Its inputs make both score gradients vanish, in the first release and today.
    for name in ("wq", "wk"):
        assert np.abs(cuda[name]).max() < 1e-15
        assert np.abs(cpu[name]).max() < 1e-15


# ---- DEV-3 (c): the first release's heads mix tokens ---------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", MIXING + HARMLESS)
def test_c_permuted_tokens_give_permuted_attention(shape, seed):
    mha, x, _ = attention_case(shape, seed)
    order = np.roll(np.arange(shape[0]), 1)
    early = upstream.first_release_multi_head_attention
    wanted = multi_head_attention(mha, x)[order]
    assert_close(multi_head_attention(mha, x[order]), wanted, 1e-13)
    change = relative_error(early(mha, x[order]), early(mha, x)[order])
    assert change > 1e-2 if shape in MIXING else change <= 1e-13


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", MIXING + HARMLESS[1::2])
def test_c_causal_mask_hides_the_future(shape, seed):
    mha, x, other = attention_case(shape, seed)
    mask = causal_mask(shape[0])
    for i in range(shape[0] - 1):
        changed = np.concatenate([x[: i + 1], other[i + 1 :]])
        ours = [multi_head_attention(mha, z, mask)[: i + 1] for z in (x, changed)]
        assert np.array_equal(*ours)
        early = [
            upstream.first_release_multi_head_attention(mha, z, mask)[: i + 1] for z in (x, changed)
        ]
        assert np.array_equal(*early) == (shape not in MIXING)


# ---- DEV-4 (d): the graph of the proofs ----------------------------------------------------------


@pytest.mark.parametrize("shape", MIXING)
def test_d_proved_attention_is_not_todays(shape):
    mha, x, d_out = attention_case(shape, seed=10)
    proved = upstream.proved_multi_head_attention(mha, x)
    assert relative_error(proved, multi_head_attention(mha, x)) > 1e-2
    # It has a right VJP, as the theorem says: the true adjoints'.
    truth = figures.attention_truth(upstream.proved_multi_head_attention, mha, x, d_out)
    vjp = flat(upstream.proved_multi_head_attention_backward(mha, x, d_out))
    for name, gradient in truth.items():
        assert_close(vjp[name], gradient, 1e-12, name)


@pytest.mark.parametrize("shape", HARMLESS)
def test_d_proved_attention_is_todays_for_one_head_or_one_token(shape):
    mha, x, _ = attention_case(shape, seed=11)
    proved = upstream.proved_multi_head_attention(mha, x)
    assert_close(proved, multi_head_attention(mha, x), 1e-14)


def test_d_proved_feed_forward_is_gelu_not_relu():
    rng = np.random.default_rng(12)
    eye, zero = np.eye(200), np.zeros(200)
    # Between two identities the network is its activation.
    ffn = FeedForward(w1=eye, w2=eye, b1=zero, b2=zero)
    z = 2 * rng.standard_normal((1, 200))
    proved = upstream.proved_feed_forward(ffn, z)
    erf = np.vectorize(math.erf)
    exact_gelu = z * (1 + erf(z / np.sqrt(2))) / 2
    assert np.abs(proved - exact_gelu).max() < 1e-3
    assert np.abs(proved - feed_forward(ffn, z)).max() > 0.1
    ffn = FeedForward(
        w1=rng.standard_normal((3, 5)), w2=rng.standard_normal((5, 3)),
        b1=rng.standard_normal(5), b2=rng.standard_normal(3),
    )  # fmt: skip
    x = rng.standard_normal((4, 3))
    assert relative_error(upstream.proved_feed_forward(ffn, x), feed_forward(ffn, x)) > 1e-3


# ---- DEV-5 (e): weights that travel to PyTorch and back ------------------------------------------


def one_layer(embed_dim, hidden_dim, seed):
    config = ViTConfig(
        patch_h=1, patch_w=1, stride=1, embed_dim=embed_dim, hidden_dim=hidden_dim, head_count=2,
        num_layers=1, num_classes=1,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    model = ViTSpec.init(config, in_channels=1, height=1, width=1, rng=rng)
    return model.encoder.layers[0], rng.standard_normal((5, embed_dim))


@pytest.mark.parametrize("seed", range(3))
def test_e_square_matrices_load_silently_transposed(seed):
    layer, x = one_layer(6, 6, seed)
    imported = upstream.literal_import(upstream.pytorch_state(layer), like=layer)
    given_flat, got = layer.to_flat(), imported.to_flat()
    for name, leaf in given_flat.items():
        assert np.array_equal(got[name], leaf.T), name  # a vector is its own transpose
        assert np.array_equal(got[name], leaf) == (leaf.ndim == 1)
    assert relative_error(encoder_layer(imported, x), encoder_layer(layer, x)) > 1e-2
    # Read with the transposition, the layer comes back.
    turned = {name: leaf.T for name, leaf in upstream.pytorch_state(layer).items()}
    restored = upstream.literal_import(turned, like=layer)
    assert same(restored, layer)


@pytest.mark.parametrize("hidden_dim", [5, 7])
def test_e_other_widths_are_refused(hidden_dim):
    layer, _ = one_layer(6, hidden_dim, seed=13)
    state = upstream.pytorch_state(layer)
    assert upstream.literal_import(state, like=layer) is None
    assert upstream.literal_import({}, like=layer) is None


# ---- DEV-6: the patch grid -----------------------------------------------------------------------


@given(
    extent=st.integers(0, 30), kernel=st.integers(1, 9), stride=st.integers(0, 9),
    padding=st.integers(0, 4),
)  # fmt: skip
def test_phantom_tokens_stand_where_no_window_fits(extent, kernel, stride, padding):
    geometry = {"kernel": kernel, "stride": stride, "padding": padding}
    early = upstream.first_release_sliding_window_out_dim(extent, **geometry)
    ours = sliding_window_out_dim(extent, **geometry)
    fits = stride > 0 and extent + 2 * padding >= kernel
    assert early == (ours if fits else 1)
    assert (ours > 0) == fits


@pytest.mark.parametrize(
    ("height", "width", "stride", "padding"),
    [(5, 4, 2, 1), (2, 5, 1, 0), (2, 1, 3, 0), (1, 1, 1, 1), (6, 7, 0, 0), (0, 4, 1, 0)],
)
def test_phantom_token_reads_what_exists(height, width, stride, padding):
    rng = np.random.default_rng(14)
    kernel, bias = rng.standard_normal((2, 3, 4, 3)), rng.standard_normal(2)
    spec = Conv2DSpec(stride=stride, padding=padding, kernel=kernel, bias=bias)
    x = rng.standard_normal((3, height, width))
    y = upstream.first_release_conv2d(spec, x)
    geometry = {"stride": stride, "padding": padding}
    grid = [
        upstream.first_release_sliding_window_out_dim(extent, kernel=k, **geometry)
        for extent, k in ((height, 4), (width, 3))
    ]
    assert y.shape == (2, *grid)
    for o, i, j in np.ndindex(y.shape):
        total = bias[o]
        for c, di, dj in np.ndindex(3, 4, 3):
            row, column = i * stride + di - padding, j * stride + dj - padding
            if 0 <= row < height and 0 <= column < width:
                total += x[c, row, column] * kernel[o, c, di, dj]
        assert_close(y[o, i, j], total, 1e-12)
    ours = conv2d(spec, x)
    assert ours.size == 0 or np.array_equal(ours, y)


# ---- DEV-7: the hard-masked softmax --------------------------------------------------------------


@given(seed=seeds)
def test_unshifted_softmax_is_the_same_function_where_it_survives(seed):
    rng = np.random.default_rng(seed)
    scores, mask = 5 * rng.standard_normal((4, 6)), rng.random((4, 6)) < 0.5
    mask[np.arange(4), rng.integers(6, size=4)] = True
    early = upstream.first_release_hard_masked_softmax(scores, mask)
    assert_close(early, hard_masked_softmax(scores, mask), 1e-13)


@pytest.mark.parametrize("score", [710.0, -750.0])
def test_unshifted_softmax_overflows_and_underflows(score):
    rng = np.random.default_rng(15)
    scores, mask = score + rng.random((1, 4)), np.array([[True, True, True, False]])
    assert np.isnan(upstream.first_release_hard_masked_softmax(scores, mask)[0, :3]).all()
    weights = hard_masked_softmax(scores, mask)
    assert np.isfinite(weights).all()
    assert_close(weights.sum(), 1.0, 1e-15)


def test_fully_blocked_row_was_nan_and_is_zero():
    rng = np.random.default_rng(16)
    scores, mask = rng.standard_normal((2, 3)), np.array([[True, False, True], [False] * 3])
    early = upstream.first_release_hard_masked_softmax(scores, mask)
    assert np.isnan(early[1]).all()
    assert np.isfinite(early[0]).all()
    assert np.array_equal(hard_masked_softmax(scores, mask)[1], np.zeros(3))


# ---- DEV-8, DEV-9: the smaller ones --------------------------------------------------------------


def test_denominator_at_width_zero():
    assert upstream.first_release_attention_scale_denom(0) == 0
    assert attention_scale_denom(0, np.dtype(float)) == 1
    for d in (1, 2, 64):
        early = upstream.first_release_attention_scale_denom(d)
        assert early == attention_scale_denom(d, np.dtype(float))
    # More heads than width: both are exactly zero, whatever the weights inside.
    rng = np.random.default_rng(17)
    mha, x = figures.random_attention(3, 0, 2, rng), rng.standard_normal((4, 2))
    for attention in (upstream.first_release_multi_head_attention, multi_head_attention):
        assert np.array_equal(attention(mha, x), np.zeros((4, 2)))


@given(seed=seeds, offset=st.sampled_from([0.0, 1.0, 100.0]))
def test_variance_formula_moves_centred_rows_by_rounding_only(seed, offset):
    x = offset + np.random.default_rng(seed).standard_normal((5, 8))
    centred = x - x.mean(axis=-1, keepdims=True)
    two_pass = np.mean(centred**2, axis=-1, keepdims=True)
    assert_close(upstream.first_release_variance(centred), two_pass, 1e-14)


def test_variance_formula_cancels_on_rows_that_are_not_centred():
    x = 1e6 + np.random.default_rng(18).standard_normal((20, 8))
    assert relative_error(upstream.first_release_variance(x), x.var(axis=-1, keepdims=True)) > 1e-6


# ---- kept, although surprising -------------------------------------------------------------------


def test_kept_choices():
    """What the page lists as kept: stride 0, indivisible heads, and LayerNorm's epsilon."""
    assert ViTConfig(stride=0, head_count=5, embed_dim=7, num_layers=0).violations() == ()
    assert ViTConfig(head_count=5, embed_dim=7).inner_dim == 5
    # A row of variance 1e-6 is halved in variance by an epsilon of 1e-6 inside the root.
    row = 1e-3 * np.array([[1.0, -1.0, 1.0, -1.0]])
    assert_close(layer_norm(row, np.ones(4), np.zeros(4))[0, 0], np.sqrt(0.5), 1e-12)


# ---- the two values that upstream asserts for its own specification ------------------------------


def test_split_heads_gives_the_value_that_upstream_asserts():
    x = np.arange(8.0).reshape(2, 4)
    assert split_heads(x, 2).ravel().tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert upstream.first_release_split_heads(x, 2).ravel().tolist() == [*range(8)]


def test_hard_masked_softmax_gives_the_value_that_upstream_asserts():
    scores = np.array([[1000.0, -1000.0], [3.0, 4.0]])
    mask = np.array([[False, True], [False, False]])
    assert hard_masked_softmax(scores, mask).tolist() == [[0, 1], [0, 0]]
    early = upstream.first_release_hard_masked_softmax(scores, mask)
    assert np.isnan(early).tolist() == [[True, True], [True, True]]


# ---- the page ------------------------------------------------------------------------------------


def test_page_shows_what_the_command_prints():
    for table in figures.deviation_tables():
        assert table.render() in PAGE, f"out of date: {table.entry}. {table.title}"


def test_page_names_tests_that_exist():
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    missing = named - globals().keys()
    assert named
    assert not missing


def test_page_examples_run():
    path = Path(__file__).parents[2] / "docs" / "deviations.md"
    results = doctest.testfile(str(path), module_relative=False, encoding="utf-8")
    assert results.attempted > 0
    assert results.failed == 0
