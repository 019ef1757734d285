"""One training step: the specification's gradient, once compiled, in place."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from support.compare import assert_close, assert_flat_close
from vitfast import ViT, cross_entropy, from_flat, make_train_step, to_flat


def batch(case, seed, count=4, dtype=np.float64):
    rng = np.random.default_rng(seed)
    height, width, channels = case.height, case.width, case.in_channels
    images = rng.standard_normal((count, height, width, channels)).astype(dtype)
    return images, rng.integers(0, case.config.num_classes, count)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=3)
def test_a_step_of_sgd_subtracts_the_specification_s_gradient(cases, seed):
    case = cases["the same with CLS"]
    spec_model, (images, labels) = case.model(), batch(case, seed)
    flat = spec_model.to_flat()
    losses, gradients = [], []
    for image, label in zip(images, labels, strict=True):
        channels_first = image.transpose(2, 0, 1)
        logits = spec_model.forward(channels_first)
        softmax = np.exp(logits - np.logaddexp.reduce(logits))
        losses.append(-np.log(softmax[label]))
        d_logits = (softmax - np.eye(len(logits))[label]) / len(images)
        gradients.append(spec_model.backward(channels_first, d_logits)[0].to_flat())
    expected = {name: flat[name] - 0.1 * sum(g[name] for g in gradients) for name in flat}
    with jax.enable_x64(True):
        model = from_flat(case.config, flat, **case.size, pool="cls")
        optimizer = optax.sgd(0.1)
        model, _, loss = make_train_step(optimizer)(model, optimizer.init(model), images, labels)
        assert_close(np.asarray(loss), np.mean(losses), 1e-12, "loss")
        assert_flat_close(to_flat(model), expected, 1e-12)


@pytest.mark.parametrize("scan_layers", [True, False], ids=["scan", "loop"])
def test_steps_are_compiled_once_and_reuse_the_memory_of_the_last(cases, scan_layers):
    case = cases["several heads, layers and channels"]
    model = ViT(
        case.config, **case.size, dtype="bfloat16", scan_layers=scan_layers, rngs=nnx.Rngs(0)
    )
    optimizer = optax.adamw(1e-2)
    state, step = optimizer.init(model), make_train_step(optimizer)
    losses = []
    for _ in range(6):
        given = jax.tree.leaves((model, state))
        model, state, loss = step(model, state, *batch(case, seed=1, dtype=np.float32))
        losses.append(float(loss))
        assert all(leaf.is_deleted() for leaf in given if leaf.ndim)
    assert step._cache_size() == 1
    assert losses[-1] < 0.7 * losses[0]
    assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype("float32")}


@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.1, 1.0, 100.0]))
@settings(max_examples=20)
def test_cross_entropy_is_minus_the_log_of_the_softmax(seed, scale):
    rng = np.random.default_rng(seed)
    logits, labels = scale * rng.standard_normal((3, 5)), rng.integers(0, 5, 3)
    with jax.enable_x64(True):
        loss = float(cross_entropy(jnp.asarray(logits), jnp.asarray(labels)))
    total = np.logaddexp.reduce(logits, axis=1)
    assert_close(loss, np.mean(total - logits[range(3), labels]), 1e-13, "loss")


def test_cross_entropy_of_low_precision_logits_is_taken_in_float32():
    """In bfloat16, a sum over a thousand classes would have two digits."""
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((4, 1000)), jnp.bfloat16)
    labels = jnp.arange(4)
    loss = cross_entropy(logits, labels)
    assert loss.dtype == jnp.float32
    exact = np.asarray(logits, np.float64)
    total = np.logaddexp.reduce(exact, axis=1)
    assert_close(np.asarray(loss), np.mean(total - exact[range(4), range(4)]), 1e-6, "loss")
