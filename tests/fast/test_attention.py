"""Every attention is the specification's, under the same contract.

Lean's theorems `flashAttention_eq_scaledDotProductAttention` and
`flashAttentionBackward_eq_scaledDotProductAttentionBackward` say that tiling changes nothing. In
Lean they hold by definition, since the tile sizes are ignored; here they are properties of kernels.
"""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.adapters import small_case
from support.attention import (
    BATCH,
    HEADS,
    KEYS,
    NAMES,
    QUERIES,
    assert_attention_conforms,
    draw,
)
from support.compare import assert_close
from vitfast import from_flat, make_tokamax_attention
from vitfast.attention import PlainAttention, attention_weights
from vitfast.implementation import quick_options
from vitfast.tokamax_attention import (
    KNOWN_IMPLEMENTATIONS,
    NoWorkingAttention,
    working_implementations,
)
from vitspec import InvalidArray
from vitspec.layers.attention import attention_weights as spec_attention_weights
from vitspec.layers.attention import causal_mask, scaled_dot_product_attention_jvp

ATTENTIONS = {
    "plain": PlainAttention(),
    "plain, derived": PlainAttention(custom_vjp=False),
    "xla": make_tokamax_attention("xla"),
    "xla_chunked": make_tokamax_attention("xla_chunked"),
}
MASK_SHAPES = {
    "for each image": (BATCH, 1, QUERIES, KEYS),
    "for each image and head": (BATCH, HEADS, QUERIES, KEYS),
    "of keys": (BATCH, 1, 1, KEYS),
    "of queries": (1, HEADS, QUERIES, 1),
}
BY_HAND = ("plain", "xla", "xla_chunked")
"""Those with a backward of their own."""

seeds = st.integers(0, 2**32 - 1)
attentions = pytest.mark.parametrize("attention", ATTENTIONS.values(), ids=ATTENTIONS)
by_hand = pytest.mark.parametrize("attention", [ATTENTIONS[n] for n in BY_HAND], ids=BY_HAND)


@functools.cache
def output_and_vjp(attention):
    """(query, key, value, cotangent, mask) -> (out, d_query, d_key, d_value), compiled."""

    def run(query, key, value, cotangent, mask):
        out, pullback = jax.vjp(lambda *qkv: attention(*qkv, mask), query, key, value)
        return out, *pullback(cotangent)

    return jax.jit(run, compiler_options=quick_options())


def assert_conforms(attention, arrays, mask=None, precision="float64"):
    """Graded by the kit, and in float64 within 1e-12 besides."""
    with jax.enable_x64(precision == "float64"):
        given_arrays = [jnp.asarray(array, precision) for array in arrays]
        found = output_and_vjp(attention)(*given_arrays, mask)
        assert {str(array.dtype) for array in found} == {precision}
        found = [np.asarray(array) for array in found]
    assert_attention_conforms(found, arrays, mask, precision)
    return dict(zip(NAMES, found, strict=True))


# ---- the function --------------------------------------------------------------------------------


@attentions
@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16", "float16"])
@given(seed=seeds, scale=st.sampled_from([1e-3, 1.0, 2.0, 8.0]))
@settings(max_examples=6)
def test_it_is_scaled_dot_product_attention(attention, precision, seed, scale):
    """From all but equal weights to a softmax that has all but one choice."""
    assert_conforms(attention, draw(seed, precision, scale=scale), precision=precision)


@by_hand
@pytest.mark.parametrize("shape", MASK_SHAPES.values(), ids=MASK_SHAPES)
@given(seed=seeds, allowed=st.floats(0.1, 0.9))
@settings(max_examples=4)
def test_it_is_scaled_dot_product_attention_under_any_mask(attention, shape, seed, allowed):
    mask = np.random.default_rng(seed).random(shape) < allowed
    mask[0, -1, -1] = False  # always at least one query that may attend to nothing
    assert_conforms(attention, draw(seed), mask)


@by_hand
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@given(seed=seeds, allowed=st.floats(0.1, 0.9))
@settings(max_examples=4)
def test_masks_count_in_every_precision(attention, precision, seed, allowed):
    mask = np.random.default_rng(seed).random((BATCH, 1, QUERIES, KEYS)) < allowed
    mask[0, 0, -1] = False
    assert_conforms(attention, draw(seed, precision), mask, precision)


@by_hand
@given(seed=seeds)
@settings(max_examples=4)
def test_it_is_scaled_dot_product_attention_when_causal(attention, seed):
    assert_conforms(attention, draw(seed, queries=KEYS), causal_mask(KEYS)[None, None])


@attentions
@given(seed=seeds, row=st.integers(0, QUERIES - 1))
@settings(max_examples=4)
def test_a_query_without_any_allowed_key_gives_exactly_0_and_gets_exactly_0(attention, seed, row):
    """Tokamax returns the mean of the values for such a query: its weights are all equal."""
    mask = np.random.default_rng(seed).random((1, 1, QUERIES, KEYS)) < 0.7
    mask[..., row, :] = False
    found = assert_conforms(attention, draw(seed), mask)
    assert not found["out"][:, row].any()
    assert not found["d_query"][:, row].any()


