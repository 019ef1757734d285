"""What a run does at which step: checks, evaluations, records, the end.

The model has no blocks, so that its programs compile at once.
"""

from contextlib import ExitStack
from dataclasses import replace
from unittest import mock

import jax
import numpy as np
import pytest
from flax import nnx

from support.compare import assert_close
from vitfast import TrainConfig, VisionTransformer, fit, to_flat
from vitfast.data import Augmentation, ImageDataset, evaluation_batches, train_batches
from vitfast.images import ImageProcessor
from vitfast.training import gradient_check
from vitfast.training.evaluation import hold_out, make_evaluate
from vitfast.training.export import export
from vitfast.training.gradient_check import GradientReport
from vitfast.training.loop import NotFinite
from vitfast.training.preparation import processor_for
from vitfast.training.recording import Recorder
from vitfast.training.reporting import RunDirectory
from vitspec.errors import NotWellFormed
from vitspec.testing.tolerance import Grade
from vitspec.vision_transformer_config import DropoutRates, VisionTransformerConfig

CONFIG = VisionTransformerConfig(
    image_h=4, image_w=6, in_channels=1, patch_h=2, patch_w=2, embed_dim=8, hidden_dim=8,
    head_count=2, num_layers=0, num_classes=3, pool="mean", dropout=DropoutRates(embedding=0.1),
)  # fmt: skip

ALONE = {"process_index": 0, "process_count": 1}


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly():
    """A generator that compiles in a tenth of the time of JAX's own."""
    with jax.default_prng_impl("unsafe_rbg"):
        yield


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (81, 4, 6), dtype=np.uint8)
    labels = rng.integers(0, 3, 81)
    return ImageDataset.from_arrays(images[:60], labels[:60], images[60:], labels[60:])


@pytest.fixture(scope="module")
def model():
    return VisionTransformer(CONFIG, rngs=nnx.Rngs(0))


def test_a_run_step_by_step(dataset, model, monkeypatch):
    """Sixty images in batches of twelve: an epoch is five steps, one and a half are eight."""
    checks, options, losses = [], {}, []
    grade = Grade("head.bias", "norm", 1e-8, 1e-7, 8e-7)

    class Check:
        def __init__(self, config, objective, **given):
            options.update(given)

        def check(self, step, model, batch, key):
            now = to_flat(model)
            checks.append((step, now, *map(np.array, batch), jax.random.key_data(key)))
            return GradientReport(step, (0,), "float32", (grade,), 0.5, 0.5, 1, 0.25)

    monkeypatch.setattr(gradient_check, "GradientCheck", Check)
    config = TrainConfig(
        epochs=1.5, batch_size=12, optimizer="sgd", learning_rate=1e-4, accumulation=2, seed=5,
        log_every=3, check_gradients=3, check_images=2, label_smoothing=0.1, patience=1,
        augmentation=Augmentation(crop_padding=1),
    )  # fmt: skip
    result = fit(
        model, dataset, config, quiet=True,
        on_step=lambda step, figures: losses.append((step, figures["loss"])),
    )  # fmt: skip
    assert options == {"images": 2, "accumulation": 2, "folder": None}
    assert [step for step, _ in losses] == list(range(1, 9))

    def steps_with(name):
        return [one["step"] for one in result.history if name in one]

    assert steps_with("train_loss") == [3, 6, 8]
    assert steps_with("test_loss") == [5, 8]
    assert steps_with("gradient_check_ratio") == [step for step, *_ in checks] == [0, 3, 6]
    # The weights hardly move: the second evaluation is no better, and the run is over anyway.
    assert (result.step, result.steps, result.stopped_early) == (5, 8, False)
    with train_batches(
        dataset.train, processor_for(model, dataset), batch_size=12, seed=5, threads=0,
        augmentation=config.augmentation, **ALONE,
    ) as batches:  # fmt: skip
        expected = [next(batches) for _ in range(7)]
    for step, now, images, labels, key in checks:
        assert np.array_equal(images, expected[step].images)
        assert np.array_equal(labels, expected[step].labels)
        of_step = jax.random.fold_in(jax.random.key(5), step)
        assert np.array_equal(key, jax.random.key_data(of_step))
        moved = np.abs(now["head.weights"] - to_flat(model)["head.weights"]).max()
        assert (moved > 0) == (step > 0)
    key = jax.random.fold_in(jax.random.key(5), 0)
    losses_of = jax.jit(config.to_objective().losses)
    parts = [
        losses_of(
            model, (expected[0].images[i::2], expected[0].labels[i::2]), jax.random.fold_in(key, i)
        )
        for i in range(2)
    ]
    assert_close(losses[0][1], np.float32(np.mean(parts)), 1e-5, "loss")


