"""Every row of the edge cases of TorchLean's definitions (revision b2a2184): Lean is total.

"Refused" rows are those whose Lean types or proof arguments rule the situation out.
"""

import dataclasses
import math

import numpy as np
import pytest

from support.compare import assert_close, assert_flat_close
from vitspec import (
    InvalidArray,
    NotWellFormed,
    ViTClsSpec,
    ViTConfig,
    ViTSpec,
    encloses,
    parameter_shapes,
    radius,
    to_reals,
    transformer_base_config,
    transformer_big_config,
    vit_base_patch16_config,
    vit_large_patch16_config,
)
from vitspec.geometry import patch_count, patch_grid, sliding_window_out_dim
from vitspec.layers.activation import hard_masked_softmax, softmax
from vitspec.layers.attention import (
    all_false_mask,
    attention_scale_denom,
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
    scaled_dot_product_attention_jvp,
)
from vitspec.layers.conv2d import Conv2DSpec, conv2d, conv2d_backward
from vitspec.layers.linear import linear
from vitspec.layers.multi_head_attention import (
    MultiHeadAttention,
    multi_head_attention,
    multi_head_attention_backward,
    multi_head_attention_jvp,
    split_heads,
)
from vitspec.layers.normalization import layer_norm, layer_norm_backward, layer_norm_jvp
from vitspec.models.transformer import TransformerEncoder, encoder, encoder_backward, encoder_jvp
from vitspec.testing.families import Case

WORLDS = ["float32", "float64", "longdouble", "complex128", "arb"]
MODELS = ["vit", "vit-cls"]
FIELDS = {
    "patch_h": 2, "patch_w": 3, "stride": 2, "padding": 1, "embed_dim": 6, "hidden_dim": 5,
    "head_count": 2, "num_layers": 2, "num_classes": 4,
}  # fmt: skip
IMAGE = {"in_channels": 2, "height": 5, "width": 7}


def make_case(spec="vit-cls", seed=7, **changes):
    """A case that differs from `FIELDS` and `IMAGE` only where said."""
    image = {name: changes.pop(name, value) for name, value in IMAGE.items()}
    return Case(spec, ViTConfig(**(FIELDS | changes)), **image, seed=seed)


def into(world, x):
    return to_reals(x) if world == "arb" else x.astype(world)


def all_zero(x):
    """Whether every entry is exactly 0, in any world."""
    return all(bool(entry == 0) for entry in x.flat)


def none_zero(x):
    return x.size > 0 and all(bool(entry != 0) for entry in x.flat)


def same(a, b):
    """Whether a and b are equal entry by entry, or balls that overlap."""
    if a.dtype == object:
        return all(x.overlaps(y) for x, y in zip(a.flat, b.flat, strict=True))
    return a.shape == b.shape and bool((a == b).all())


def refused(config, cls=ViTClsSpec, **image):
    """The labels of the rules that `init` finds broken."""
    with pytest.raises(NotWellFormed) as error:
        cls.init(config, **(IMAGE | image), rng=np.random.default_rng(1))
    return {violation.split(":")[0] for violation in error.value.violations}


def random_mha(rng, D, head_count):
    inner = ViTConfig(embed_dim=D, head_count=head_count).inner_dim
    wq, wk, wv = rng.standard_normal((3, D, inner))
    return MultiHeadAttention(head_count, wq, wk, wv, rng.standard_normal((inner, D)))


# ---- no token: the grid is empty ---------------------------------------------------------------

NO_TOKEN = {
    "patch taller than the padded image": {"patch_h": 8},
    "patch wider than the padded image": {"patch_w": 10},
    "patch larger on both axes": {"patch_h": 9, "patch_w": 11, "padding": 0},
    "stride 0": {"stride": 0},
    "image without rows, patch larger than the padding": {"height": 0, "patch_h": 3},
    "image without columns, patch larger than the padding": {"width": 0, "patch_w": 3},
}


@pytest.mark.parametrize("changes", NO_TOKEN.values(), ids=NO_TOKEN.keys())
def test_no_token_without_cls_is_refused_as_h_tok(changes):
    case = make_case(**changes)
    assert patch_count(case.config, case.height, case.width) == 0
    assert case.config.violations() == ()  # WF says nothing of it: the model's proof argument does
    assert refused(case.config, ViTSpec, **case.size) == {"h_tok"}
    with pytest.raises(NotWellFormed, match="h_tok"):
        ViTSpec.from_flat(case.config, {}, **case.size)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("changes", NO_TOKEN.values(), ids=NO_TOKEN.keys())
