"""The theorems of TorchLean (revision b2a2184) as property tests, each under its Lean name.

First what is proved about the specification's own definitions, then what is proved about proof-only
graphs that resemble it, then what no theorem says. Identities that hold over any ring are tested
with whole numbers, where floating point is exact and `==` means equal.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.compare import assert_close
from vitspec import complex_step_derivative, to_reals
from vitspec.config import (
    ViTConfig,
    transformer_base_config,
    transformer_big_config,
    vit_base_patch16_config,
    vit_large_patch16_config,
)
from vitspec.geometry import pad, sliding_window_out_dim
from vitspec.layers.activation import (
    hard_masked_softmax,
    relu,
    relu_backward,
    relu_deriv,
    relu_jvp,
    softmax,
    softmax_backward,
    softmax_jvp,
)
from vitspec.layers.attention import (
    attention_weights,
    causal_mask,
    future_mask,
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
    scaled_dot_product_attention_jvp,
)
from vitspec.layers.conv2d import (
    Conv2DSpec,
    conv2d,
    conv2d_backward,
    conv2d_bias_deriv,
    conv2d_input_deriv,
    conv2d_jvp,
    conv2d_kernel_deriv,
    kernel_as_matrix,
)
from vitspec.layers.feed_forward import (
    FeedForward,
    feed_forward,
    feed_forward_backward,
    feed_forward_jvp,
)
from vitspec.layers.linear import LinearSpec, linear, linear_backward, linear_jvp
from vitspec.layers.multi_head_attention import (
    MultiHeadAttention,
    combine_heads,
    multi_head_attention,
    multi_head_attention_backward,
    multi_head_attention_jvp,
    split_heads,
)
from vitspec.layers.normalization import layer_norm, layer_norm_backward, layer_norm_jvp
from vitspec.models.tokens import (
    cls_pool,
    cls_pool_backward,
    grid_to_tokens,
    mean_pool,
    mean_pool_backward,
    prepend_cls,
    prepend_cls_backward,
    tokens_to_grid,
)
from vitspec.models.transformer import (
    TransformerEncoder,
    TransformerEncoderLayer,
    encoder,
    encoder_backward,
    encoder_jvp,
    encoder_layer,
    encoder_layer_backward,
    encoder_layer_jvp,
)
from vitspec.scalars import matmul, row_max
from vitspec.testing.families import MODELS, Case
from vitspec.testing.strategies import seeds

property_test = settings(max_examples=40)
quick = settings(max_examples=25)
size = st.integers(1, 5)
wide = st.integers(3, 7)  # from 3 on, LayerNorm's gradient is not all cancellation

EPS = 1e-11
"""Relative tolerance where both sides round; a wrong formula is off by about 1."""


def whole(rng, *shape):
    """Whole numbers from 1 to 9 of either sign, as floats: sums of products of them are exact."""
    return rng.integers(1, 10, shape) * rng.choice([-1.0, 1.0], shape)


def dot(*pairs):
    """The sum of elementwise products, over all pairs of arrays."""
    return sum(float((a * b).sum()) for a, b in pairs)


def assert_dots_agree(left, right, *, tolerance=EPS):
    """Require that two sums of products agree, relative to the product of the norms.

    That is the size of an error of one part in one, so a wrong sign, factor or transpose shows.
    """
    size = max(
        sum(float(np.linalg.norm(a) * np.linalg.norm(b)) for a, b in pairs)
        for pairs in (left, right)
    )
    assert abs(dot(*left) - dot(*right)) <= tolerance * size


def assert_is_vjp(f, x, d_x, d_out, rng):
    """Require that d_x is the cotangent of x: <f'(x) v, d_out> = <v, d_x> for a random v.

    f'(x) v is the complex step of the forward: the hand-written derivatives have no part in it.
    """
    v = rng.standard_normal(x.shape)
    assert_dots_agree([(complex_step_derivative(f, x, v), d_out)], [(v, d_x)])


def assert_record_is_vjp(f, record, grads, d_out, rng):
    """The same for every array of a record, one at a time."""
    flat = grads.to_flat()
    assert flat.keys() == record.to_flat().keys()
    for name, leaf in record.to_flat().items():
        v = rng.standard_normal(leaf.shape)
        tangent = complex_step_derivative(f, record, only(record, name, v))
        assert_dots_agree([(tangent, d_out)], [(v, flat[name])])


def only(record, name, v):
    """A record of zeros but for the array `name`, which is v."""
    by_id = {id(leaf): n for n, leaf in record.to_flat().items()}
    return record.map(lambda leaf: v if by_id[id(leaf)] == name else leaf * 0)


def random_like(rng, record):
    return record.map(lambda leaf: rng.standard_normal(leaf.shape))


# ================================================================================================
# Theorems about the specification's own definitions
# ================================================================================================


@pytest.mark.parametrize("config", [vit_base_patch16_config, vit_large_patch16_config])
def test_vit_presets_are_well_formed(config):
    """vitBasePatch16Config_wf, vitLargePatch16Config_wf."""
    assert config.violations() == ()


@pytest.mark.parametrize("config", [transformer_base_config, transformer_big_config])
def test_transformer_presets_are_well_formed(config):
    """transformerBaseConfig_wf, transformerBigConfig_wf."""
    assert config.violations() == ()
    assert config.embed_dim % config.head_count == 0


@given(st.integers(1, 10**6))
def test_a_window_of_one_with_stride_one_keeps_every_extent(extent):
    """convOutSpatial_unit."""
    assert sliding_window_out_dim(extent, kernel=1, stride=1, padding=0) == extent


# ---- convolution -------------------------------------------------------------------------------


@st.composite
def convolutions(draw):
    """A convolution of whole numbers with at least one output: spec, x, d_out, rng."""
    rng = np.random.default_rng(draw(seeds))
    ph, pw = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    stride, padding = draw(st.integers(1, 4)), draw(st.integers(0, 3))
    C, D = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    H = draw(st.integers(max(ph - 2 * padding, 0), 7))
    W = draw(st.integers(max(pw - 2 * padding, 0), 7))
    spec = Conv2DSpec(stride, padding, whole(rng, D, C, ph, pw), whole(rng, D))
    out_h = (H + 2 * padding - ph) // stride + 1
    out_w = (W + 2 * padding - pw) // stride + 1
    return spec, whole(rng, C, H, W), whole(rng, D, out_h, out_w), rng


def padded_by_hand(x, p):
    """The explicitly padded input, pixel by pixel."""
    C, H, W = x.shape
    x_pad = np.zeros((C, H + 2 * p, W + 2 * p))
    for c, i, j in np.ndindex(C, H, W):
        x_pad[c, i + p, j + p] = x[c, i, j]
    return x_pad


def taps(spec, d_out):
    """Every (output channel, channel, i, j, di, dj, padded row, padded column)."""
    D, C, ph, pw = spec.kernel.shape
    for o, c, i, j, di, dj in np.ndindex(D, C, *d_out.shape[1:], ph, pw):
        yield o, c, i, j, di, dj, i * spec.stride + di, j * spec.stride + dj


@given(convolutions())
@property_test
def test_conv2d_is_the_closed_sum_over_the_padded_input(conv):
    """conv2d_spec_noBias_get."""
    spec, x, d_out, _ = conv
    x_pad, y = padded_by_hand(x, spec.padding), np.zeros(d_out.shape)
    for o, c, i, j, di, dj, row, column in taps(spec, d_out):
        y[o, i, j] += x_pad[c, row, column] * spec.kernel[o, c, di, dj]
    no_bias = Conv2DSpec(spec.stride, spec.padding, spec.kernel, spec.bias * 0)
    assert np.array_equal(conv2d(no_bias, x), y)
    for o in range(y.shape[0]):
        y[o] += spec.bias[o]
    assert np.array_equal(conv2d(spec, x), y)


@given(convolutions())
@property_test
def test_conv2d_kernel_deriv_is_the_closed_sum(conv):
    """conv2d_kernel_deriv_get."""
    spec, x, d_out, _ = conv
    x_pad, expected = padded_by_hand(x, spec.padding), np.zeros(spec.kernel.shape)
    for o, c, i, j, di, dj, row, column in taps(spec, d_out):
        expected[o, c, di, dj] += x_pad[c, row, column] * d_out[o, i, j]
    assert np.array_equal(conv2d_kernel_deriv(spec, x, d_out), expected)


@given(convolutions())
@property_test
def test_conv2d_input_deriv_is_the_closed_sum(conv):
    """conv2d_input_deriv_get."""
    spec, x, d_out, _ = conv
    expected, p = np.zeros(x.shape), spec.padding
    for o, c, i, j, di, dj, row, column in taps(spec, d_out):
        if 0 <= row - p < x.shape[1] and 0 <= column - p < x.shape[2]:
            expected[c, row - p, column - p] += d_out[o, i, j] * spec.kernel[o, c, di, dj]
    assert np.array_equal(conv2d_input_deriv(spec, x, d_out), expected)


@given(convolutions())
@property_test
def test_conv2d_bias_deriv_is_the_closed_sum(conv):
    """conv2d_bias_deriv_get."""
    _, _, d_out, _ = conv
    expected = np.zeros(d_out.shape[0])
    for o, i, j in np.ndindex(d_out.shape):
        expected[o] += d_out[o, i, j]
    assert np.array_equal(conv2d_bias_deriv(d_out), expected)


@given(convolutions())
@property_test
def test_conv2d_backward_is_the_adjoint_of_the_tangent_whole_and_in_parts(conv):
    """conv2d_backward_spec_dot.

    And its parts: dot_conv2d_kernel, dot_conv2d_input, dot_biasBroadcast_eq_dot_bias_deriv.
    """
    spec, x, g, rng = conv
    dx, d_kernel, d_bias = (whole(rng, *a.shape) for a in (x, spec.kernel, spec.bias))

    def apply(kernel, bias, x):
        return conv2d(Conv2DSpec(spec.stride, spec.padding, kernel, bias), x)

    by_kernel = apply(d_kernel, spec.bias * 0, x)
    by_input = apply(spec.kernel, spec.bias * 0, dx)
    broadcast = np.repeat(d_bias, g[0].size).reshape(g.shape)
    grads, d_x = conv2d_backward(spec, x, g)
    assert dot((by_kernel, g)) == dot((d_kernel, grads.d_kernel))
    assert dot((by_input, g)) == dot((dx, d_x))
    assert dot((broadcast, g)) == dot((d_bias, grads.d_bias))
    whole_tangent = by_kernel + broadcast + by_input
    together = dot((d_kernel, grads.d_kernel), (d_bias, grads.d_bias), (dx, d_x))
    assert dot((whole_tangent, g)) == together
    tangent = Conv2DSpec(spec.stride, spec.padding, d_kernel, d_bias)
    assert np.array_equal(conv2d_jvp(spec, x, tangent, dx), whole_tangent)


@given(size, st.integers(0, 4), st.integers(0, 4), st.integers(0, 3), seeds)
@property_test
def test_padded_read_is_zero_in_the_band_and_else_the_shifted_read(C, H, W, p, seed):
    """get_at_or_zero_pad_multi_channel, get_at_or_zero_pad_multi_channel_shift."""
    x = whole(np.random.default_rng(seed), C, H, W)
    x_pad = pad(x, p)
    assert x_pad.shape == (C, H + 2 * p, W + 2 * p)
    for c, i, j in np.ndindex(x_pad.shape):
        inside = p <= i < H + p and p <= j < W + p
        assert x_pad[c, i, j] == (x[c, i - p, j - p] if inside else 0)


# ---- reshape, transpose, matrix product --------------------------------------------------------

size0 = st.integers(0, 4)


@given(size0, size0, size0, size0, seeds)
@property_test
def test_flatten_and_unflatten_are_inverse_and_row_major(a, b, c, d, seed):
    """flatten_unflatten_inverse, unflatten_flatten_inverse: zero-size axes included."""
    rng = np.random.default_rng(seed)
    grid = whole(rng, a, b, c)
    tokens = grid_to_tokens(grid)
    assert tokens.shape == (b * c, a)
    for k, i, j in np.ndindex(a, b, c):
        assert tokens[i * c + j, k] == grid[k, i, j]
    assert np.array_equal(tokens_to_grid(tokens, b, c), grid)
    rows = whole(rng, b * c, a)
    assert np.array_equal(grid_to_tokens(tokens_to_grid(rows, b, c)), rows)

    kernel = whole(rng, a, b, c, d)
    matrix = kernel_as_matrix(kernel)
    for o, k, i, j in np.ndindex(kernel.shape):
        assert matrix[o, (k * c + i) * d + j] == kernel[o, k, i, j]
    assert matrix.shape == (a, b * c * d)


@given(size, size, size, seeds)
@property_test
def test_exchanging_two_axes_twice_is_the_identity(heads, n, d, seed):
    """swapAdjacentAtDepth_involutive, matrix_transpose_involution.

    In the specification it is the exchange of tokens and heads: splitting, then combining.
    """
    x = whole(np.random.default_rng(seed), n, heads * d)
    split = split_heads(x, heads)
    for h, i, e in np.ndindex(heads, n, d):
        assert split[h, i, e] == x[i, h * d + e]
    assert np.array_equal(combine_heads(split), x)
    by_head = whole(np.random.default_rng(seed), heads, n, d)
    assert np.array_equal(split_heads(combine_heads(by_head), heads), by_head)
    assert np.array_equal(x.T.T, x)


@given(size, size, size, seeds)
@property_test
def test_transpose_of_a_product(m, k, n, seed):
    """matrix_transpose_mul."""
    rng = np.random.default_rng(seed)
    a, b = whole(rng, m, k), whole(rng, k, n)
    assert np.array_equal(matmul(a, b).T, matmul(b.T, a.T))


@given(size, size, size, seeds)
@property_test
def test_adjoints_of_the_matrix_product(m, k, n, seed):
    """dot_mat_mul_left_adjoint, dot_mat_mul_right_adjoint."""
    rng = np.random.default_rng(seed)
    a, b, c = whole(rng, m, k), whole(rng, k, n), whole(rng, m, n)
    assert dot((matmul(a, b), c)) == dot((b, matmul(a.T, c))) == dot((a, matmul(c, b.T)))


@given(size, size, size, seeds)
@property_test
def test_permuting_rows_commutes_with_the_product_and_turns_into_columns_of_the_transpose(
    m, k, n, seed
):
    """mat_mul_reindexOuter_left, matrix_transpose_reindexOuter."""
    rng = np.random.default_rng(seed)
    a, b, order = whole(rng, m, k), whole(rng, k, n), rng.permutation(m)
    assert np.array_equal(matmul(a[order], b), matmul(a, b)[order])
    assert np.array_equal(a[order].T, a.T[:, order])


# ---- linear ------------------------------------------------------------------------------------


@given(size, size, seeds)
@property_test
def test_linear_backward_is_outer_product_transpose_product_and_identity(K, D, seed):
    """dot_mat_linear_adjoint.

    And linear_weight_gradient_correct, linear_input_gradient_correct, linear_bias_gradient_correct.
    """
    rng = np.random.default_rng(seed)
    spec, tangent = (LinearSpec(whole(rng, K, D), whole(rng, K)) for _ in range(2))
    x, dx, g = whole(rng, D), whole(rng, D), whole(rng, K)
    grads, d_x = linear_backward(spec, x, g)
    for i, j in np.ndindex(K, D):
        assert grads.d_weights[i, j] == g[i] * x[j]
    for j in range(D):
        assert d_x[j] == sum(g[i] * spec.weights[i, j] for i in range(K))
    assert np.array_equal(grads.d_bias, g)
    for i in range(K):
        row = sum(spec.weights[i, j] * x[j] for j in range(D))
        assert linear(spec, x)[i] == row + spec.bias[i]
    flat, grad = tangent.to_flat(), grads.to_flat()
    together = dot((dx, d_x), *((flat[name], grad[name]) for name in flat))
    assert dot((linear_jvp(spec, x, tangent, dx), g)) == together


# ---- ReLU --------------------------------------------------------------------------------------


@given(size, size, seeds)
@property_test
def test_relu_derivative_away_from_zero_and_its_convention_at_zero(m, n, seed):
    """relu_deriv_correct."""
    rng = np.random.default_rng(seed)
    z, v, g = rng.standard_normal((3, m, n))
    derivative = complex_step_derivative(relu, z, v)
    assert_close(relu_jvp(z, v), derivative, 1e-15)
    assert_close(relu_deriv(z) * v, derivative, 1e-15)
    assert_close(relu_backward(z, g), complex_step_derivative(relu, z, g), 1e-15)
    assert (relu_deriv(z * 0) == 0).all()
    assert (relu_backward(z * 0, g) == 0).all()


@given(st.integers(1, 20), seeds, st.floats(-20, 20))
@property_test
def test_relu_does_not_stretch_distances(n, seed, shift):
    """relu_lipschitz_general."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, n)) * 3 + shift
    assert np.linalg.norm(relu(x) - relu(y)) <= np.linalg.norm(x - y)
    same_sign = np.abs(x), np.abs(y)  # there it keeps them: 1 is the best constant
    assert np.linalg.norm(relu(same_sign[0]) - relu(same_sign[1])) == np.linalg.norm(
        same_sign[0] - same_sign[1]
    )