def test_patience_ends_a_run_for_good(dataset, model, tmp_path):
    """A rate at which nothing moves: the first evaluation stays the best; so it says, resumed."""
    config = TrainConfig(
        steps=9, batch_size=12, optimizer="sgd", learning_rate=1e-30, evaluate_every=1, patience=2,
        validation_fraction=0.2, checkpoint_every=0, seed=3,
    )  # fmt: skip

    def never(step, figures):
        raise AssertionError(step)

    with mock.patch.object(RunDirectory, "finish"):  # pictures take longer
        result, again = (
            fit(model, dataset, config, run_directory=tmp_path / "run", quiet=True, on_step=on_step)
            for on_step in (None, never)
        )
    for one in (result, again):
        assert (one.step, one.steps, one.stopped_early) == (1, 3, True)
    evaluate = make_evaluate(config.to_objective())
    _, held = hold_out(dataset.train, 0.2, seed=3)
    _, other = hold_out(dataset.train, 0.2, seed=4)
    assert not np.array_equal(held.images, other.images)
    found = {
        name: evaluate(
            model, evaluation_batches(split, processor_for(model, dataset), batch_size=12, **ALONE)
        )
        for name, split in (("validation", held), ("test", dataset.test))
    }
    for name, steps in (("validation", [1, 2, 3]), ("test", [1])):
        records = [one for one in result.history if f"{name}_loss" in one]
        assert [one["step"] for one in records] == steps
        for one in records:
            assert one[f"{name}_loss"] == pytest.approx(found[name].loss, rel=1e-6)
            assert one[f"{name}_accuracy"] == found[name].accuracy
    assert again.test_loss == result.test_loss == found["test"].loss


def test_an_export_has_the_processor_of_the_training(dataset, tmp_path):
    plain = VisionTransformer(replace(CONFIG, pool="cls"), rngs=nnx.Rngs(0))
    processor = processor_for(plain, dataset)
    export(plain, tmp_path, None, processor)
    assert ImageProcessor.from_pretrained(tmp_path) == processor
    mean = dataset.train.images.mean() / 255
    assert processor.image_mean == pytest.approx([mean], abs=5.1e-5)  # of four decimals


def test_parameters_that_are_not_finite_are_not_saved(dataset, model, tmp_path):
    """Made by a step whose loss and gradient are finite."""
    config = TrainConfig(
        steps=2, batch_size=12, optimizer="sgd", learning_rate=1e30, weight_decay=1e20,
        checkpoint_every=1, evaluate_every=0,
    )  # fmt: skip
    said = r"step 1: the update has made parameters that are not finite; nothing was saved"
    with pytest.raises(NotFinite, match=said):
        fit(model, dataset, config, run_directory=tmp_path / "run", quiet=True)


def test_only_the_first_process_shows_how_it_goes(monkeypatch):
    shows = []
    for index in range(2):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        shows.append(Recorder(ExitStack(), TrainConfig(steps=1), None, quiet=False).shows)
    assert shows == [True, False]


def test_what_does_not_fit_the_machine_is_said(dataset):
    config = TrainConfig(steps=1, batch_size=49, validation_fraction=0.2, check_gradients=1)
    with pytest.raises(NotWellFormed, match="at most the 48 images"):
        fit(VisionTransformer(CONFIG, rngs=nnx.Rngs(0)), dataset, config)
    with jax.enable_x64(True):
        wide = VisionTransformer(CONFIG, param_dtype="float64", rngs=nnx.Rngs(0))
    with pytest.raises(NotWellFormed, match="JAX would round it to float32"):
        fit(wide, dataset, TrainConfig(steps=1, batch_size=12))