def test_no_token_with_cls_runs_on_the_cls_token_alone(changes, world):
    case = make_case(**changes)
    model, image = into(world, case.model()), into(world, case.image())
    d_logits = into(world, case.d_logits())
    D = case.config.embed_dim

    assert model.pos_enc.pos.shape == (1, D)
    alone = (model.cls_token + model.pos_enc.pos[0])[None, :]
    expected = linear(model.head, encoder(model.encoder, alone)[0])
    logits = model.forward(image)
    assert same(logits, expected)

    grads, d_image = model.backward(image, d_logits)
    shape = (D, case.in_channels, case.config.patch_h, case.config.patch_w)
    assert grads.d_patch_kernel.shape == shape
    assert all_zero(grads.d_patch_kernel)
    assert grads.d_patch_bias.shape == (D,)
    assert all_zero(grads.d_patch_bias)
    assert d_image.shape == case.image_shape
    assert all_zero(d_image)
    assert grads.d_pos.shape == (1, D)
    assert none_zero(grads.d_cls_token)
    assert same(grads.d_pos[0], grads.d_cls_token)
    assert d_image.dtype == grads.d_patch_bias.dtype == grads.d_pos.dtype == model.dtype


@pytest.mark.parametrize("world", WORLDS)
def test_no_token_with_cls_jvp_does_not_see_the_patch_embedding(world):
    case = make_case(patch_h=8)
    model, image, tangent = (into(world, x) for x in (case.model(), case.image(), case.tangent()))
    still = dataclasses.replace(
        tangent,
        patch_embed=tangent.patch_embed.map(lambda leaf: leaf * 0),
        cls_token=tangent.cls_token,
    )
    moved = model.jvp(image, tangent, into(world, case.d_image()))
    unmoved = model.jvp(image, still, image - image)
    assert none_zero(moved)
    assert same(moved, unmoved)


def test_window_that_exactly_fits_has_one_position_and_one_pixel_less_has_none():
    assert sliding_window_out_dim(5, kernel=9, stride=3, padding=2) == 1
    assert sliding_window_out_dim(5, kernel=10, stride=3, padding=2) == 0
    assert sliding_window_out_dim(5, kernel=9, stride=0, padding=2) == 0
    assert sliding_window_out_dim(5, kernel=0, stride=3, padding=2) == 0


@pytest.mark.parametrize(
    ("field", "label"),
    [
        ("patch_h", "patchH_ne0"),
        ("patch_w", "patchW_ne0"),
        ("embed_dim", "embedDim_pos"),
        ("hidden_dim", "hiddenDim_pos"),
        ("head_count", "headCount_pos"),
        ("num_classes", "numClasses_ne0"),
    ],
)
@pytest.mark.parametrize("cls", [ViTSpec, ViTClsSpec])
def test_zero_patch_or_embed_or_hidden_dim_or_heads_or_classes_is_refused(field, label, cls):
    assert refused(ViTConfig(**(FIELDS | {field: 0})), cls) == {label}


# ---- padding, images without pixels, uncovered pixels ------------------------------------------


def reads_image(case, i, j):
    """Whether the window at (i, j) reads any pixel of the image, by looking at every tap."""
    c = case.config
    rows = [i * c.stride + di - c.padding for di in range(c.patch_h)]
    columns = [j * c.stride + dj - c.padding for dj in range(c.patch_w)]
    inside = any(0 <= r < case.height for r in rows)
    return inside and any(0 <= q < case.width for q in columns)