# ---- softmax -----------------------------------------------------------------------------------


@given(size, st.integers(1, 8), seeds, st.floats(-900, 900), st.floats(0.1, 300))
@property_test
def test_softmax_rows_lie_in_the_unit_interval_and_sum_to_one(rows, n, seed, shift, scale):
    """softmax_vec_spec_mem_unitInterval, sum_spec_softmax_vec_spec, sum_spec_softmax_spec_row."""
    x = np.random.default_rng(seed).standard_normal((rows, n)) * scale + shift
    y = softmax(x)
    assert ((y >= 0) & (y <= 1)).all()
    assert_close(y.sum(axis=1), np.ones(rows), 1e-14)
    for i in range(rows):  # each row by itself
        e = [math.exp(v - max(x[i])) for v in x[i]]
        assert_close(y[i], np.array(e) / sum(e), 1e-12)


@given(size, st.integers(1, 6), seeds, st.floats(-900, 900))
@quick
def test_softmax_of_real_numbers_is_strictly_positive_and_sums_to_exactly_one(rows, n, seed, shift):
    """softmax_vec_spec_pos, sum_spec_softmax_vec_spec: over the reals, where nothing underflows."""
    x = np.random.default_rng(seed).standard_normal((rows, n)) * 200 + shift
    y = softmax(to_reals(x))
    assert all(ball > 0 for ball in y.flat)
    assert all(row_sum.contains(1) for row_sum in y.sum(axis=1))


