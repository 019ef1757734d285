"""The parts of training: what is minimised, by what rule, at what rate, from which parameters."""

import math
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from support.compare import assert_close, assert_flat_close
from vitfast import TrainConfig, VisionTransformer, to_flat
from vitfast.implementation import compiled
from vitfast.training import (
    Batch,
    Classification,
    MaskedImageModelling,
    loss_and_gradients,
    recipes,
    starting,
)
from vitfast.training.evaluation import hold_out, make_evaluate
from vitfast.training.objectives import masked_error, smoothed_cross_entropy
from vitfast.training.optimizers import decayed, make_optimizer, make_schedule
from vitspec.layers import losses
from vitspec.vision_transformer_config import VisionTransformerConfig

CONFIG = VisionTransformerConfig(
    image_h=4, image_w=6, in_channels=2, patch_h=2, patch_w=2, embed_dim=6, hidden_dim=8,
    head_count=3, num_layers=2, num_classes=5, layer_scale=True, mask_token=True, decoder_stride=2,
)  # fmt: skip


@given(seed=st.integers(0, 2**32 - 1), smoothing=st.sampled_from(["0", "0.1", "0.75"]))
@settings(max_examples=20)
def test_cross_entropy_is_the_specification_s(seed, smoothing):
    rng = np.random.default_rng(seed)
    logits, labels = 5 * rng.standard_normal((3, 7)), rng.integers(0, 7, 3)
    with jax.enable_x64(True):
        found = smoothed_cross_entropy(jnp.asarray(logits), labels, float(smoothing))
        for one, z, label in zip(np.asarray(found), logits, labels, strict=True):
            expected = losses.cross_entropy(z, int(label), smoothing)
            assert_close(np.asarray(one), expected, 1e-13, "loss")


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_the_masked_error_is_the_specification_s(seed):
    """On images whose last row and column of pixels fill no patch, and are not read."""
    rng = np.random.default_rng(seed)
    config = replace(CONFIG, image_h=5, image_w=7)
    pixels = rng.standard_normal((3, 5, 7, 2))
    reconstruction = rng.standard_normal((3, 4, 6, 2))
    masked = rng.random((3, 6)) < rng.random((3, 1))
    with jax.enable_x64(True):
        given = map(jnp.asarray, (pixels, reconstruction, masked))
        found = np.asarray(masked_error(*given, config))
    for i in range(3):
        mask = masked[i].reshape(2, 3).repeat(2, axis=0).repeat(2, axis=1)
        first = pixels[i, :4, :6].transpose(2, 0, 1), reconstruction[i].transpose(2, 0, 1)
        assert_close(found[i], losses.masked_error(*first, mask), 1e-13, "loss")


@given(seed=st.integers(0, 2**31), ratio=st.sampled_from([0.01, 0.3, 0.5, 1.0]))
@settings(max_examples=10)
def test_as_many_patches_are_masked_in_every_image(seed, ratio):
    masked = MaskedImageModelling(ratio).masked_patches(CONFIG, 8, jax.random.key(seed))
    assert set(np.asarray(masked).sum(axis=1)) == {max(1, round(ratio * 6))}
    assert masked.shape == (8, 6)


