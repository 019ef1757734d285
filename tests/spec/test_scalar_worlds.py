"""The scalar worlds: nothing is promoted or lost in silence, and all worlds are one function.

A float32 call that computes in float64 hides the very rounding that it should show; an object array
with one Python integer in it is no longer an enclosure. Both look right in a test of values.
"""

import inspect
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.compare import assert_close
from vitspec import (
    EPSILON,
    ViTClsSpec,
    ViTConfig,
    ViTSpec,
    distance_bound,
    encloses,
    from_reals,
    geometry,
    radius,
    scalars,
    to_reals,
)
from vitspec.layers import (
    activation,
    attention,
    conv2d,
    feed_forward,
    linear,
    multi_head_attention,
    normalization,
    positional_encoding,
)
from vitspec.models import tokens, transformer
from vitspec.records import Record
from vitspec.testing.strategies import cases, seeds

flint = pytest.importorskip("flint")
arb = flint.arb

FLOATS = ["float32", "float64", "longdouble"]
WORLDS = [*FLOATS, "complex128", "clongdouble", "object"]
MODULES = [
    activation, attention, conv2d, feed_forward, linear, multi_head_attention, normalization,
    positional_encoding, tokens, transformer,
]  # fmt: skip


@pytest.fixture
def precision():
    """Put python-flint's working precision back: `to_reals` only raises it."""
    before = flint.ctx.prec
    yield
    flint.ctx.prec = before


def into(world, x):
    return to_reals(x) if world == "object" else x.astype(world)