@given(size, st.integers(1, 8), seeds, st.floats(-900, 900), st.floats(0.1, 300))
@property_test
def test_shifted_logits_are_at_most_zero_one_is_zero_and_the_denominator_is_in_1_to_n(
    rows, n, seed, shift, scale
):
    """softmax_shift_nonpos, exists_softmax_shift_eq_zero.

    And softmax_shift_exp_le_one, softmax_shift_denom_bounds.
    """
    x = np.random.default_rng(seed).standard_normal((rows, n)) * scale + shift
    shifted = x - row_max(x)
    assert (shifted <= 0).all()
    assert (shifted == 0).any(axis=1).all()
    assert (np.exp(shifted) <= 1).all()
    denominator = np.exp(shifted).sum(axis=1)
    assert ((denominator >= 1) & (denominator <= n)).all()
    # The softmax divides by this very number: its largest weight is 1 / denominator.
    assert_close(softmax(x).max(axis=1), 1 / denominator, 1e-14)


@given(size, st.integers(1, 7), seeds)
@property_test
def test_softmax_commutes_with_permutations_of_rows_and_of_entries(rows, n, seed):
    """softmax_vec_spec_reindexOuter, softmax_spec_permMatrix."""
    rng = np.random.default_rng(seed)
    x, row_order, order = rng.standard_normal((rows, n)), rng.permutation(rows), rng.permutation(n)
    assert_close(softmax(x[:, order]), softmax(x)[:, order], 1e-15)
    assert np.array_equal(softmax(x[row_order]), softmax(x)[row_order])
    permutation = np.eye(n)[order]
    assert_close(softmax(x @ permutation.T), softmax(x) @ permutation.T, 1e-15)


