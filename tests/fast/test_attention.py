"""Tokamax's attentions are the specification's.

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

from support.compare import assert_close
from vitfast import make_tokamax_attention
from vitspec import InvalidArray
from vitspec.layers.attention import (
    causal_mask,
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
)

TOLERANCE = 1e-11
BATCH, HEADS, QUERIES, KEYS, HEAD_DIM = 2, 3, 5, 7, 4

seeds = st.integers(0, 2**32 - 1)
implementations = pytest.mark.parametrize("name", ["xla", "xla_chunked"])


@functools.cache
def output_and_vjp(name):
    """(query, key, value, mask, cotangent) -> (output, cotangents), compiled."""
    attention = make_tokamax_attention(name)

    def run(query, key, value, mask, cotangent):
        out, pullback = jax.vjp(lambda *qkv: attention(*qkv, mask), query, key, value)
        return out, pullback(cotangent)

    return jax.jit(run)


def draw(seed, queries=QUERIES, keys=KEYS):
    """(query, key, value, cotangent), with scores large enough for the softmax to be uneven."""
    rng = np.random.default_rng(seed)
    lengths = (queries, keys, keys, queries)
    return [2 * rng.standard_normal((BATCH, n, HEADS, HEAD_DIM)) for n in lengths]


def truth(query, key, value, cotangent, mask):
    """The specification's (output, d_query, d_key, d_value), one batch entry and head at a time."""
    shape = (BATCH, HEADS, query.shape[1], key.shape[1])
    results = []
    for b, h in np.ndindex(BATCH, HEADS):
        q, k, v, d_out = (array[b, :, h] for array in (query, key, value, cotangent))
        own = None if mask is None else np.broadcast_to(mask, shape)[b, h]
        backward = scaled_dot_product_attention_backward(q, k, v, d_out, own)
        results.append((scaled_dot_product_attention(q, k, v, own), *backward))

    def stacked(arrays):
        return np.stack(arrays).reshape(BATCH, HEADS, *arrays[0].shape).transpose(0, 2, 1, 3)

    return [stacked(arrays) for arrays in zip(*results, strict=True)]


def assert_equals_spec(name, query, key, value, cotangent, mask):
    """Relative to whole tensors: one saturated head has next to no gradient but rounding."""
    with jax.enable_x64(True):
        out, vjp = jax.tree.map(
            np.asarray, output_and_vjp(name)(query, key, value, mask, cotangent)
        )
    names = ("out", "d_query", "d_key", "d_value")
    truths = truth(query, key, value, cotangent, mask)
    for which, fast, spec in zip(names, (out, *vjp), truths, strict=True):
        assert_close(fast, spec, TOLERANCE, which)
    return out, vjp


@implementations
@given(seed=seeds)
@settings(max_examples=20)
def test_flash_attention_equals_scaled_dot_product_attention(name, seed):
    assert_equals_spec(name, *draw(seed), mask=None)


@implementations
@given(seed=seeds, allowed=st.floats(0.1, 0.9))
@settings(max_examples=20)
def test_flash_attention_equals_scaled_dot_product_attention_under_any_mask(name, seed, allowed):
    shape = (BATCH, HEADS, QUERIES, KEYS)
    mask = np.random.default_rng(seed).random(shape) < allowed
    mask[1, 2, 3] = False  # always at least one query that may attend to nothing
    assert_equals_spec(name, *draw(seed), mask)


@implementations
@given(seed=seeds)
@settings(max_examples=5)
def test_flash_attention_equals_scaled_dot_product_attention_when_causal(name, seed):
    assert_equals_spec(name, *draw(seed, KEYS, KEYS), causal_mask(KEYS)[None, None])


@implementations
@given(seed=seeds, row=st.integers(0, QUERIES - 1))
@settings(max_examples=10)
def test_a_query_without_any_allowed_key_gives_exactly_0_and_gets_exactly_0(name, seed, row):
    mask = np.random.default_rng(seed).random((1, 1, QUERIES, KEYS)) < 0.7
    mask[..., row, :] = False
    out, (d_query, _, _) = assert_equals_spec(name, *draw(seed), mask)
    assert not out[:, row].any()
    assert not d_query[:, row].any()


def test_unknown_implementations_are_refused_before_any_work_with_the_known_ones_listed():
    message = r"unknown 'xlla', 'flash'; expected one or more of .*'triton'.*'xla'.*'xla_chunked'"
    with pytest.raises(ValueError, match=message):
        make_tokamax_attention(["xla", "xlla", "flash"])
    with pytest.raises(ValueError, match="empty sequence"):
        make_tokamax_attention([])


def test_attentions_with_the_same_implementations_are_equal_so_that_programs_are_shared():
    assert make_tokamax_attention("xla") == make_tokamax_attention(["xla"])
    assert hash(make_tokamax_attention("xla")) == hash(make_tokamax_attention(["xla"]))
    assert make_tokamax_attention("xla") != make_tokamax_attention("xla_chunked")


@pytest.mark.usefixtures("without_type_checks")
def test_an_additive_mask_is_refused():
    query = jnp.ones((1, 2, 1, 3))
    with pytest.raises(InvalidArray, match="expected booleans, True = may attend, got float32"):
        make_tokamax_attention("xla")(query, query, query, jnp.zeros((1, 1, 2, 2)))


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