@pytest.mark.parametrize("padding", [3, 4, 7])
def test_padding_at_least_the_patch_a_window_wholly_in_padding_gives_the_bias(padding):
    case = make_case(padding=padding)
    spec, image = case.model().patch_embed, case.image()
    tokens = conv2d(spec, image)
    reads = np.array(
        [[reads_image(case, i, j) for j in range(tokens.shape[2])] for i in range(tokens.shape[1])]
    )
    assert 0 < reads.sum() < reads.size
    assert (tokens[:, ~reads] == spec.bias[:, None]).all()
    assert (tokens[:, reads] != spec.bias[:, None]).all()

    # Such a window teaches the kernel nothing and the image nothing.
    d_out = np.where(reads, 0, np.random.default_rng(3).standard_normal(tokens.shape))
    grads, d_image = conv2d_backward(spec, image, d_out)
    assert all_zero(grads.d_kernel)
    assert all_zero(d_image)
    assert_close(grads.d_bias, d_out.sum(axis=(1, 2)), 1e-14)


@pytest.mark.parametrize("spec", MODELS)
@pytest.mark.parametrize("axis", ["height", "width"])
def test_image_without_rows_or_columns_has_tokens_where_the_padding_holds_a_patch(spec, axis):
    case = make_case(spec, **{axis: 0}, padding=3, patch_h=2, patch_w=3)
    grid = patch_grid(case.config, case.height, case.width)
    out = {"height": grid[0], "width": grid[1]}[axis]
    kernel = {"height": 2, "width": 3}[axis]
    assert out == (2 * 3 - kernel) // 2 + 1

    model, image = case.model(), case.image()
    assert image.size == 0
    assert (conv2d(model.patch_embed, image) == model.patch_embed.bias[:, None, None]).all()
    grads, d_image = model.backward(image, case.d_logits())
    assert np.isfinite(model.forward(image)).all()
    assert d_image.shape == case.image_shape
    assert all_zero(grads.d_patch_kernel)
    assert none_zero(grads.d_patch_bias)


@pytest.mark.parametrize("cls", [ViTSpec, ViTClsSpec])
def test_in_channels_zero_is_refused_as_h_inC(cls):
    assert refused(ViTConfig(**FIELDS), cls, in_channels=0) == {"h_inC"}


@pytest.mark.parametrize("spec", MODELS)
@pytest.mark.parametrize(
    "changes",
    [
        {"padding": 0, "patch_h": 2, "patch_w": 3, "stride": 3, "height": 7, "width": 8},
        {"padding": 0, "patch_h": 1, "patch_w": 2, "stride": 4, "height": 10, "width": 9},
        {"padding": 1, "patch_h": 2, "patch_w": 2, "stride": 3, "height": 6, "width": 8},
    ],
    ids=["floor remainder", "stride larger than the patch", "with padding"],
)
def test_uncovered_pixels_have_gradient_exactly_zero_and_covered_pixels_do_not(spec, changes):
    case = make_case(spec, **changes)
    c = case.config
    out_h, out_w = patch_grid(c, case.height, case.width)
    covered = np.zeros((case.height, case.width), bool)
    for row in range(case.height):
        for column in range(case.width):
            covered[row, column] = any(
                0 <= row + c.padding - i * c.stride < c.patch_h
                and 0 <= column + c.padding - j * c.stride < c.patch_w
                for i in range(out_h)
                for j in range(out_w)
            )
    assert 0 < covered.sum() < covered.size
    _, d_image = case.model().backward(case.image(), case.d_logits())
    assert all_zero(d_image[:, ~covered])
    assert none_zero(d_image[:, covered])


def test_infinite_weight_on_a_padded_tap_gives_nan():
    rng = np.random.default_rng(11)
    kernel = rng.standard_normal((3, 2, 2, 3))
    kernel[1, 0, 0, 0] = np.inf
    spec = Conv2DSpec(stride=2, padding=1, kernel=kernel, bias=rng.standard_normal(3))
    with np.errstate(invalid="ignore"):
        y = conv2d(spec, rng.standard_normal((2, 5, 7)))
    assert np.isnan(y[1, 0, :]).all()  # tap (0, 0) of these windows lies in the padding:
    assert np.isnan(y[1, :, 0]).all()  # 0 * inf
    assert np.isinf(y[1, 1:, 1:]).all()  # and here on a pixel
    assert np.isfinite(y[[0, 2]]).all()  # the other channels do not see it


# ---- heads -------------------------------------------------------------------------------------


