"""A run: `fit` and `vitfast train`. What survives a kill is in test_killed."""

import json
import math
import signal
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx
from typer.testing import CliRunner

from support.compare import assert_close
from vitfast import TrainConfig, VisionTransformer, ViT, fit, to_flat
from vitfast.cli import app
from vitfast.data import Augmentation, ImageDataset
from vitfast.training.interruption import Interrupted
from vitfast.training.loop import NotFinite
from vitspec import ViTConfig
from vitspec.errors import NotWellFormed
from vitspec.vision_transformer_config import DropoutRates, VisionTransformerConfig

CONFIG = VisionTransformerConfig(
    image_h=4, image_w=6, in_channels=1, patch_h=2, patch_w=2, embed_dim=8, hidden_dim=8,
    head_count=2, num_layers=1, num_classes=3, output_bias=False,
    dropout=DropoutRates(embedding=0.1, attention=0.1),
)  # fmt: skip


def images_of(labels, rng):
    """Dark, grey or bright, with noise."""
    levels = 30 + 90 * labels[:, None, None]
    return (levels + rng.integers(-20, 20, (len(labels), 4, 6))).astype(np.uint8)


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, 3, 60), rng.integers(0, 3, 21)
    return ImageDataset.from_arrays(
        images_of(train, rng), train, images_of(test, rng), test, class_names=("a", "b", "c")
    )


@pytest.fixture(scope="module")
def model():
    return VisionTransformer(CONFIG, rngs=nnx.Rngs(0))


TRAINING = TrainConfig(
    steps=24, batch_size=12, learning_rate=0.02, schedule="cosine", warmup_steps=2, clip_norm=1.0,
    weight_decay=0.01, label_smoothing=0.1, validation_fraction=0.2, patience=6, evaluate_every=4,
    checkpoint_every=6, log_every=1, accumulation=2, augmentation=Augmentation(crop_padding=1),
)  # fmt: skip


class StopError(Exception):
    pass


@pytest.fixture(scope="module")
def undisturbed(dataset, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, fit(model, dataset, TRAINING, run_directory=folder / "run", quiet=True)


def test_a_run_learns_and_says_what_came_of_it(undisturbed, dataset, model):
    folder, result = undisturbed
    assert result.test_accuracy > 0.9
    assert result.confusion.sum() == 21
    assert np.trace(result.confusion) == round(21 * result.test_accuracy)
    assert [one["step"] for one in result.history if "train_loss" in one] == list(range(1, 25))
    found = {one["step"]: one for one in result.history if "validation_loss" in one}
    best = max(found, key=lambda step: found[step]["validation_accuracy"])
    assert result.step == best  # not the last: there is a validation part
    assert [one["step"] for one in result.history if "test_loss" in one] == [best]
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(model))
    run = folder / "run"
    for name in ("run.json", "metrics.jsonl", "metrics.csv", "curves.png", "confusion.png"):
        assert (run / name).stat().st_size
    # Hugging Face has no model without this bias, nor with dropout there only: it is one that
    # computes the same.
    exported = VisionTransformer.from_pretrained(run / "export")
    assert exported.config.output_bias
    images = np.random.default_rng(0).standard_normal((5, 4, 6, 1)).astype(np.float32)
    found, expected = (np.asarray(one(images).logits) for one in (exported, result.model))
    assert_close(found, expected, 1e-6, "logits")
    names = json.loads((run / "export" / "config.json").read_text())["id2label"]
    assert list(names.values()) == ["a", "b", "c"]
    assert (run / "export" / "preprocessor_config.json").exists()


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(undisturbed, dataset, model):
    """Stopped between checkpoints, in the middle of an epoch; by Ctrl-C, which saves; when done."""
    folder, expected = undisturbed

    def stop(step, figures):
        if step == 15:
            raise StopError

    again = folder / "again"
    with pytest.raises(StopError):
        fit(model, dataset, TRAINING, run_directory=again, quiet=True, on_step=stop)
    steps = []

    def press(step, figures):
        steps.append(step)
        if step == 19:
            signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="after step 20 of 24") as caught:
        fit(model, dataset, TRAINING, run_directory=again, quiet=True, on_step=press,
            stop_on_signals=True)  # fmt: skip
    assert caught.value.signal == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is handler
    result = fit(
        model, dataset, TRAINING, run_directory=again, quiet=True,
        on_step=lambda step, figures: steps.append(step),
    )  # fmt: skip
    assert steps == list(range(13, 25))  # from the checkpoint of step 12, then from that of 20

    def without_speed(history):
        return [{n: v for n, v in one.items() if n != "images_per_second"} for one in history]

    assert without_speed(result.history) == without_speed(expected.history)
    assert result.step == expected.step
    for name, leaf in to_flat(expected.model).items():
        np.testing.assert_array_equal(to_flat(result.model)[name], leaf, err_msg=name)
    done = fit(model, dataset, TRAINING, run_directory=again, quiet=True, on_step=stop)
    assert done.test_loss == expected.test_loss
    other = replace(TRAINING, learning_rate=0.01)
    with pytest.raises(ValueError, match=r"learning_rate is 0\.02 there and 0\.01 here"):
        fit(model, dataset, other, run_directory=again, quiet=True)


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_its_checkpoints(
    dataset, model, tmp_path
):
    """At most one step late; and no checkpoint has parameters that are not finite."""
    steps = []
    config = TrainConfig(
        steps=9, batch_size=12, optimizer="sgd", learning_rate=1e25, evaluate_every=0,
        schedule="linear", warmup_steps=0, checkpoint_every=1,
    )  # fmt: skip
    with pytest.raises(NotFinite, match=r"is intact|nothing was saved"):
        fit(model, dataset, config, run_directory=tmp_path / "run", quiet=True,
            on_step=lambda step, figures: steps.append(figures["loss"]))  # fmt: skip
    assert all(map(math.isfinite, steps))
    from vitfast.training import new_state
    from vitfast.training.optimizers import make_optimizer, make_schedule
    from vitfast.training.run_checkpoints import RunCheckpoints

    like = new_state(model, make_optimizer(config, make_schedule(config, 9)), 0)
    with RunCheckpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        found = checkpoints.restore(like)
    if found is not None:
        assert all(np.isfinite(leaf).all() for leaf in to_flat(found[0].model).values())