@attentions
def test_no_query_at_all_may_attend(attention):
    found = assert_conforms(attention, draw(0), np.zeros((1, 1, QUERIES, KEYS), bool))
    assert not any(array.any() for array in found.values())


@attentions
def test_heads_of_width_one_over_many_tokens_compile(attention):
    """On a product over an axis of one, XLA's compiler for the CPU aborts the process."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((1, 48, 2, 1)) for _ in range(4)]
    assert_conforms(attention, arrays)


@given(seed=seeds, masked=st.booleans())
@settings(max_examples=10)
def test_the_plain_attention_and_tokamax_s_agree(seed, masked):
    mask = None
    if masked:
        mask = np.random.default_rng(seed).random((BATCH, HEADS, QUERIES, KEYS)) < 0.6
    with jax.enable_x64(True):
        plain, xla = (
            output_and_vjp(ATTENTIONS[name])(*map(jnp.asarray, draw(seed)), mask)
            for name in ("plain", "xla")
        )
        for name, one, other in zip(NAMES, plain, xla, strict=True):
            assert_close(one, other, 1e-12, name)


@given(seed=seeds, masked=st.booleans())
@settings(max_examples=5)
def test_attention_weights_are_the_specification_s(seed, masked):
    query, key, *_ = draw(seed)
    shape = (BATCH, HEADS, QUERIES, KEYS)
    mask = np.random.default_rng(seed).random(shape) < (0.5 if masked else 1.0)
    with jax.enable_x64(True):
        found = np.asarray(attention_weights(*map(jnp.asarray, (query, key, mask))))
    truth = [
        spec_attention_weights(query[b, :, h], key[b, :, h], mask[b, h])
        for b, h in np.ndindex(BATCH, HEADS)
    ]
    assert_close(found, np.reshape(truth, shape), 1e-12)


@given(seed=seeds, masked=st.booleans())
@settings(max_examples=5)
def test_without_the_backward_by_hand_forward_mode_is_the_specification_s(seed, masked):
    arrays, tangents = draw(seed)[:3], draw(seed + 1)[:3]
    mask = np.random.default_rng(seed).random((QUERIES, KEYS)) < (0.5 if masked else 1.0)
    truth = [
        scaled_dot_product_attention_jvp(*(a[b, :, h] for a in (*arrays, *tangents)), mask)
        for b, h in np.ndindex(BATCH, HEADS)
    ]
    truth = np.reshape(truth, (BATCH, HEADS, *truth[0].shape)).swapaxes(1, 2)
    with jax.enable_x64(True):
        found = jvp_of_plain(arrays, tangents, mask[None, None])
        assert_close(found, truth, 1e-12)


@jax.jit
def jvp_of_plain(arrays, tangents, mask):
    attention = ATTENTIONS["plain, derived"]
    return jax.jvp(lambda *qkv: attention(*qkv, mask), arrays, tangents)[1]


@by_hand
def test_with_a_backward_by_hand_jax_refuses_forward_mode(attention):
    x = (jnp.ones((1, 3, 1, 2)),) * 3
    with pytest.raises(TypeError, match="forward-mode autodiff"):
        jax.jvp(attention, x, x)


# ---- the contract --------------------------------------------------------------------------------


@attentions
@pytest.mark.usefixtures("without_type_checks")
def test_an_additive_mask_is_refused(attention):
    query = jnp.ones((1, 2, 1, 3))
    with pytest.raises(InvalidArray, match="expected booleans, True = may attend, got float32"):
        attention(query, query, query, jnp.zeros((1, 1, 2, 2)))


def test_unknown_names_are_refused_before_any_work_with_those_that_are_known_and_that_run_here():
    message = (
        r"unknown 'xlla', 'flash'; expected one or more of .*'triton'.*'xla_chunked', 'xla', "
        r"or None; here run 'xla_chunked', 'xla'"
    )
    with pytest.raises(ValueError, match=message):
        make_tokamax_attention(["xla", "xlla", "flash"])
    with pytest.raises(ValueError, match="empty sequence; expected one or more of"):
        make_tokamax_attention([])


def test_what_runs_here_is_known():
    assert set(working_implementations()) == {"xla", "xla_chunked"}


@pytest.mark.parametrize("names", ["triton", ["mosaic", "triton", "cudnn", "mosaic_tpu"]])
def test_if_none_runs_here_the_error_says_why_and_what_does(names):
    attention = make_tokamax_attention(names)
    message = "none of .*triton.* runs on this cpu .*Not supported on cpu.*here run .*xla"
    query = jnp.ones((1, 4, 2, 8))
    with pytest.raises(NoWorkingAttention, match=message):
        attention(query, query, query)
    with pytest.raises(NoWorkingAttention, match=message):
        attention.which(query.shape)


@pytest.mark.parametrize(
    ("names", "runs"),
    [
        ("xla", "xla"),
        (["xla", "xla_chunked"], "xla"),
        (["xla_chunked", "xla"], "xla_chunked"),
        (["mosaic", "triton", "xla_chunked"], "xla_chunked"),
        (["cudnn", "xla", "triton"], "xla"),
    ],
)
def test_the_first_that_runs_here_runs_and_says_so(names, runs):
    attention = make_tokamax_attention(names)
    assert attention.which((2, 600, 1, 8), jnp.bfloat16, keys=700, masked=True) == runs
    # Not only says so: with more than a chunk of queries, the two do not round alike.
    query, key = (jnp.asarray(draw(n, "float32", n, n)[0]) for n in (600, 700))
    assert np.array_equal(attention(query, key, key), make_tokamax_attention(runs)(query, key, key))


def test_an_implementation_that_does_not_take_the_type_is_passed_over():
    """The chunked one fails in float64 from 1024 keys on, with a TypeError from inside a scan."""
    attention = make_tokamax_attention(["xla_chunked", "xla"])
    with jax.enable_x64(True):
        assert attention.which((1, 2, 1, 8), jnp.float64, keys=1023) == "xla_chunked"
        assert attention.which((1, 2, 1, 8), jnp.float64, keys=1024) == "xla"
        with pytest.raises(NoWorkingAttention, match=r"xla_chunked runs on this cpu .* of float64"):
            make_tokamax_attention("xla_chunked").which((1, 2, 1, 8), jnp.float64, keys=1024)
    assert attention.which((1, 2, 1, 8), jnp.float32, keys=1024) == "xla_chunked"


@pytest.mark.parametrize(
    ("platform", "names"),
    [
        ("gpu", ("mosaic", "triton", "xla")),
        ("tpu", ("mosaic_tpu", "xla")),
        ("cpu", ("xla",)),
        ("a new one", ("xla",)),
    ],
)
def test_the_default_suits_the_platform(monkeypatch, platform, names):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert make_tokamax_attention().implementations == names
    assert set(names) <= set(KNOWN_IMPLEMENTATIONS)


def test_attentions_with_the_same_implementations_are_equal_so_that_programs_are_shared():
    assert make_tokamax_attention("xla") == make_tokamax_attention(["xla"])
    assert hash(make_tokamax_attention("xla")) == hash(make_tokamax_attention(["xla"]))
    assert make_tokamax_attention("xla") != make_tokamax_attention("xla_chunked")
    assert PlainAttention() == PlainAttention()
    assert PlainAttention() != PlainAttention(custom_vjp=False)


def test_any_function_of_the_signature_is_an_attention_of_a_model():
    calls = []

    def mine(query, key, value, mask=None):
        calls.append(query.shape)
        scores = jnp.einsum("bihd,bjhd->bhij", query, key) / query.shape[-1] ** 0.5
        return jnp.einsum("bhij,bjhd->bihd", jax.nn.softmax(scores), value)

    case = small_case()
    flat, images = case.model().to_flat(), case.images().transpose(0, 2, 3, 1)
    with jax.enable_x64(True):
        found = from_flat(case.config, flat, **case.size, attention_fn=mine)(jnp.asarray(images))
        truth = [case.model().forward(image) for image in case.images()]
        assert_close(found, np.stack(truth), 1e-12)
    assert calls[0] == (2, 16, 3, 4)  # batch, tokens, heads, head_dim


def test_tokamax_leaves_the_command_line_of_the_program_alone():
    """Tokamax up to 0.0.12 parses it with absl on the first call and dies of unknown options."""
    program = (
        "import jax.numpy as jnp; from vitfast import make_tokamax_attention; "
        "x = jnp.ones((1, 2, 1, 3)); print(make_tokamax_attention('xla')(x, x, x).sum())"
    )
    options = ["-q", "-x", "--steps", "3", "--verbosity=loud"]
    done = subprocess.run(
        [sys.executable, "-c", program, *options], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == 6.0


# ---- long sequences ------------------------------------------------------------------------------


def temporary_bytes(attention, tokens):
    """What a program of the output and its gradients keeps besides these, for one head of 64."""
    x = jax.ShapeDtypeStruct((1, tokens, 1, 64), jnp.float32)
    compiled = output_and_vjp(attention).lower(x, x, x, x, None).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("name", ["xla_chunked", "xla", "plain"])
def test_chunks_keep_memory_near_linear_in_the_number_of_tokens(name):
    short, long = (temporary_bytes(ATTENTIONS[name], tokens) for tokens in (1024, 4096))
    scores = 4 * 4096**2
    if name == "xla_chunked":
        assert long < 6 * short
        assert long < scores
    else:
        assert long > 12 * short
        assert long >= scores


def test_over_a_thousand_tokens_the_chunked_attention_is_the_specification_s():
    """Two chunks of queries and keys, the second not whole."""
    rng = np.random.default_rng(0)
    lengths = (600, 1100, 1100, 600)
    arrays = [rng.standard_normal((1, n, 1, 4)).astype(np.float32) for n in lengths]
    mask = rng.random((1, 1, 600, 1100)) < 0.5
    mask[0, 0, [3, 550]] = False
    found = assert_conforms(ATTENTIONS["xla_chunked"], arrays, mask, "float32")
    assert not found["out"][0, [3, 550]].any()
