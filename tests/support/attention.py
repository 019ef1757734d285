"""Attention on batches by the specification, and the kit's verdict on whoever computes it."""

import numpy as np

from vitspec.layers.attention import (
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
)
from vitspec.testing.precision import PRECISIONS, NoisyArithmetic, rounded
from vitspec.testing.tolerance import Price, distances, grade, sizes

NAMES = ("out", "d_query", "d_key", "d_value")
BATCH, HEADS, QUERIES, KEYS, HEAD_DIM = 2, 3, 5, 7, 4


def draw(seed, precision="float64", queries=QUERIES, keys=KEYS, scale=2.0):
    """(query, key, value, cotangent): (BATCH, n, HEADS, HEAD_DIM), exact in the precision.

    With the default scale the scores are large enough for the softmax to be uneven.
    """
    rng = np.random.default_rng(seed)
    lengths = (queries, keys, keys, queries)
    arrays = [scale * rng.standard_normal((BATCH, n, HEADS, HEAD_DIM)) for n in lengths]
    return [rounded(array, PRECISIONS[precision]) for array in arrays]


def spec_attention(query, key, value, cotangent, mask=None):
    """The specification's output and cotangents by name, one batch entry and head at a time.

    The mask is Boolean, of any shape that broadcasts to (batch, heads, queries, keys).
    """
    batch, queries, heads, _ = query.shape
    if mask is not None:
        mask = np.broadcast_to(mask, (batch, heads, queries, key.shape[1]))
    results = []
    for b, h in np.ndindex(batch, heads):
        q, k, v, d_out = (array[b, :, h] for array in (query, key, value, cotangent))
        own = None if mask is None else mask[b, h]
        backward = scaled_dot_product_attention_backward(q, k, v, d_out, own)
        results.append((scaled_dot_product_attention(q, k, v, own), *backward))

    def batched(arrays):
        stacked = np.stack([np.asarray(array) for array in arrays])
        return stacked.reshape(batch, heads, *stacked.shape[1:]).swapaxes(1, 2)

    return dict(zip(NAMES, map(batched, zip(*results, strict=True)), strict=True))


def price_attention(truth, arrays, mask, precision, runs=12):
    """What the precision costs the specification itself, as in `vitspec.testing.reference`."""
    noise = {name: [] for name in NAMES}
    for run in range(runs):
        arithmetic = NoisyArithmetic(precision, np.random.default_rng(run), alike=run % 2 == 1)
        found = spec_attention(*(arithmetic.array(array) for array in arrays), mask)
        for name in NAMES:
            noise[name].append(distances(found[name], truth[name]))
    return {name: Price.of(sizes(truth[name]), noise[name], precision.u) for name in NAMES}


def assert_attention_conforms(found, arrays, mask=None, precision="float64"):
    """Grade (out, d_query, d_key, d_value) as the kit grades a model's logits and gradients.

    In float64 they must be within 1e-12 besides, relative to whole tensors.
    """
    wide = [np.asarray(array, np.float64) for array in arrays]
    truth = spec_attention(*wide, mask)
    prices = price_attention(truth, wide, mask, PRECISIONS[precision])
    for name, value in zip(NAMES, found, strict=True):
        verdict = grade(name, np.asarray(value, np.float64), truth[name], prices[name])
        assert verdict.conforms, verdict
        if precision == "float64":
            assert np.abs(value - truth[name]).max() <= 1e-12 * np.abs(truth[name]).max(), name