@given(size, st.integers(1, 8), seeds, st.floats(0.1, 30))
@property_test
def test_softmax_backward_sums_to_zero_and_is_at_most_twice_the_cotangent(rows, n, seed, scale):
    """sum_spec_softmax_backward_spec, abs_toVec_softmax_backward_spec_le_two_mul."""
    rng = np.random.default_rng(seed)
    x, g = rng.standard_normal((rows, n)) * scale, rng.standard_normal((rows, n))
    d_x = softmax_backward(x, g)
    largest = np.abs(g).max(axis=1)
    assert (np.abs(d_x.sum(axis=1)) <= 1e-14 * largest).all()
    assert (np.abs(d_x) <= 2 * largest[:, None]).all()
    assert n == 1 or scale > 5 or d_x.any()


# ---- attention ---------------------------------------------------------------------------------


@st.composite
def attentions(draw, masks=("none", "random")):
    """q, k, v over several heads, a cotangent, a mask (some rows fully blocked) and an rng."""
    rng = np.random.default_rng(draw(seeds))
    heads, n_q, n_k = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    d, e = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    q, k, v, g = (
        rng.standard_normal((heads, *shape)) for shape in ((n_q, d), (n_k, d), (n_k, e), (n_q, e))
    )
    mask = None
    if draw(st.sampled_from(masks)) == "random":
        mask = rng.random((n_q, n_k)) < draw(st.sampled_from([0.2, 0.6, 0.9]))
    return q, k, v, g, mask, rng


@given(attentions(masks=["none"]))
@property_test
def test_every_row_of_unmasked_attention_weights_sums_to_one(attention):
    """scaledDotProductAttention_unmasked_weights_row_sum_one."""
    q, k, *_ = attention
    weights = attention_weights(q, k)
    assert_close(weights.sum(axis=-1), np.ones(weights.shape[:-1]), 1e-14)


@given(st.integers(0, 7))
def test_causal_and_future_masks_entry_by_entry(n):
    """causalMask_get2, causalMask_blocks_future, causalMask_allows_past.

    And futureMask_get2, futureMask_allows_future, futureMask_blocks_past.
    """
    causal, future = causal_mask(n), future_mask(n)
    assert causal.shape == future.shape == (n, n)
    for i, j in np.ndindex(n, n):
        assert causal[i, j] == (j <= i)
        assert future[i, j] == (i < j)


@given(size, size, st.integers(1, 3), seeds)
@property_test
def test_blocked_weights_are_exactly_zero_and_allowed_ones_are_the_softmax_of_what_is_left(
    n_q, n_k, heads, seed
):
    """hardMaskedSoftmaxVecSpec_blocked_eq_zero, hardMaskedSoftmaxSpec_blocked_eq_zero."""
    rng = np.random.default_rng(seed)
    x, mask = rng.standard_normal((heads, n_q, n_k)) * 9, rng.random((n_q, n_k)) < 0.6
    weights = hard_masked_softmax(x, mask)
    assert (weights[:, ~mask] == 0).all()
    for h, i in np.ndindex(heads, n_q):
        if mask[i].any():
            assert_close(weights[h, i, mask[i]], softmax(x[h, i, mask[i]]), 1e-14)


@given(st.integers(2, 6), seeds)
@quick
def test_causal_attention_gives_the_future_no_weight_and_does_not_see_it(n, seed):
    """hardMaskedSoftmaxSpec_causal_future_zero; with several heads, the future is not read."""
    rng = np.random.default_rng(seed)
    weights = hard_masked_softmax(rng.standard_normal((n, n)) * 9, causal_mask(n))
    assert (weights[np.triu_indices(n, 1)] == 0).all()
    assert (weights[np.tril_indices(n)] > 0).all()

    mha, x = random_mha(rng, 6, 3), rng.standard_normal((n, 6))
    changed = x.copy()
    changed[-1] = rng.standard_normal(6)
    before, after = (multi_head_attention(mha, a, causal_mask(n)) for a in (x, changed))
    assert_close(after[:-1], before[:-1], 1e-14)
    assert (after[-1] != before[-1]).all()


def random_mha(rng, D, head_count):
    inner = ViTConfig(embed_dim=D, head_count=head_count).inner_dim
    wq, wk, wv = rng.standard_normal((3, D, inner)) / math.sqrt(D)
    return MultiHeadAttention(head_count, wq, wk, wv, rng.standard_normal((inner, D)))


@given(st.integers(1, 6), st.integers(1, 7), st.integers(1, 4), seeds)
@property_test
def test_self_attention_is_equivariant_under_permutations_of_tokens(n, D, head_count, seed):
    """selfAttention_reindexOuter: proved for one head; several heads here."""
    rng = np.random.default_rng(seed)
    mha, x, order = random_mha(rng, D, head_count), rng.standard_normal((n, D)), rng.permutation(n)
    permuted = multi_head_attention(mha, x[order])
    assert_close(permuted, multi_head_attention(mha, x)[order], 1e-13)


def tiled_attention(q, k, v, mask, tile_q, tile_k):
    """Attention tile by tile with an online softmax; also the log of each row's denominator."""
    n_q, d = q.shape
    out, log_sum = np.zeros((n_q, v.shape[1])), np.full(n_q, -np.inf)
    for rows in (slice(i, i + tile_q) for i in range(0, n_q, tile_q)):
        top = np.full(q[rows].shape[0], -np.inf)
        denominator, numerator = np.zeros(top.size), np.zeros((top.size, v.shape[1]))
        for keys in (slice(j, j + tile_k) for j in range(0, k.shape[0], tile_k)):
            scores = np.where(mask[rows, keys], q[rows] @ k[keys].T / math.sqrt(d), -np.inf)
            new_top = np.maximum(top, scores.max(axis=1))
            finite = np.where(np.isfinite(new_top), new_top, 0)
            shrink, e = np.exp(top - finite), np.exp(scores - finite[:, None])
            denominator = denominator * shrink + e.sum(axis=1)
            numerator = numerator * shrink[:, None] + e @ v[keys]
            top = new_top
        some = denominator > 0
        out[rows][some] = numerator[some] / denominator[some, None]
        log_sum[rows][some] = top[some] + np.log(denominator[some])
    return out, log_sum