def test_heads_that_do_not_divide_embed_dim_make_attention_narrower():
    case = make_case(embed_dim=7, head_count=3)
    assert (case.config.head_dim, case.config.inner_dim) == (2, 6)
    model = case.model()
    mha = model.encoder.layers[1].mha
    assert mha.wq.shape == mha.wk.shape == mha.wv.shape == (7, 6)
    assert mha.wo.shape == (6, 7)
    assert model.forward(case.image()).shape == (4,)

    x, d_out = np.random.default_rng(5).standard_normal((2, 4, 7))
    expected = np.zeros((4, 7))
    for h in range(3):  # the scale is the root of the floor, not of 7 / 3
        q, k, v = (x @ w[:, 2 * h : 2 * h + 2] for w in (mha.wq, mha.wk, mha.wv))
        weights = np.exp(q @ k.T / math.sqrt(2))
        expected += weights / weights.sum(1, keepdims=True) @ v @ mha.wo[2 * h : 2 * h + 2]
    assert_close(multi_head_attention(mha, x), expected, 1e-13)
    grads, d_x = multi_head_attention_backward(mha, x, d_out)
    assert {name: leaf.shape for name, leaf in grads.to_flat().items()} == {
        name: leaf.shape for name, leaf in mha.to_flat().items()
    }
    assert none_zero(d_x)  # nothing is dropped from the residual stream
    assert none_zero(grads.d_wq)


@pytest.mark.parametrize("world", WORLDS)
def test_more_heads_than_embed_dim_is_no_attention_and_no_nan(world):
    rng = np.random.default_rng(6)
    mha = into(world, random_mha(rng, D=5, head_count=8))
    x, d_out, dx = (into(world, rng.standard_normal((4, 5))) for _ in range(3))
    assert mha.wq.shape == (5, 0)
    assert mha.wo.shape == (0, 5)
    with np.errstate(all="raise"):
        out = multi_head_attention(mha, x)
        grads, d_x = multi_head_attention_backward(mha, x, d_out)
        tangent = multi_head_attention_jvp(mha, x, mha, dx)
    assert out.shape == d_x.shape == tangent.shape == (4, 5)
    assert all_zero(out)
    assert all_zero(d_x)
    assert all_zero(tangent)
    assert [g.shape for g in grads.to_flat().values()] == [(5, 0)] * 3 + [(0, 5)]
    assert {g.dtype for g in grads.to_flat().values()} == {x.dtype}
    assert attention_scale_denom(0, x.dtype) == 1


@pytest.mark.parametrize("spec", MODELS)
def test_more_heads_than_embed_dim_leaves_the_rest_of_the_model_working(spec):
    case = make_case(spec, embed_dim=5, head_count=6)
    with np.errstate(all="raise"):
        grads, d_image = case.model().backward(case.image(), case.d_logits())
        tangent = case.model().jvp(case.image(), case.tangent(), case.d_image())
    flat = grads.to_flat()
    assert flat["encoder.layers.0.mha.wq"].shape == (5, 0)
    assert all(np.isfinite(g).all() for g in [*flat.values(), d_image])
    assert none_zero(tangent)
    # Without attention the CLS row sees no patch.
    sees_patches = [g.any() for g in (d_image, grads.d_patch_kernel, grads.d_patch_bias)]
    assert sees_patches == [spec == "vit"] * 3
    others = {n: g for n, g in flat.items() if ".mha." not in n and not n.startswith("patch_embed")}
    assert all(g.any() for g in others.values())


def test_head_count_zero_is_refused_but_its_arithmetic_is_leans():
    config = ViTConfig(**(FIELDS | {"head_count": 0}))
    assert refused(config) == {"headCount_pos"}
    assert (config.head_dim, config.inner_dim) == (0, 0)


# ---- layers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", WORLDS)
def test_empty_layer_list_is_the_identity(world):
    x, d_out = (into(world, a) for a in np.random.default_rng(8).standard_normal((2, 3, 5)))
    empty = TransformerEncoder(layers=())
    assert (encoder(empty, x) == x).all()
    grads, d_x = encoder_backward(empty, x, d_out)
    assert grads == ()
    assert (d_x == d_out).all()
    assert (encoder_jvp(empty, x, empty, d_out) == d_out).all()