def test_the_gradient_of_parts_is_that_of_the_whole_batch():
    """In float64, without anything random: to rounding; here with given weights."""
    rng = np.random.default_rng(0)
    batch = Batch(rng.standard_normal((12, 4, 6, 2)), rng.integers(0, 5, 12))
    weights, objective = rng.random(12), Classification(0.1)

    def whole(model):
        return loss_and_gradients(model, batch, None, weights, objective=objective)

    def in_parts(model):
        return loss_and_gradients(model, batch, None, weights, objective=objective, accumulation=3)

    with jax.enable_x64(True):
        config = replace(CONFIG, num_layers=1)
        model = VisionTransformer(config, param_dtype="float64", rngs=nnx.Rngs(0))
        loss, gradients = compiled(whole, quick=True)(model)
        loss_of_parts, gradients_of_parts = compiled(in_parts, quick=True)(model)
        assert_close(np.asarray(loss_of_parts), np.asarray(loss), 1e-13, "loss")
        found, expected = to_flat(gradients_of_parts), to_flat(gradients)
        name = "encoder.layers.0.mha.bk"  # which no output depends on: only rounding is there
        assert max(abs(found.pop(name)).max(), abs(expected.pop(name)).max()) < 1e-14
        assert_flat_close(found, expected, 1e-12)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_schedules(kind):
    """Warm up in equal steps to the peak, then to 0 at the end, or stay."""
    S, W, peak = 20, 4, 0.3
    config = TrainConfig(steps=S, schedule=kind, warmup_steps=W, learning_rate=peak)
    schedule = make_schedule(config, S)
    for s in range(S + 1):
        after = {
            "constant": peak,
            "linear": peak * (S - s) / (S - W),
            "cosine": peak * (1 + math.cos(math.pi * (s - W) / (S - W))) / 2,
        }[kind]
        expected = peak * (s + 1) / (W + 1) if s < W else after
        assert float(schedule(s)) == pytest.approx(expected, abs=1e-7)


def filled(value):
    """A model, or its gradients, of one number."""
    shapes = VisionTransformer(CONFIG, rngs=None)
    return jax.tree.map(lambda leaf: np.full(leaf.shape, value, np.float32), shapes)


def updates_of(config, gradients):
    """What the first update adds to a model of ones, by flat name."""
    rule = make_optimizer(config)

    def first(model):
        return rule.update(gradients, rule.init(model), model)[0]

    return to_flat(jax.jit(first)(filled(1.0)))


def test_what_decays_and_what_is_frozen():
    """Where the gradient is 0, only what decays changes; of a frozen backbone, nothing."""
    matrices = {name for name in VisionTransformer(CONFIG, rngs=None).parameter_shapes()
                if decayed(name)}  # fmt: skip
    heads = {"head.weights", "decoder.weights"}
    for optimizer, frozen in (("adamw", True), ("sgd", False)):
        config = TrainConfig(
            steps=1, optimizer=optimizer, weight_decay=0.1, freeze_backbone=frozen, clip_norm=1.0
        )
        found = updates_of(config, filled(0.0))
        assert {name for name in found if np.any(found[name])} == (heads if frozen else matrices)
    layer = {name.removeprefix("encoder.layers.1.") for name in matrices if ".1." in name}
    assert layer == {"mha.wq", "mha.wk", "mha.wv", "mha.wo", "ffn.w1", "ffn.w2"}
    assert {name for name in matrices if "layers" not in name} == {*heads, "patch_embed.kernel"}


def test_everything_that_is_wrong_with_a_configuration_is_said_at_once(without_type_checks):
    config = TrainConfig(
        batch_size=0, optimizer="lion", learning_rate=math.nan, mask_ratio=0.0, clip_norm=-1,
        warmup_steps=True, augmentation=3, validation_fraction=1.0, tensorboard=1,
    )  # fmt: skip
    said = "\n".join(config.problems())
    for name in ("batch_size", "optimizer", "learning_rate", "mask_ratio", "clip_norm", "steps",
                 "warmup_steps", "augmentation", "validation_fraction", "tensorboard"):  # fmt: skip
        assert f"{name}" in said, name
    assert TrainConfig(steps=3).problems() == []
    assert "divisor" in TrainConfig(steps=3, batch_size=8, accumulation=3).problems()[0]
    assert "SGD" in TrainConfig(steps=3, momentum=0.9).problems()[0]


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_recipes_are_well_formed(name):
    found = recipes.recipe(f"{name},num_layers=3")
    assert found.model.num_layers == 3
    found.model.check_well_formed()
    assert TrainConfig(**found.training).problems() == []