def tiled_attention_backward(q, k, v, mask, g, tile_q, tile_k):
    """FlashAttention's backward: weights again tile by tile, from the saved log denominators."""
    out, log_sum = tiled_attention(q, k, v, mask, tile_q, tile_k)
    scale, row_dots = 1 / math.sqrt(q.shape[1]), (g * out).sum(axis=1, keepdims=True)
    d_q, d_k, d_v = np.zeros(q.shape), np.zeros(k.shape), np.zeros(v.shape)
    finite = np.where(np.isfinite(log_sum), log_sum, 0)[:, None]
    for keys in (slice(j, j + tile_k) for j in range(0, k.shape[0], tile_k)):
        for rows in (slice(i, i + tile_q) for i in range(0, q.shape[0], tile_q)):
            weights = np.exp(q[rows] @ k[keys].T * scale - finite[rows]) * mask[rows, keys]
            d_v[keys] += weights.T @ g[rows]
            d_scores = weights * (g[rows] @ v[keys].T - row_dots[rows]) * scale
            d_q[rows] += d_scores @ k[keys]
            d_k[keys] += d_scores.T @ q[rows]
    return d_q, d_k, d_v


@given(attentions(), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=60)
def test_tiled_attention_equals_attention_for_every_tile_size(attention, tile_q, tile_k):
    """flashAttention_eq_scaledDotProductAttention.

    And flashAttentionBackward_eq_scaledDotProductAttentionBackward.
    """
    q, k, v, g, mask, _ = attention
    full = np.ones((q.shape[1], k.shape[1]), bool) if mask is None else mask
    out = scaled_dot_product_attention(q, k, v, mask)
    d_q, d_k, d_v = scaled_dot_product_attention_backward(q, k, v, g, mask)
    for h in range(q.shape[0]):
        tiled, _ = tiled_attention(q[h], k[h], v[h], full, tile_q, tile_k)
        assert_close(out[h], tiled, EPS)
        tiled = tiled_attention_backward(q[h], k[h], v[h], full, g[h], tile_q, tile_k)
        for value, truth, factors in zip(
            (d_q, d_k, d_v), tiled, ((g, v, k), (g, v, q), (g,)), strict=True
        ):  # relative to what cancels: with one key, d_q and d_k are zero
            scale = math.prod(np.linalg.norm(f[h]) for f in factors)
            assert np.linalg.norm(value[h] - truth) <= 1e-13 * scale


@given(st.integers(1, 6), seeds)
@quick
def test_one_feature_layer_norm_is_beta_with_zero_gradients(n, seed):
    """one_feature_layernorm_*: with D = 1 nothing of x is left."""
    rng = np.random.default_rng(seed)
    x, d_out, dx = rng.standard_normal((3, n, 1))
    gamma, beta, d_gamma, d_beta = rng.standard_normal((4, 1))
    assert (layer_norm(x, gamma, beta) == beta).all()
    d_x, got_gamma, got_beta = layer_norm_backward(x, gamma, d_out)
    assert (d_x == 0).all()
    assert (got_gamma == 0).all()
    assert_close(got_beta, d_out.sum(axis=0), 1e-14)
    assert (layer_norm_jvp(x, gamma, dx, d_gamma, d_beta) == d_beta).all()


# ================================================================================================
# Theorems about graphs that resemble the specification
# ================================================================================================


@given(size, st.integers(1, 6), seeds)
@property_test
def test_softmax_derivative_and_the_symmetry_of_its_jacobian(rows, n, seed):
    """softmaxJvp_eq_deriv, inner_softmaxJvp_comm, hasFDerivAt_softmaxVec."""
    rng = np.random.default_rng(seed)
    x, u, v = rng.standard_normal((3, rows, n))
    derivative = complex_step_derivative(softmax, x, v)
    assert_dots_agree([(softmax_jvp(x, v), u)], [(derivative, u)])
    assert_dots_agree([(softmax_jvp(x, v), u)], [(v, softmax_jvp(x, u))])
    assert_dots_agree([(derivative, u)], [(v, softmax_backward(x, u))])


@given(attentions())
@settings(max_examples=60)
def test_attention_backward_is_the_adjoint_of_the_derivative(attention):
    """backprop_eq_adjoint_fderiv_scaledDotProduct; here n_q, n_k free, and hard masks too.

    With a mask: maskedCore_backprop_eq_adjoint_fderiv.
    """
    q, k, v, g, mask, rng = attention
    d_q, d_k, d_v = scaled_dot_product_attention_backward(q, k, v, g, mask)

    def attend(q, k, v):
        return scaled_dot_product_attention(q, k, v, mask)

    point = {"q": q, "k": k, "v": v}
    for name, d in zip(point, (d_q, d_k, d_v), strict=True):
        u = rng.standard_normal(d.shape)
        derivative = complex_step_derivative(_at(attend, point, name), point[name], u)
        assert_adjoint_up_to_cancellation(derivative, g, u, d, [q, k, v])
        if name == "v" or not only_one_key(mask, k.shape[1]):
            assert_dots_agree([(derivative, g)], [(u, d)])
        directions = [u if n == name else a * 0 for n, a in point.items()]
        jvp = scaled_dot_product_attention_jvp(q, k, v, *directions, mask=mask)
        assert_adjoint_up_to_cancellation(derivative, g, jvp, g, [q, k, v, u])


def assert_adjoint_up_to_cancellation(tangent, g, v, d, factors):
    """Require <tangent, g> = <v, d> relative to the factors of the terms that may cancel.

    A query with one allowed key has weight 1 whatever it asks: derivatives that are 0.
    """
    size = math.prod(1 + np.linalg.norm(a) for a in [v, d, g, *factors])
    assert abs(dot((tangent, g)) - dot((v, d))) <= 1e-13 * size


def only_one_key(mask, n_k):
    """Whether no query has two keys to choose from."""
    return n_k == 1 if mask is None else mask.sum(axis=1).max() < 2


def _at(f, arguments, name):
    """F of its argument `name` alone; the others follow into the world of that one."""
    return lambda a: f(**{n: a if n == name else b.astype(a.dtype) for n, b in arguments.items()})