def arrays_in(value):
    """Every array inside a result: of records, tuples and traces too."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, Record):
        yield from value.to_flat().values()
    elif isinstance(value, tuple):
        for item in value:
            yield from arrays_in(item)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from arrays_in(getattr(value, name))


def assert_all_in(world, value):
    """Require that every array is of the world, and that an object array holds only balls."""
    for array in arrays_in(value):
        assert array.dtype == np.dtype(world)
        if world == "object":
            strangers = {type(item).__name__ for item in array.flat} - {"arb"}
            assert not strangers, strangers


# ---- every public function of the layers, at random shapes, empty ones included ----------------


class Draws:
    """Random arrays and records of one world; the same numbers in every world."""

    def __init__(self, world, seed):
        self.world, self.rng = world, np.random.default_rng(seed)

    def __call__(self, *shape):
        return into(self.world, self.rng.standard_normal(shape))

    def mask(self, *shape):
        return self.rng.random(shape) < 0.7


def call_activation(a, s):
    z, g = a(s.n, s.F), a(s.n, s.F)
    yield activation.relu(z)
    yield activation.relu_deriv(z)
    yield activation.relu_backward(z, g)
    yield activation.relu_jvp(z, g)
    x, d = a(s.H, s.n, s.F), a(s.H, s.n, s.F)
    yield activation.softmax(x)
    yield activation.softmax_backward(x, d)
    yield activation.softmax_jvp(x, d)
    yield activation.softmax_backward_from_weights(x, d)
    yield activation.hard_masked_softmax(a(s.H, s.n, s.D), a.mask(s.n, s.D))


def call_attention(a, s):
    q, k, v = a(s.H, s.n, s.I), a(s.H, s.D, s.I), a(s.H, s.D, s.F)
    dq, dk, dv, g = a(*q.shape), a(*k.shape), a(*v.shape), a(s.H, s.n, s.F)
    for mask in (None, a.mask(s.n, s.D)):
        yield attention.attention_weights(q, k, mask)
        yield attention.scaled_dot_product_attention(q, k, v, mask)
        yield attention.scaled_dot_product_attention_backward(q, k, v, g, mask)
        yield attention.scaled_dot_product_attention_jvp(q, k, v, dq, dk, dv, mask)


def call_conv2d(a, s):
    make = conv2d.Conv2DSpec
    spec = make(s.stride, s.padding, a(s.D, s.C, s.ph, s.pw), a(s.D))
    tangent = make(s.stride, s.padding, a(s.D, s.C, s.ph, s.pw), a(s.D))
    x, dx = a(s.C, s.h, s.w), a(s.C, s.h, s.w)
    y = conv2d.conv2d(spec, x)
    g = a(*y.shape)
    yield y
    yield conv2d.conv2d_kernel_deriv(spec, x, g)
    yield conv2d.conv2d_bias_deriv(g)
    yield conv2d.conv2d_input_deriv(spec, x, g)
    yield conv2d.conv2d_backward(spec, x, g)
    yield conv2d.conv2d_jvp(spec, x, tangent, dx)
    yield geometry.unpad(geometry.pad(x, s.padding), s.padding)


def call_linear(a, s):
    spec, tangent = (linear.LinearSpec(a(s.n, s.F), a(s.n)) for _ in range(2))
    x, dx = a(s.F), a(s.F)
    yield linear.linear(spec, x)
    yield linear.linear_backward(spec, x, a(s.n))
    yield linear.linear_jvp(spec, x, tangent, dx)


def make_mha(a, s):
    weights = (a(s.D, s.H * s.d), a(s.D, s.H * s.d), a(s.D, s.H * s.d), a(s.H * s.d, s.D))
    return multi_head_attention.MultiHeadAttention(s.H, *weights)


def make_ffn(a, s):
    return feed_forward.FeedForward(a(s.D, s.F), a(s.F, s.D), a(s.F), a(s.D))


def call_multi_head_attention(a, s):
    mha, tangent, x, dx, g = make_mha(a, s), make_mha(a, s), a(s.n, s.D), a(s.n, s.D), a(s.n, s.D)
    for mask in (None, a.mask(s.n, s.n)):
        yield multi_head_attention.multi_head_attention(mha, x, mask)
        yield multi_head_attention.multi_head_attention_trace(mha, x, mask)
        yield multi_head_attention.multi_head_attention_backward(mha, x, g, mask)
        yield multi_head_attention.multi_head_attention_jvp(mha, x, tangent, dx, mask)
    heads = multi_head_attention.split_heads(a(s.n, s.H * s.d), s.H)
    yield heads
    yield multi_head_attention.combine_heads(heads)


def call_feed_forward(a, s):
    ffn, tangent, x, dx, g = make_ffn(a, s), make_ffn(a, s), a(s.n, s.D), a(s.n, s.D), a(s.n, s.D)
    yield feed_forward.feed_forward(ffn, x)
    yield feed_forward.feed_forward_trace(ffn, x)
    yield feed_forward.feed_forward_backward(ffn, x, g)
    yield feed_forward.feed_forward_jvp(ffn, x, tangent, dx)


def call_normalization(a, s):
    x, dx, g = a(s.n, s.D), a(s.n, s.D), a(s.n, s.D)
    yield normalization.layer_norm(x, a(s.D), a(s.D))
    yield normalization.layer_norm_backward(x, a(s.D), g)
    yield normalization.layer_norm_jvp(x, a(s.D), dx, a(s.D), a(s.D))


def call_positional_encoding(a, s):
    spec, tangent = (positional_encoding.PositionalEncodingSpec(a(s.n, s.D)) for _ in range(2))
    yield positional_encoding.add_positional_encoding(spec, a(s.n, s.D))
    yield positional_encoding.add_positional_encoding_backward(spec, a(s.n, s.D))
    yield positional_encoding.add_positional_encoding_jvp(spec, tangent, a(s.n, s.D))


def call_tokens(a, s):
    rows = tokens.grid_to_tokens(a(s.D, s.F, s.n))
    yield rows
    yield tokens.tokens_to_grid(rows, s.F, s.n)
    yield tokens.prepend_cls(a(s.D), rows)
    yield tokens.prepend_cls_backward(a(s.n, s.D))
    yield tokens.mean_pool(a(s.n, s.D))
    yield tokens.mean_pool_backward(a(s.D), s.n)
    yield tokens.cls_pool(a(s.n, s.D))
    yield tokens.cls_pool_backward(a(s.D), s.n)


def call_transformer(a, s):
    def layer():
        norms = (a(s.D), a(s.D), a(s.D), a(s.D))
        return transformer.TransformerEncoderLayer(make_mha(a, s), make_ffn(a, s), *norms)

    one, tangent, x, dx, g = layer(), layer(), a(s.n, s.D), a(s.n, s.D), a(s.n, s.D)
    yield transformer.encoder_layer(one, x)
    yield transformer.encoder_layer_trace(one, x)
    yield transformer.encoder_layer_backward(one, x, g)
    yield transformer.encoder_layer_jvp(one, x, tangent, dx)
    stack, direction = (
        transformer.TransformerEncoder(tuple(layer() for _ in range(s.L))) for _ in range(2)
    )
    yield transformer.encoder(stack, x)
    yield transformer.encoder_trace(stack, x)
    yield transformer.encoder_backward(stack, x, g)
    yield transformer.encoder_jvp(stack, x, direction, dx)


CALLS = {
    name.removeprefix("call_"): call
    for name, call in list(globals().items())
    if name.startswith("call_")
}


class Shapes:
    """Named sizes."""

    def __init__(self, **sizes):
        self.__dict__.update(sizes)

    def __repr__(self):
        return f"Shapes({self.__dict__})"


def shapes(*, least=0, least_width=1):
    """Sizes of layers; `least` is that of the inner ones, which may be empty."""

    def size(low, high):
        return st.integers(low, high)

    return st.builds(
        Shapes,
        n=size(1, 3), D=size(least_width, 4), F=size(least, 3), H=size(1, 3), d=size(least, 2),
        I=size(least, 3), L=size(0, 2), C=size(1, 2), h=size(least, 4), w=size(least, 4),
        ph=size(1, 3), pw=size(1, 3), stride=size(least, 3), padding=size(0, 2),
    )  # fmt: skip


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", CALLS)
@given(shapes(), seeds)
@settings(max_examples=25)
def test_layers_stay_in_the_world_of_their_arguments(name, world, s, seed):
    for result in CALLS[name](Draws(world, seed), s):
        assert_all_in(world, result)


def test_every_public_function_of_the_layers_is_called_here():
    text = Path(__file__).read_text()
    for module in MODULES:
        short = module.__name__.split(".")[-1]
        for name, function in inspect.getmembers(module, inspect.isfunction):
            own = function.__module__ == module.__name__ and hasattr(function, "__wrapped__")
            if own and not name.endswith("_mask"):
                assert re.search(rf"\b{short}\.{name}\(", text), f"{short}.{name}"


def test_the_check_of_worlds_can_fail():
    with pytest.raises(AssertionError):
        assert_all_in("float32", np.ones(2))
    with pytest.raises(AssertionError, match="int"):
        assert_all_in("object", np.array([arb(1), 0], dtype=object))


def results_in(world, name, s, seed):
    results = CALLS[name](Draws(world, seed), s)
    return [array for result in results for array in arrays_in(result)]


# Width 3 and more: LayerNorm of two entries is nearly a sign, its derivative all cancellation.
regular = shapes(least=1, least_width=3)


UNITS = dict.fromkeys(CALLS, 16) | {
    # What is conditioned worse: scores into exponentials, division by a row's spread.
    "attention": 2**6, "multi_head_attention": 2**9, "normalization": 2**9, "transformer": 2**14,
}  # fmt: skip
"""Admitted error in units of the world's own rounding; all but the last are below the 2048 units
of longdouble that one of float64 is."""


@pytest.mark.parametrize(
    ("world", "real"), [("complex128", "float64"), ("clongdouble", "longdouble")]
)
@pytest.mark.parametrize("name", CALLS)
@given(regular, seeds)
@settings(max_examples=25)
def test_complex_world_without_imaginary_part_is_the_real_world_of_its_precision(
    name, world, real, s, seed
):
    pairs = zip(results_in(world, name, s, seed), results_in(real, name, s, seed), strict=True)
    for value, truth in pairs:
        assert (value.imag == 0).all()
        error = np.abs(value.real - truth).max(initial=0)
        assert error <= 2 * UNITS[name] * np.finfo(real).eps * size_of(truth)


def size_of(truth):
    """The largest entry, or 1 for what is small because its terms, of size 1, cancelled."""
    return max(np.abs(truth).max(initial=0), 1.0)


@pytest.mark.parametrize("world", ["float64", "longdouble"])
@pytest.mark.parametrize("name", CALLS)
@given(regular, seeds)
@settings(max_examples=25)
def test_floats_are_as_near_to_the_true_value_as_their_own_precision(name, world, s, seed):
    """A constant or an intermediate value of float64 in a longdouble call would show here."""
    unit = float(np.finfo(world).eps)
    pairs = zip(results_in(world, name, s, seed), results_in("object", name, s, seed), strict=True)
    for value, truth in pairs:
        error = distance_bound(truth, value).max(initial=0)
        middle = from_reals(truth)
        assert error <= UNITS[name] * unit * size_of(middle)


@pytest.mark.parametrize("name", CALLS)
@given(regular, seeds)
@settings(max_examples=25)
def test_longdouble_rounds_to_float64(name, s, seed):
    pairs = zip(
        results_in("longdouble", name, s, seed), results_in("float64", name, s, seed), strict=True
    )
    for value, narrow in pairs:
        error = np.abs(value.astype(np.float64) - narrow).max(initial=0)
        assert error <= UNITS[name] * np.finfo(np.float64).eps * size_of(narrow)


# ---- whole models ------------------------------------------------------------------------------


@pytest.mark.parametrize("world", WORLDS)
@given(cases(max_layers=2, max_extent=3))
@settings(max_examples=15)
def test_models_stay_in_the_world_of_their_arguments(world, case):
    model, tangent, image, d_image, d_logits = (
        into(world, x)
        for x in (case.model(), case.tangent(), case.image(), case.d_image(), case.d_logits())
    )
    assert_all_in(world, model)
    assert_all_in(world, model.trace(image))
    assert_all_in(world, model.forward(image))
    grads, d_x = model.backward(image, d_logits)
    assert_all_in(world, (grads, d_x, model.jvp(image, tangent, d_image)))
    assert grads.dtype == model.dtype == np.dtype(world)


@pytest.mark.parametrize("dtype", [*FLOATS, "complex128"])
@pytest.mark.parametrize("cls", [ViTSpec, ViTClsSpec])
def test_init_draws_in_the_type_asked_for(cls, dtype):
    config = ViTConfig(2, 3, 2, 1, 6, 5, 2, 2, 4)
    size = {"in_channels": 2, "height": 5, "width": 7}
    model = cls.init(config, **size, rng=np.random.default_rng(1), dtype=dtype)
    assert_all_in(dtype, model)
    wide = cls.init(config, **size, rng=np.random.default_rng(1))
    for name, leaf in model.to_flat().items():
        assert np.array_equal(leaf, wide.to_flat()[name].astype(dtype)), name


@given(cases(max_layers=2, max_extent=3, min_embed_dim=3))
@settings(max_examples=15)
def test_model_in_the_complex_world_without_imaginary_part_is_the_float64_model(case):
    model, image, d_logits = case.model(), case.image(), case.d_logits()
    complexes = model.astype(complex), image.astype(complex), d_logits.astype(complex)
    grads, d_image = model.backward(image, d_logits)
    complex_grads, complex_d_image = complexes[0].backward(*complexes[1:])
    values = [complexes[0].forward(complexes[1]), complex_d_image, *arrays_in(complex_grads)]
    truths = [model.forward(image), d_image, *arrays_in(grads)]
    for value, truth in zip(values, truths, strict=True):
        assert (value.imag == 0).all()
        assert np.abs(value.real - truth).max(initial=0) <= 1e-9 * size_of(truth)


# ---- the primitives ----------------------------------------------------------------------------


@pytest.mark.parametrize("world", WORLDS)
@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), seeds)
@settings(max_examples=25)
def test_sums_and_products_over_an_empty_axis_are_zeros_of_the_world(world, m, k, n, seed):
    a = Draws(world, seed)
    x, y = a(m, k), a(k, n)
    product = scalars.matmul(x, y)
    assert_all_in(world, product)
    assert product.shape == (m, n)
    for axis in (0, 1):
        for keep in (False, True):
            sums = scalars.total(x, axis, keepdims=keep)
            assert_all_in(world, sums)
            assert sums.shape == np.zeros((m, k)).sum(axis=axis, keepdims=keep).shape
            if x.shape[axis] == 0:
                assert all(bool(entry == 0) for entry in sums.flat)
    if k == 0:
        assert all(bool(entry == 0) for entry in product.flat)


@pytest.mark.parametrize("world", WORLDS)
def test_constants_are_of_the_world(world):
    dtype = np.dtype(world)
    for value in (
        scalars.scalar(3, dtype),
        scalars.scalar(EPSILON, dtype),
        attention.attention_scale_denom(5, dtype),
        attention.attention_scale_denom(0, dtype),
    ):
        assert type(value) is (arb if world == "object" else dtype.type)
    assert_all_in(world, (scalars.zeros((2, 3), dtype), scalars.ones((2, 3), dtype)))


@pytest.mark.usefixtures("precision")
def test_epsilon_is_the_nearest_of_each_world_and_encloses_the_decimal_in_the_real_one():
    for world in FLOATS:
        assert scalars.scalar(EPSILON, np.dtype(world)) == np.dtype(world).type("1e-6")
    assert scalars.scalar(EPSILON, np.dtype(complex)) == 1e-6
    assert scalars.scalar(EPSILON, np.dtype(np.clongdouble)) == np.longdouble("1e-6")
    ball = scalars.scalar(EPSILON, np.dtype(object))
    flint.ctx.prec += 64  # the decimal itself, in a narrower ball
    assert ball.contains(arb(flint.fmpq(1, 10**6)))
    assert not ball.contains(arb(1e-6))  # the float is another number


@pytest.mark.parametrize("world", ["complex128", "clongdouble"])
@given(st.integers(1, 6), seeds)
@settings(max_examples=25)
def test_complex_numbers_are_ordered_by_their_real_part_and_keep_their_imaginary_part(
    world, n, seed
):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((3, n)) + 1j * rng.standard_normal((3, n)) * 9).astype(world)
    assert np.array_equal(scalars.maximum_with_zero(x), np.where(x.real > 0, x, 0))
    assert np.array_equal(scalars.is_positive(x), (x.real > 0) + 0j)
    top = scalars.row_max(x)
    for row, value in zip(x, top, strict=True):
        assert value[0] == max(row, key=lambda entry: entry.real)
    assert top.dtype == x.dtype


@pytest.mark.parametrize("world", [*FLOATS, "complex128"])
def test_nan_stays_nan_in_relu(world):
    z = np.array([1.5, np.nan, -2.5]).astype(world)
    assert np.isnan(scalars.maximum_with_zero(z)).tolist() == [False, True, False]


# ---- to the reals and back ---------------------------------------------------------------------


def long_doubles(rng, n):
    """Longdoubles that use all their bits, of many sizes within float64's range."""
    low = rng.standard_normal(n).astype(np.longdouble) * np.longdouble(2) ** -55
    return (rng.standard_normal(n) + low) * np.longdouble(2) ** rng.integers(-900, 900, n)