@pytest.mark.parametrize("spec", MODELS)
def test_num_layers_zero_is_well_formed_and_runs(spec):
    case = make_case(spec, num_layers=0)
    assert case.config.violations() == ()
    model, image, d_logits = case.model(), case.image(), case.d_logits()
    embedded = model.trace(image).embedded
    row = embedded.mean(0) if spec == "vit" else embedded[0]
    assert_close(model.forward(image), model.head.weights @ row + model.head.bias, 1e-14)
    grads, _ = model.backward(image, d_logits)
    assert grads.d_encoder == ()
    n = embedded.shape[0]
    d_row = d_logits @ model.head.weights
    if spec == "vit":
        assert_close(grads.d_pos, np.tile(d_row / n, (n, 1)), 1e-14)
    else:
        assert_close(grads.d_pos, np.vstack([d_row, np.zeros((n - 1, d_row.size))]), 1e-14)


@pytest.mark.parametrize("claimed", [0, 1, 5])
@pytest.mark.parametrize("spec", MODELS)
def test_layer_list_of_another_length_than_num_layers_is_accepted_and_only_the_list_counts(
    spec, claimed
):
    case = make_case(spec)
    model, image = case.model(), case.image()
    config = dataclasses.replace(case.config, num_layers=claimed)
    other = dataclasses.replace(model, config=config)
    assert len(other.encoder.layers) == 2
    assert (other.forward(image) == model.forward(image)).all()
    grads, d_image = other.backward(image, case.d_logits())
    expected, d_expected = model.backward(image, case.d_logits())
    assert len(grads.d_encoder) == 2
    assert_flat_close(grads.to_flat(), expected.to_flat(), 0)
    assert (d_image == d_expected).all()
    tangent = dataclasses.replace(case.tangent(), config=config)
    assert (other.jvp(image, tangent, image) == model.jvp(image, case.tangent(), image)).all()


@pytest.mark.parametrize("world", WORLDS)
def test_one_token_has_weight_one_and_d_wq_and_d_wk_exactly_zero(world):
    rng = np.random.default_rng(9)
    mha = into(world, random_mha(rng, D=6, head_count=3))
    x, d_out = (into(world, rng.standard_normal((1, 6))) for _ in range(2))
    grads, d_x = multi_head_attention_backward(mha, x, d_out)
    if world == "arb":  # the truth is 0; its enclosure is as narrow as the precision
        assert all(ball.contains(0) for ball in [*grads.d_wq.flat, *grads.d_wk.flat])
        assert max(radius(grads.d_wq).max(), radius(grads.d_wk).max()) < 1e-30
    else:
        assert all_zero(grads.d_wq)
        assert all_zero(grads.d_wk)
    assert none_zero(grads.d_wv)
    assert none_zero(grads.d_wo)
    assert none_zero(d_x)
    concat = split_heads(x @ mha.wv, 3).reshape(1, 6)  # one token: both revisions split alike
    assert same(multi_head_attention(mha, x), concat @ mha.wo)


@pytest.mark.parametrize("spec", MODELS)
def test_embed_dim_one_everything_before_the_last_layer_norm_has_gradient_exactly_zero(spec):
    case = make_case(spec, embed_dim=1, head_count=1)
    model, image, d_logits = case.model(), case.image(), case.d_logits()
    last = model.encoder.layers[-1]
    expected = model.head.weights @ last.norm2_beta + model.head.bias
    assert_close(model.forward(image), expected, 1e-14)

    grads, d_image = model.backward(image, d_logits)
    flat = grads.to_flat()
    alive = {"head.weights", "head.bias", "encoder.layers.1.norm2_beta"}
    for name, gradient in flat.items():
        assert none_zero(gradient) if name in alive else all_zero(gradient), name
    assert all_zero(d_image)
    d_pooled = d_logits @ model.head.weights
    assert_close(flat["encoder.layers.1.norm2_beta"], d_pooled, 1e-14)


@pytest.mark.parametrize("world", WORLDS)
def test_embed_dim_one_layer_norm_returns_beta_and_passes_nothing_back(world):
    rng = np.random.default_rng(10)
    x, d_out, dx = (into(world, rng.standard_normal((4, 1))) for _ in range(3))
    gamma, beta, d_gamma, d_beta = (into(world, rng.standard_normal(1)) for _ in range(4))
    assert (layer_norm(x, gamma, beta) == beta).all()
    d_x, got_gamma, got_beta = layer_norm_backward(x, gamma, d_out)
    assert all_zero(d_x)
    assert all_zero(got_gamma)
    assert same(got_beta, d_out.sum(axis=0))
    assert (layer_norm_jvp(x, gamma, dx, d_gamma, d_beta) == d_beta).all()