@given(attentions(masks=["none"]), st.floats(0.2, 3))
@property_test
def test_attention_with_any_constant_scale_and_an_additive_bias(attention, c):
    """backprop_eq_adjoint_fderiv_scaledDotProduct with any c.

    And backprop_eq_adjoint_fderiv_maskedScaledDotProduct, whose mask is a finite bias B:
    softmax(c Q K^T + B) V is the specification's attention of longer vectors: [c Q, B] and [K, I],
    times the root of their length. Its VJP in Q is then c times the head of the VJP in [c Q, B].
    """
    q, k, v, g, _, rng = attention
    (heads, n_q, d), n_k = q.shape, k.shape[1]
    bias, unit = rng.standard_normal((heads, n_q, n_k)), np.tile(np.eye(n_k), (heads, 1, 1))
    root = math.sqrt(d + n_k)

    def lift(q, k):
        return np.concatenate([c * q, bias], -1) * root, np.concatenate([k, unit], -1)

    def attend(q):
        scores = c * q @ k.swapaxes(-1, -2) + bias
        e = np.exp(scores - scores.real.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True) @ v

    long_q, long_k = lift(q, k)
    assert_close(scaled_dot_product_attention(long_q, long_k, v), attend(q), 1e-12)
    d_long_q, _, _ = scaled_dot_product_attention_backward(long_q, long_k, v, g)
    d_q, u = d_long_q[..., :d] * c * root, rng.standard_normal(q.shape)
    derivative = complex_step_derivative(attend, q, u)
    size = c * math.prod(np.linalg.norm(a) for a in (u, k, v, g))
    assert abs(dot((derivative, g)) - dot((u, d_q))) <= 1e-12 * size


def naive_multi_head_attention(mha, x, mask=None):
    """One head after the other, on slices of columns; plain numbers."""
    width = mha.wq.shape[1] // mha.head_count
    out = np.zeros((x.shape[0], mha.wo.shape[1]))
    for h in range(mha.head_count):
        columns = range(h * width, (h + 1) * width)
        q, k, v = (np.array([x @ w[:, c] for c in columns]).T for w in (mha.wq, mha.wk, mha.wv))
        for i in range(x.shape[0]):
            allowed = [j for j in range(x.shape[0]) if mask is None or mask[i, j]]
            scores = [sum(q[i] * k[j]) / math.sqrt(width) for j in allowed]
            e = [math.exp(s - max(scores)) for s in scores]
            for j, weight in zip(allowed, e, strict=True):
                for c, column in enumerate(columns):
                    out[i] += weight / sum(e) * v[j, c] * mha.wo[column]
    return out


@st.composite
def multi_heads(draw):
    """A multi-head attention (heads need not divide D), x, a cotangent, a mask or none, an rng."""
    rng = np.random.default_rng(draw(seeds))
    D, n = draw(st.integers(2, 7)), draw(st.integers(1, 5))
    mha = random_mha(rng, D, draw(st.integers(1, min(D, 4))))
    mask = rng.random((n, n)) < 0.6 if draw(st.booleans()) else None
    return mha, *rng.standard_normal((2, n, D)), mask, rng


@given(multi_heads())
@property_test
def test_multi_head_attention_is_attention_head_by_head(case):
    """What MultiHeadAttention.forward means, with naive loops (no theorem)."""
    mha, x, _, mask, _ = case
    assert_close(
        multi_head_attention(mha, x, mask), naive_multi_head_attention(mha, x, mask), 1e-13
    )


@given(multi_heads())
@settings(max_examples=60)
def test_multi_head_attention_backward_is_the_adjoint_of_the_derivative(case):
    """mha_backpropVec_eq_adjoint_fderiv, mhaResidual_backpropVec_eq_adjoint_fderiv.

    In x and all four matrices; also of x + MHA(x), and with hard masks.
    """
    mha, x, g, mask, rng = case
    grads, d_x = multi_head_attention_backward(mha, x, g, mask)
    gradients = grads.to_flat()
    factors = [*mha.to_flat().values(), x]
    for name, leaf in mha.to_flat().items():
        v = rng.standard_normal(leaf.shape)
        tangent = complex_step_derivative(
            lambda m: multi_head_attention(m, x.astype(m.dtype), mask), mha, only(mha, name, v)
        )
        assert_adjoint_up_to_cancellation(tangent, g, v, gradients[name], factors)
        if name in ("wv", "wo") or not only_one_key(mask, x.shape[0]):
            assert_dots_agree([(tangent, g)], [(v, gradients[name])])

    v = rng.standard_normal(x.shape)

    def attend(x):
        return multi_head_attention(mha.astype(x.dtype), x, mask)

    derivative = complex_step_derivative(attend, x, v)
    assert_adjoint_up_to_cancellation(derivative, g, v, d_x, factors)
    residual = complex_step_derivative(lambda x: x + attend(x), x, v)
    assert_dots_agree([(residual, g)], [(v, d_x + g)])


@given(st.integers(1, 5), wide, seeds)
@property_test
def test_layer_norm_backward_is_the_adjoint_of_the_derivative(n, D, seed):
    """backprop_eq_adjoint_fderiv_layerNorm_at, in x, gamma and beta."""
    rng = np.random.default_rng(seed)
    x, g = rng.standard_normal((2, n, D))
    gamma, beta = rng.standard_normal((2, D))
    d_x, d_gamma, d_beta = layer_norm_backward(x, gamma, g)

    def f(x=x, gamma=gamma, beta=beta):
        dtype = np.result_type(x, gamma, beta)
        return layer_norm(x.astype(dtype), gamma.astype(dtype), beta.astype(dtype))

    assert_is_vjp(lambda a: f(x=a), x, d_x, g, rng)
    assert_is_vjp(lambda a: f(gamma=a), gamma, d_gamma, g, rng)
    assert_is_vjp(lambda a: f(beta=a), beta, d_beta, g, rng)


def random_ffn(rng, D, F):
    return FeedForward(
        w1=rng.standard_normal((D, F)),
        w2=rng.standard_normal((F, D)),
        b1=rng.standard_normal(F),
        b2=rng.standard_normal(D),
    )


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 6), seeds)
@property_test
def test_feed_forward_backward_is_the_adjoint_of_the_derivative_with_the_residual(n, D, F, seed):
    """ffnResidual_backpropVec_eq_adjoint_fderiv, seqFfnResidual_backpropVec_eq_adjoint_fderiv.

    With ReLU for GELU, and in the weights too.
    """
    rng = np.random.default_rng(seed)
    ffn, (x, g) = random_ffn(rng, D, F), rng.standard_normal((2, n, D))
    grads, d_x = feed_forward_backward(ffn, x, g)
    assert_is_vjp(lambda a: a + feed_forward(ffn.astype(a.dtype), a), x, d_x + g, g, rng)
    assert_record_is_vjp(lambda p: feed_forward(p, x.astype(p.dtype)), ffn, grads, g, rng)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 6), seeds)