@pytest.mark.parametrize("dtype", FLOATS)
@given(st.lists(st.integers(0, 3), max_size=3), seeds)
def test_to_reals_and_back_is_exact_and_keeps_the_shape(dtype, shape, seed):
    rng = np.random.default_rng(seed)
    numbers = long_doubles(rng, math.prod(shape))
    if dtype == "float32":
        numbers = np.ldexp(rng.standard_normal(numbers.size), rng.integers(-120, 120, numbers.size))
    x = np.asarray(numbers, dtype).reshape(shape)
    balls = to_reals(x)
    assert balls.shape == x.shape
    assert_all_in("object", balls)
    assert (radius(balls) == 0).all()
    back = from_reals(balls, dtype)
    assert back.dtype == np.dtype(dtype)
    assert np.array_equal(back, x)
    assert encloses(balls, x).all()


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=6))
def test_every_finite_float64_goes_to_the_reals_and_back(values):
    x = np.array(values, np.float64)
    assert np.array_equal(from_reals(to_reals(x)), x)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=6))
def test_every_finite_float32_goes_to_the_reals_and_back(values):
    x = np.array(values, np.float32)
    assert np.array_equal(from_reals(to_reals(x), np.float32), x)


@pytest.mark.skipif(
    np.finfo(np.longdouble).nmant == np.finfo(np.float64).nmant, reason="longdouble is float64 here"
)
def test_the_longdoubles_of_these_tests_do_not_fit_into_a_float64():
    x = long_doubles(np.random.default_rng(0), 50)
    assert (x.astype(np.float64) != x).mean() > 0.9