def test_everything_that_does_not_fit_is_said_before_any_work(dataset, model, tmp_path):
    folder = tmp_path / "run"
    config = TrainConfig(steps=1, batch_size=61, objective="masked-image-modelling")
    with pytest.raises(NotWellFormed) as caught:
        fit(model, dataset, config, run_directory=folder)
    said = str(caught.value)
    for word in ("mask token", "decoder_stride", "batch_size"):
        assert word in said
    other = VisionTransformer(replace(CONFIG, num_classes=4), rngs=nnx.Rngs(0))
    with pytest.raises(NotWellFormed, match="4 classes"):
        fit(other, dataset, TRAINING, run_directory=folder)
    with pytest.raises(NotWellFormed, match="seed"):
        fit(model, dataset, replace(TRAINING, seed=-1), run_directory=folder)
    assert not folder.exists()


def test_the_mirror_of_lean_s_vit_trains_too(dataset):
    config = ViTConfig(
        patch_h=2, patch_w=2, stride=2, padding=0, embed_dim=6, hidden_dim=8, head_count=2,
        num_layers=1, num_classes=3,
    )  # fmt: skip
    vit = ViT(config, in_channels=1, height=4, width=6, rngs=nnx.Rngs(0))
    result = fit(vit, dataset, TrainConfig(steps=3, batch_size=12, log_every=1), quiet=True)
    assert result.history[0]["train_loss"] > result.history[2]["train_loss"] * 0.5
    assert result.exported is None


RUN = CliRunner()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--data", "no/such"], 3, "no/such"),
        (["--preset", "resnet"], 2, "d2l"),
        (["--set", "num_leyers=2"], 2, "did you mean num_layers"),
        (["--dtype", "int8"], 2, "bfloat16"),
        (["--image-size", "0"], 2, "--image-size 0"),
        (["--coordinator", "localhost:1"], 2, "all three"),
        (["--learning-rate", "-1", "--batch-size", "0"], 2, "batch_size"),
        (["--fsdp", "3"], 2, "8 devices"),
    ],
)
def test_bad_usage_is_said_without_a_traceback(words, code, said, tmp_path):
    done = RUN.invoke(app, ["train", "--run-directory", str(tmp_path / "run"), *words])
    assert done.exit_code == code, done.output
    assert said in done.output
    assert "Traceback" not in done.output
    assert not (tmp_path / "run").exists()


def test_pre_training_then_fine_tuning_at_another_size_by_the_commands(tmp_path, monkeypatch):
    """Masked image modelling, then a classifier of its blocks, in mixed precision."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)  # programs for meshes take long to compile
    small = ["--quiet", "--steps", "2", "--batch-size", "16", "--evaluate-every", "0"]
    first, second = tmp_path / "first", tmp_path / "second"
    sizes = ["--set", "embed_dim=8", "--set", "hidden_dim=8", "--set", "num_layers=1"]
    words = ["train", "--objective", "masked-image-modelling", *sizes, *small]
    words += ["--accumulation", "2"]
    done = RUN.invoke(app, [*words, "--run-directory", str(first)])
    assert done.exit_code == 0, done.output
    words = ["train", "--from", str(first / "export"), "--image-size", "12,10", *small]
    done = RUN.invoke(app, [*words, "--dtype", "bfloat16", "--run-directory", str(second)])
    assert done.exit_code == 0, done.output
    assert "test accuracy" in done.output
    config = VisionTransformer.from_pretrained(second / "export").config
    assert (config.image_h, config.image_w, config.num_classes) == (12, 10, 10)
    assert not config.mask_token