@property_test
def test_mlp_is_two_linear_layers_with_relu_and_so_is_its_backward(n, D, F, seed):
    """mlp_backward_eq_adjoint_fderiv: row by row, away from the kink."""
    rng = np.random.default_rng(seed)
    ffn, (x, g) = random_ffn(rng, D, F), rng.standard_normal((2, n, D))
    first, second = LinearSpec(ffn.w1.T, ffn.b1), LinearSpec(ffn.w2.T, ffn.b2)
    out, d_x = np.zeros(x.shape), np.zeros(x.shape)
    d_w1, d_b1 = np.zeros(ffn.w1.shape), np.zeros(F)
    d_w2, d_b2 = np.zeros(ffn.w2.shape), np.zeros(D)
    for i in range(n):
        hidden = linear(first, x[i])
        out[i] = linear(second, relu(hidden))
        second_grads, d_activated = linear_backward(second, relu(hidden), g[i])
        first_grads, d_x[i] = linear_backward(first, x[i], np.where(hidden > 0, d_activated, 0))
        d_w1 += first_grads.d_weights.T
        d_b1 += first_grads.d_bias
        d_w2 += second_grads.d_weights.T
        d_b2 += second_grads.d_bias
    assert_close(feed_forward(ffn, x), out, 1e-13)
    grads, got_x = feed_forward_backward(ffn, x, g)
    scale = np.linalg.norm(g) * np.linalg.norm(ffn.w1) * np.linalg.norm(ffn.w2)
    assert np.linalg.norm(got_x - d_x) <= 1e-13 * scale
    assert_close(grads.d_w1, d_w1, EPS)
    assert_close(grads.d_b1, d_b1, EPS)
    assert_close(grads.d_w2, d_w2, EPS)
    assert_close(grads.d_b2, d_b2, EPS)


@st.composite
def encoder_layers(draw, layers=1):
    """Encoder layers of width D >= 3, x, a cotangent and an rng."""
    rng = np.random.default_rng(draw(seeds))
    n, D, F = draw(st.integers(2, 5)), draw(wide), draw(st.integers(1, 6))
    head_count = draw(st.integers(1, 3))

    def layer():
        gamma1, beta1, gamma2, beta2 = rng.standard_normal((4, D))
        mha, ffn = random_mha(rng, D, head_count), random_ffn(rng, D, F)
        return TransformerEncoderLayer(mha, ffn, 1 + 0.3 * gamma1, beta1, 1 + 0.3 * gamma2, beta2)

    return tuple(layer() for _ in range(layers)), *rng.standard_normal((2, n, D)), rng


@given(encoder_layers())
@property_test
def test_each_post_norm_half_has_the_vjp_of_its_parts(case):
    """mhaPostNorm_backpropVec_eq_adjoint_fderiv_at.

    And seqFfnPostNorm_backpropVec_eq_adjoint_fderiv_at,
    postNorm_backpropVec_eq_adjoint_fderiv_at: LN(x + f(x)) passes back d + f^T d, d from LN.
    """
    (layer,), x, g, rng = case
    halves = [
        (multi_head_attention, multi_head_attention_backward, layer.mha),
        (feed_forward, feed_forward_backward, layer.ffn),
    ]
    gamma, beta = layer.norm1_gamma, layer.norm1_beta
    for forward, backward, parameters in halves:
        d_residual, _, _ = layer_norm_backward(x + forward(parameters, x), gamma, g)
        grads, d_x = backward(parameters, x, d_residual)

        def half(p, a, forward=forward):
            return layer_norm(a + forward(p, a), gamma.astype(a.dtype), beta.astype(a.dtype))

        assert_is_vjp(
            lambda a, p=parameters, h=half: h(p.astype(a.dtype), a), x, d_residual + d_x, g, rng
        )
        assert_record_is_vjp(lambda p, h=half: h(p, x.astype(p.dtype)), parameters, grads, g, rng)


@given(encoder_layers())
@property_test
def test_encoder_block_backward_is_the_adjoint_of_the_derivative(case):
    """encoderBlock_backpropVec_eq_adjoint_fderiv_at.

    And, since the complex step and the JVP agree, postNormEncoderBlock_hasFDerivAt and
    twoSublayerPostNormBlock_hasFDerivAt.
    """
    (layer,), x, g, rng = case
    grads, d_x = encoder_layer_backward(layer, x, g)
    assert_is_vjp(lambda a: encoder_layer(layer.astype(a.dtype), a), x, d_x, g, rng)
    assert_record_is_vjp(lambda p: encoder_layer(p, x.astype(p.dtype)), layer, grads, g, rng)
    tangent, dx = random_like(rng, layer), rng.standard_normal(x.shape)
    by_x = complex_step_derivative(lambda a: encoder_layer(layer.astype(a.dtype), a), x, dx)
    by_p = complex_step_derivative(lambda p: encoder_layer(p, x.astype(p.dtype)), layer, tangent)
    assert_close(encoder_layer_jvp(layer, x, tangent, dx), by_x + by_p, EPS)


# ================================================================================================
# What no theorem says
# ================================================================================================


@given(encoder_layers(layers=3))
@quick
def test_encoder_is_the_fold_of_its_layers_and_its_gradients_come_in_layer_order(case):
    layers, x, g, rng = case
    spec = TransformerEncoder(layers)
    inputs = [x]
    for layer in layers:
        inputs.append(encoder_layer(layer, inputs[-1]))
    assert np.array_equal(encoder(spec, x), inputs[-1])

    grads, d_x = encoder_backward(spec, x, g)
    d_out = g
    for i in reversed(range(len(layers))):  # by hand, each layer's at its own place
        expected, d_out = encoder_layer_backward(layers[i], inputs[i], d_out)
        for name, gradient in expected.to_flat().items():
            assert_close(grads[i].to_flat()[name], gradient, EPS, f"layer {i} {name}")
    assert_close(d_x, d_out, EPS)

    flat = {f"layers.{i}.{n}": a for i, d in enumerate(grads) for n, a in d.to_flat().items()}
    for i in range(3):  # and by the complex step, through the flat names of the parameters
        name = f"layers.{i}.ffn.w2"
        v = rng.standard_normal(layers[i].ffn.w2.shape)
        tangent = complex_step_derivative(
            lambda p: encoder(p, x.astype(p.dtype)), spec, only(spec, name, v)
        )
        assert_dots_agree([(tangent, g)], [(v, flat[name])], tolerance=1e-10)


@given(encoder_layers(layers=2))
@quick
def test_encoder_jvp_is_the_derivative_and_the_backward_its_adjoint(case):
    layers, x, g, rng = case
    spec = TransformerEncoder(layers)
    tangent, dx = random_like(rng, spec), rng.standard_normal(x.shape)
    jvp = encoder_jvp(spec, x, tangent, dx)
    by_x = complex_step_derivative(lambda a: encoder(spec.astype(a.dtype), a), x, dx)
    by_p = complex_step_derivative(lambda p: encoder(p, x.astype(p.dtype)), spec, tangent)
    assert_close(jvp, by_x + by_p, 1e-10)
    grads, d_x = encoder_backward(spec, x, g)
    parts = zip(
        [a for layer in tangent.layers for a in layer.to_flat().values()],
        [a for layer in grads for a in layer.to_flat().values()],
        strict=True,
    )
    assert_dots_agree([(jvp, g)], [(dx, d_x), *parts], tolerance=1e-10)