@pytest.mark.parametrize("text", ["1.25e400", "-1.25e400", "1.2345678901e-320", "1.5e-400"])
def test_longdoubles_beyond_the_range_of_float64_go_to_the_reals_and_back(text):
    x = np.array([np.longdouble(text)])
    with np.errstate(all="ignore"):
        assert np.array_equal(from_reals(to_reals(x), np.longdouble), x)


def test_what_an_earlier_product_left_in_memory_raises_no_flag():
    """OpenBLAS's float32 kernel for AVX-512 reads unused lanes where five numbers are summed."""
    signalling = np.full((60, 59), 0x7FA00001, np.uint32).view(np.float32)
    rng = np.random.default_rng(3)
    for _ in range(300):  # one in four meets what was left
        a, b = (rng.standard_normal(shape).astype(np.float32) for shape in [(7, 5), (5, 1)])
        with np.errstate(all="ignore"):
            np.matmul(signalling[: rng.integers(1, 60)], signalling[:59, :1])
        with np.errstate(all="raise"):
            product = scalars.matmul(a, b)
        right, size = a.astype(np.float64) @ b, np.abs(a) @ np.abs(b)
        assert (np.abs(product - right) <= 5 * np.finfo(np.float32).eps * size).all()


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinity_goes_to_the_reals_without_a_warning(value):
    (ball,) = to_reals(np.array([value]))
    assert not ball.is_finite()