def test_constant_row_in_layer_norm_gives_beta_and_a_gradient_with_inv_1000():
    rng = np.random.default_rng(12)
    x = rng.standard_normal((4, 8))
    x[1], x[3] = 0.375, -2.25  # exact in binary, and so are their means of 8
    gamma, beta, d_gamma, d_beta = rng.standard_normal((4, 8))
    d_out, dx = rng.standard_normal((2, 4, 8))
    y = layer_norm(x, gamma, beta)
    assert (y[[1, 3]] == beta).all()
    assert (y[[0, 2]] != beta).all()
    w = d_out * gamma
    d_x, got_gamma, _ = layer_norm_backward(x, gamma, d_out)
    assert_close(d_x[[1, 3]], 1000 * (w - w.mean(1, keepdims=True))[[1, 3]], 1e-12)
    varied, _, _ = layer_norm_backward(x[[0, 2]], gamma, d_out[[0, 2]])
    assert_close(d_x[[0, 2]], varied, 1e-14)
    xhat = (y - beta) / gamma
    assert_close(got_gamma, (d_out * xhat).sum(0), 1e-12)  # the constant rows add nothing
    tangent = layer_norm_jvp(x, gamma, dx, d_gamma, d_beta)
    expected = 1000 * (dx - dx.mean(1, keepdims=True)) * gamma + d_beta
    assert_close(tangent[[1, 3]], expected[[1, 3]], 1e-12)


def test_constant_row_in_layer_norm_encloses_beta_in_the_real_world():
    rng = np.random.default_rng(13)
    x = np.repeat(rng.standard_normal((3, 1)), 7, axis=1)
    gamma, beta = rng.standard_normal((2, 7))
    y = layer_norm(to_reals(x), to_reals(gamma), to_reals(beta))
    assert encloses(y, np.tile(beta, (3, 1))).all()


# ---- masks and large scores --------------------------------------------------------------------


def blocked_mask():
    """Several keys allowed in rows 0 and 2, none in row 1."""
    return np.array([[True, False, True, True], [False] * 4, [False, True, True, False]])


@pytest.mark.parametrize("world", WORLDS)
def test_fully_blocked_mask_row_has_zero_weights_output_and_derivatives(world):
    rng = np.random.default_rng(14)
    mask = blocked_mask()
    q, dq = (into(world, rng.standard_normal((2, 3, 5))) for _ in range(2))
    k, dk = (into(world, rng.standard_normal((2, 4, 5))) for _ in range(2))
    v, dv = (into(world, rng.standard_normal((2, 4, 6))) for _ in range(2))
    d_out = into(world, rng.standard_normal((2, 3, 6)))

    with np.errstate(all="raise"):
        weights = hard_masked_softmax(into(world, rng.standard_normal((2, 3, 4))), mask)
        out = scaled_dot_product_attention(q, k, v, mask)
        d_q, d_k, d_v = scaled_dot_product_attention_backward(q, k, v, d_out, mask)
        tangent = scaled_dot_product_attention_jvp(q, k, v, dq, dk, dv, mask)
    assert all_zero(weights[:, ~mask])
    assert none_zero(weights[:, mask])
    for result in (out, tangent, d_q):
        assert all_zero(result[:, 1])
        assert none_zero(result[:, [0, 2]])

    # What arrives at the blocked row goes nowhere.
    silent = d_out.copy()
    silent[:, 1] = silent[:, 0]
    _, same_k, same_v = scaled_dot_product_attention_backward(q, k, v, silent, mask)
    assert same(same_k, d_k)
    assert same(same_v, d_v)


@pytest.mark.parametrize("world", WORLDS)
def test_mask_that_blocks_everything_makes_attention_and_its_derivatives_zero(world):
    rng = np.random.default_rng(15)
    mha = into(world, random_mha(rng, D=5, head_count=2))
    x, d_out = (into(world, rng.standard_normal((3, 5))) for _ in range(2))
    mask = all_false_mask(3, 3)
    grads, d_x = multi_head_attention_backward(mha, x, d_out, mask)
    for result in (multi_head_attention(mha, x, mask), d_x, *grads.to_flat().values()):
        assert all_zero(result)
    assert all_zero(multi_head_attention_jvp(mha, x, mha, d_out, mask))