def test_evaluation_counts_every_image_once():
    """The last batch is filled up with rows of weight 0, which do not count."""
    rng = np.random.default_rng(0)
    model = VisionTransformer(replace(CONFIG, num_layers=0), rngs=nnx.Rngs(0))
    images, labels = rng.standard_normal((7, 4, 6, 2)), rng.integers(0, 5, 7).astype(np.int32)
    images = images.astype(np.float32)
    rows = np.minimum(np.arange(8), 6).reshape(2, 4)
    weights = (np.arange(8) < 7).astype(np.float32).reshape(2, 4)
    found = make_evaluate(Classification(0.3))(
        model, [(images[r], labels[r], w) for r, w in zip(rows, weights, strict=True)]
    )
    logits = np.asarray(model(images).logits, np.float64)
    predicted = logits.argmax(axis=1)
    expected = [losses.cross_entropy(z, int(k)) for z, k in zip(logits, labels, strict=True)]
    assert found.loss == pytest.approx(np.mean(expected), rel=1e-6)
    assert found.accuracy == pytest.approx(np.mean(predicted == labels))
    for i in range(5):
        for j in range(5):
            assert found.confusion[i, j] == np.sum((labels == i) & (predicted == j))


def test_the_validation_part_is_of_every_class_and_of_no_training_image():
    from vitfast.data import Split

    labels = np.repeat([0, 1, 2], [20, 10, 30])
    images = np.arange(60, dtype=np.uint8).reshape(60, 1, 1, 1)
    order = np.random.default_rng(1).permutation(60)
    split = Split(images[order], labels[order])
    rest, held = hold_out(split, 0.2, seed=3)
    assert list(np.bincount(held.labels)) == [4, 2, 6]
    seen = [int(one) for part in (rest, held) for one in np.ravel(part.images)]
    assert sorted(seen) == list(range(60))
    again = hold_out(split, 0.2, seed=3)[1]
    assert np.array_equal(again.images, held.images)
    with pytest.raises(ValueError, match="validation_fraction"):
        hold_out(split, 0.01, seed=0)


def test_a_checkpoint_at_another_resolution(tmp_path):
    """Positions interpolated once are those that the checkpoint's model interpolates each time."""
    config = replace(CONFIG, mask_token=False, decoder_stride=0, layer_scale=False, num_layers=1)
    model = VisionTransformer(config, rngs=nnx.Rngs(0))
    model.save_pretrained(tmp_path)
    images = np.random.default_rng(0).standard_normal((2, 6, 10, 2)).astype(np.float32)
    moved = starting.from_checkpoint(tmp_path, classes=5, image_size=(6, 10))
    assert moved.config == replace(config, image_h=6, image_w=10)
    expected = model(images, interpolate_positions=True).logits
    assert_close(np.asarray(moved(images).logits), np.asarray(expected), 1e-5, "logits")
    other = to_flat(starting.from_checkpoint(tmp_path, classes=3, seed=1))
    flat = to_flat(model)
    assert other["head.weights"].shape == (3, 6)
    assert all(np.array_equal(flat[name], other[name]) for name in flat if "head." not in name)
    low, again = (
        starting.from_checkpoint(tmp_path, classes=3, seed=2, param_dtype=dtype)
        for dtype in ("bfloat16", "float32")
    )
    assert low.param_dtype == "bfloat16"
    assert not np.array_equal(to_flat(again)["head.weights"], other["head.weights"])


def test_importing_vitfast_leaves_the_extra_train_alone():
    code = "import sys, vitfast, vitfast.cli; print(*{one.split('.')[0] for one in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": ":".join(filter(None, sys.path))},
    )  # fmt: skip
    assert not {"grain", "orbax", "matplotlib", "sklearn", "tensorboardX"} & {*done.stdout.split()}


def test_clipping_shortens_the_whole_gradient():
    config = TrainConfig(steps=1, optimizer="sgd", clip_norm=0.5, learning_rate=1.0)
    found = updates_of(config, filled(1.0))
    assert np.sqrt(sum(np.sum(one**2) for one in found.values())) == pytest.approx(0.5, rel=1e-6)