def test_records_go_to_the_reals_and_back():
    config = ViTConfig(2, 3, 2, 1, 6, 5, 2, 2, 4)
    size = {"in_channels": 2, "height": 5, "width": 7}
    for cls in (ViTSpec, ViTClsSpec):
        model = cls.init(config, **size, rng=np.random.default_rng(1))
        back = from_reals(to_reals(model))
        assert type(back) is cls
        for name, leaf in model.to_flat().items():
            assert np.array_equal(back.to_flat()[name], leaf), name


@pytest.mark.parametrize(("bits", "bound"), [(128, 2.0**-75), (256, 2.0**-200)])
@pytest.mark.usefixtures("precision")
def test_balls_are_narrow_at_their_precision(bits, bound):
    config = ViTConfig(2, 3, 2, 1, 6, 5, 2, 2, 4)
    size = {"in_channels": 2, "height": 5, "width": 7}
    rng = np.random.default_rng(3)
    model = ViTClsSpec.init(config, **size, rng=rng)
    flint.ctx.prec = 64
    real = to_reals(model, bits=bits)
    image, d_logits = (to_reals(rng.standard_normal(n), bits) for n in ((2, 5, 7), 4))
    grads, d_image = real.backward(image, d_logits)
    assert radius(real.forward(image)).min() > 0  # nothing of the forward is exact
    for balls in (real.forward(image), d_image, *arrays_in(grads)):
        assert radius(balls).max() <= bound * np.abs(from_reals(balls)).max()