@pytest.mark.parametrize("size", [710.0, 1e4, 1e300])
def test_masked_logits_beyond_709_are_stable(size):
    rng = np.random.default_rng(16)
    mask = blocked_mask()
    small = rng.standard_normal((3, 4))
    scores = small + 1024.0  # a shift leaves the weights as they are, but for rounding
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        assert_close(hard_masked_softmax(scores, mask), hard_masked_softmax(small, mask), 1e-12)
        assert_close(softmax(scores), softmax(small), 1e-12)
        huge = hard_masked_softmax(np.where(mask, small * size, size), mask)  # blocked ones too
    assert np.isfinite(huge).all()
    assert_close(huge.sum(1), np.array([1.0, 0.0, 1.0]), 1e-15)


def test_blocked_score_larger_than_every_allowed_one_does_not_swamp_them():
    mask = np.array([[True, True, False], [True, False, True]])
    small = np.random.default_rng(17).standard_normal((2, 3))
    swamped = np.where(mask, small, 5000.0)
    assert (hard_masked_softmax(swamped, mask) == hard_masked_softmax(small, mask)).all()


@pytest.mark.parametrize(("n_q", "n_k"), [(0, 3), (3, 0), (0, 0)])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_without_a_query_or_a_key_is_refused(n_q, n_k, masked):
    rng = np.random.default_rng(18)
    q, k, v = (rng.standard_normal((2, n, 4)) for n in (n_q, n_k, n_k))
    mask = np.ones((n_q, n_k), bool) if masked else None
    message = f"at least one query and one key, got {n_q} and {n_k}"
    with pytest.raises(InvalidArray, match=message):
        scaled_dot_product_attention(q, k, v, mask)
    with pytest.raises(InvalidArray, match=message):
        scaled_dot_product_attention_backward(q, k, v, q, mask)
    with pytest.raises(InvalidArray, match=message):
        scaled_dot_product_attention_jvp(q, k, v, q, k, v, mask)


# ---- values that upstream asserts, presets, sizes ----------------------------------------------


def test_upstream_value_of_split_heads():
    numbers = np.arange(8.0).reshape(2, 4)
    assert split_heads(numbers, 2).ravel().tolist() == [0, 1, 4, 5, 2, 3, 6, 7]


def test_upstream_value_of_hard_masked_softmax():
    scores = np.array([[1000.0, -1000.0], [3.0, 4.0]])
    mask = np.array([[False, True], [False, False]])
    assert hard_masked_softmax(scores, mask).tolist() == [[0, 1], [0, 0]]


def test_presets_are_well_formed_and_have_leans_values():
    base = ViTConfig(
        patch_h=16, patch_w=16, stride=16, padding=0, embed_dim=768, hidden_dim=3072,
        head_count=12, num_layers=12, num_classes=1000,
    )  # fmt: skip
    large = dataclasses.replace(base, embed_dim=1024, hidden_dim=4096, head_count=16, num_layers=24)
    assert vit_base_patch16_config == ViTConfig() == base
    assert vit_large_patch16_config == large
    stacks = [dataclasses.astuple(c) for c in (transformer_base_config, transformer_big_config)]
    assert stacks == [(8, 512, 2048, 6), (16, 1024, 4096, 6)]
    for preset in (base, large, transformer_base_config, transformer_big_config):
        assert preset.violations() == ()
    base.check_well_formed()


@pytest.mark.parametrize(
    ("config", "cls", "count"),
    [
        (vit_base_patch16_config, False, 86_527_720),
        (vit_base_patch16_config, True, 86_529_256),
        (vit_large_patch16_config, False, 304_224_232),
        (vit_large_patch16_config, True, 304_226_280),
    ],
)
def test_parameter_counts_of_the_presets_at_3_x_224_x_224(config, cls, count):
    shapes = parameter_shapes(config, in_channels=3, height=224, width=224, cls=cls)
    assert sum(math.prod(shape) for shape in shapes.values()) == count