@given(size, size, seeds)
@property_test
def test_mean_pool_and_its_adjoint(n, D, seed):
    rng = np.random.default_rng(seed)
    z, g = whole(rng, n, D), whole(rng, D)
    expected = np.array([sum(z[i, j] for i in range(n)) / n for j in range(D)])
    assert np.array_equal(mean_pool(z), expected)
    d_z = mean_pool_backward(g, n)
    assert d_z.shape == z.shape
    assert_dots_agree([(mean_pool(z), g)], [(z, d_z)])
    assert (d_z == d_z[0]).all()


@given(size, size, seeds)
@property_test
def test_cls_pool_prepend_cls_and_their_adjoints(n, D, seed):
    rng = np.random.default_rng(seed)
    z, g = whole(rng, n, D), whole(rng, D)
    d_z = cls_pool_backward(g, n)
    assert np.array_equal(d_z[0], g)
    assert (d_z[1:] == 0).all()
    assert dot((cls_pool(z), g)) == dot((z, d_z))

    cls_token, tokens = whole(rng, D), whole(rng, n - 1, D)
    sequence = prepend_cls(cls_token, tokens)
    assert np.array_equal(sequence[0], cls_token)
    assert np.array_equal(sequence[1:], tokens)
    d_cls, d_tokens = prepend_cls_backward(z)
    assert dot((sequence, z)) == dot((cls_token, d_cls), (tokens, d_tokens))


@given(st.integers(1, 5), wide, seeds)
@property_test
def test_layer_norm_jvp_and_backward_are_adjoint(n, D, seed):
    rng = np.random.default_rng(seed)
    x, dx, g = rng.standard_normal((3, n, D))
    gamma, d_gamma, d_beta = rng.standard_normal((3, D))
    jvp = layer_norm_jvp(x, gamma, dx, d_gamma, d_beta)
    got_x, got_gamma, got_beta = layer_norm_backward(x, gamma, g)
    assert_dots_agree([(jvp, g)], [(dx, got_x), (d_gamma, got_gamma), (d_beta, got_beta)])


@given(multi_heads())
@property_test
def test_multi_head_attention_jvp_and_backward_are_adjoint_and_the_jvp_is_the_derivative(case):
    mha, x, g, mask, rng = case
    tangent, dx = random_like(rng, mha), rng.standard_normal(x.shape)
    jvp = multi_head_attention_jvp(mha, x, tangent, dx, mask)
    grads, d_x = multi_head_attention_backward(mha, x, g, mask)
    parts = zip(tangent.to_flat().values(), grads.to_flat().values(), strict=True)
    scale = math.prod(1 + np.linalg.norm(a) for a in [*mha.to_flat().values(), x])
    right = dot((dx, d_x), *parts)
    assert abs(dot((jvp, g)) - right) <= 1e-12 * np.linalg.norm(g) * scale
    by_x = complex_step_derivative(
        lambda a: multi_head_attention(mha.astype(a.dtype), a, mask), x, dx
    )
    by_p = complex_step_derivative(
        lambda p: multi_head_attention(p, x.astype(p.dtype), mask), mha, tangent
    )
    assert_close(jvp, by_x + by_p, 1e-10)


@given(size, size, st.integers(1, 5), seeds)
@property_test
def test_feed_forward_jvp_and_backward_are_adjoint(n, D, F, seed):
    rng = np.random.default_rng(seed)
    ffn, tangent = random_ffn(rng, D, F), random_ffn(rng, D, F)
    x, dx, g = rng.standard_normal((3, n, D))
    grads, d_x = feed_forward_backward(ffn, x, g)
    parts = zip(tangent.to_flat().values(), grads.to_flat().values(), strict=True)
    jvp = feed_forward_jvp(ffn, x, tangent, dx)
    assert_dots_agree([(jvp, g)], [(dx, d_x), *parts])


@st.composite
def patch_permutations(draw):
    """A case whose patches tile the image, and its grid."""
    patch, out_h, out_w = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    config = ViTConfig(
        patch_h=patch, patch_w=patch, stride=patch, padding=0,
        embed_dim=draw(wide), hidden_dim=draw(st.integers(1, 6)),
        head_count=draw(st.integers(1, 4)), num_layers=draw(st.integers(0, 3)),
        num_classes=draw(st.integers(1, 5)),
    )  # fmt: skip
    spec, channels = draw(st.sampled_from(sorted(MODELS))), draw(st.integers(1, 3))
    case = Case(spec, config, channels, out_h * patch, out_w * patch, seed=draw(seeds))
    return case, (out_h, out_w)


def permute_patches(image, patch, grid, order):
    """The image whose patch t is patch order[t] of `image`."""
    permuted = np.zeros(image.shape)
    for t, source in enumerate(order):
        (i, j), (k, m) = divmod(t, grid[1]), divmod(int(source), grid[1])
        permuted[:, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch] = image[
            :, k * patch : (k + 1) * patch, m * patch : (m + 1) * patch
        ]
    return permuted


@given(patch_permutations())
@property_test
def test_permuting_patches_and_positions_alike_leaves_the_logits_and_moves_the_gradients(case):
    """The whole model's permutation law; the CLS row stays. Raw head splits break it."""
    case, grid = case
    model, image, d_logits = case.model(), case.image(), case.d_logits()
    order = np.random.default_rng(case.seed).permutation(grid[0] * grid[1])
    patch, cls = model.config.patch_h, int(model.has_cls_token)
    rows = np.concatenate([np.arange(cls), order + cls])
    flat = model.to_flat()
    moved = flat | {"pos_enc.pos": flat["pos_enc.pos"][rows]}
    moved = type(model).from_flat(model.config, moved, **case.size)
    moved_image = permute_patches(image, patch, grid, order)
    assert_close(moved.forward(moved_image), model.forward(image), 1e-11)

    grads, d_image = model.backward(image, d_logits)
    moved_grads, moved_d_image = moved.backward(moved_image, d_logits)
    assert_close(moved_grads.d_pos, grads.d_pos[rows], 1e-9)
    assert_close(moved_d_image, permute_patches(d_image, patch, grid, order), 1e-9)
    assert_close(moved_grads.d_patch_kernel, grads.d_patch_kernel, 1e-9)