@pytest.mark.usefixtures("precision")
def test_to_reals_raises_the_precision_and_never_lowers_it():
    flint.ctx.prec = 80
    to_reals(np.array([0.1]), bits=100)
    assert flint.ctx.prec == 100
    to_reals(np.array([0.1]), bits=64)
    assert flint.ctx.prec == 100


# ---- comparisons that balls leave undecided ----------------------------------------------------


def wide_balls(rng, *shape):
    """Balls about normal midpoints, many of them containing 0 or overlapping; and their ends."""
    middle, width = rng.standard_normal(shape), rng.uniform(0, 1.5, shape)
    balls = np.frompyfunc(lambda m, r: arb(float(m), float(r)), 2, 1)(middle, width)
    return balls, middle, width


def points_in(rng, middle, width):
    """Points of the balls: both ends of each, then random ones."""
    for t in (-1.0, 1.0):
        yield middle + t * width * (1 - 1e-15)
    for _ in range(8):
        yield middle + rng.uniform(-1, 1, middle.shape) * width * (1 - 1e-15)


@given(seeds)
@settings(max_examples=25)
def test_relu_and_its_derivative_enclose_those_of_every_point_of_a_ball(seed):
    rng = np.random.default_rng(seed)
    balls, middle, width = wide_balls(rng, 12)
    values, slopes = activation.relu(balls), activation.relu_deriv(balls)
    backward = activation.relu_backward(balls, to_reals(np.ones(12) * 0.75))
    for point in points_in(rng, middle, width):
        assert encloses(balls, point).all()
        assert encloses(values, np.maximum(point, 0)).all()
        assert encloses(slopes, (point > 0).astype(float)).all()
        assert encloses(backward, 0.75 * (point > 0)).all()


def test_undecided_derivative_of_relu_contains_both_sides_and_decided_ones_are_exact():
    undecided = np.array([arb(0, 1), arb(0.5, 0.5), arb(1e-30, 1)], dtype=object)
    for slope in activation.relu_deriv(undecided):
        assert slope.contains(0)
        assert slope.contains(1)
    decided = np.array([arb(2, 1), arb(-2, 1), arb(0)], dtype=object)
    assert (activation.relu_deriv(decided) == np.array([1, 0, 0])).all()
    assert activation.relu(decided)[1] == 0
    assert activation.relu(decided)[0].contains(arb(2, 1))


@given(st.integers(1, 5), seeds, st.booleans())
@settings(max_examples=40)
def test_row_max_of_overlapping_balls_encloses_the_maximum_of_every_choice_of_points(
    n, seed, masked
):
    rng = np.random.default_rng(seed)
    balls, middle, width = wide_balls(rng, 4, n)
    where = rng.random((4, n)) < 0.6 if masked else None
    top = scalars.row_max(balls, where=where)
    assert top.shape == (4, 1)
    for point in points_in(rng, middle, width):
        allowed = point if where is None else np.where(where, point, -np.inf)
        truth = allowed.max(axis=1, keepdims=True)
        assert encloses(top, np.where(np.isfinite(truth), truth, 0)).all()


@given(st.integers(1, 4), seeds, st.booleans())
@settings(max_examples=25)
def test_softmax_of_wide_balls_encloses_the_softmax_of_every_choice_of_points(n, seed, masked):
    rng = np.random.default_rng(seed)
    balls, middle, width = wide_balls(rng, 3, n)
    mask = rng.random((3, n)) < 0.6

    def soft(x):
        return activation.hard_masked_softmax(x, mask) if masked else activation.softmax(x)

    wide = soft(balls)
    for point in points_in(rng, middle, width):
        narrow = soft(to_reals(point))
        assert all(a.overlaps(b) for a, b in zip(wide.flat, narrow.flat, strict=True))


@given(cases(max_layers=1, max_extent=2))
@settings(max_examples=15)
def test_model_on_a_wide_image_encloses_the_logits_of_its_points(case):
    model, image = to_reals(case.model()), case.image()
    width = 2.0**-12
    wide = np.frompyfunc(lambda m: arb(float(m), width), 1, 1)(image)
    logits, rng = model.forward(wide.reshape(image.shape)), np.random.default_rng(case.seed)
    point = image + rng.uniform(-1, 1, image.shape) * width * 0.99
    narrow = model.forward(to_reals(point))
    assert all(a.overlaps(b) for a, b in zip(logits, narrow, strict=True))


def test_encloses_and_distance_bound_see_what_is_outside():
    balls = np.array([arb(1, 0.25), arb(1, 0.25), arb(-3)], dtype=object)
    values = np.array([1.125, 1.5, -3.0])
    assert encloses(balls, values).tolist() == [True, False, True]
    bounds = distance_bound(balls, values)
    exact = np.array([0.375, 0.75, 0.0])  # to the far end of the ball
    assert (bounds >= exact).all()
    assert_close(bounds, exact, 1e-8)
