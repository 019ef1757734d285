"""The words of `vitfast train`: what they make of the model and of how it is trained.

Nothing is trained: `fit` notes what it is given. The models have no blocks.
"""

from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from typer.testing import CliRunner

import vitfast.data
import vitfast.training
from vitfast import VisionTransformer, to_flat
from vitfast.cli import app
from vitfast.data import Augmentation, ImageDataset
from vitfast.images import ImageProcessor
from vitfast.sharding import ViTTensorParallelSharding
from vitfast.training.gradient_check import GradientDeparts, GradientReport
from vitfast.training.loop import NotFinite
from vitfast.training.reporting import RunRefused
from vitfast.training.run_checkpoints import RunCheckpointError
from vitspec.testing.tolerance import Grade

SMALL = ["--set", "num_layers=0"]


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly():
    with jax.default_prng_impl("unsafe_rbg"):
        yield


@pytest.fixture
def train(monkeypatch):
    """A function of words that returns what `fit` was given; an error is raised in its place."""
    levels = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(300) % 7
    dataset = ImageDataset.from_arrays(levels, labels, levels[:9], labels[:9])
    monkeypatch.setattr(vitfast.data, "load_dataset", lambda name: dataset)
    monkeypatch.setattr(jax, "device_count", lambda: 1)

    def run(*words, error=None, code=0):
        given = []

        def fit(model, dataset, config, **options):
            given.append(SimpleNamespace(model=model, config=config, **options))
            given[0].mesh = dict(jax.sharding.get_abstract_mesh().shape)
            if error is not None:
                raise error
            return SimpleNamespace(test_loss=1.0, test_accuracy=0.5, step=1, exported=None)

        monkeypatch.setattr(vitfast.training, "fit", fit, raising=False)
        done = CliRunner().invoke(app, ["train", *words])
        assert done.exit_code == code, done.output
        assert "Traceback" not in done.output
        if error is not None:
            assert str(error) in done.output.replace("\n", " ")
        return given[0]

    return run


def test_a_recipe_and_what_replaces_it(train):
    """--steps replaces epochs; a short run has a short warm-up; SGD has not AdamW's decay."""
    found = train(*SMALL)
    assert (found.config.epochs, found.config.steps, found.config.weight_decay) == (20, None, 0.05)
    assert found.config.augmentation is None
    assert found.run_directory == Path("runs/digits-digits")
    config = found.model.config
    assert (config.in_channels, config.num_classes, config.image_h) == (3, 7, 8)
    assert 0.4 < np.std(to_flat(found.model)["pos_enc.pos"]) < 0.6
    other = train(
        *SMALL, "--seed", "1", "--steps", "50", "--optimizer", "sgd", "--evaluate-every", "0",
        "--image-size", "12,10", "--crop-padding", "1",
    )  # fmt: skip
    assert (other.config.epochs, other.config.steps, other.config.weight_decay) == (None, 50, 0)
    assert 0 < other.config.warmup_steps <= 10
    assert (other.config.seed, other.config.evaluate_every) == (1, 0)
    assert other.config.augmentation == Augmentation(1)
    assert (other.model.config.image_h, other.model.config.image_w) == (12, 10)
    first, second = (to_flat(one.model)["patch_embed.kernel"] for one in (found, other))
    assert np.abs(first - second).max() > 0.1


def test_how_a_model_is_computed_and_where_it_goes(train):
    """In mixed precision, parameters stay in float32."""
    found = train(
        "--data", "fashion-mnist", *SMALL, "--crop-padding", "0", "--dtype", "bfloat16", "--remat",
        "--export", "there", "--resume-from", "3", "--run-directory", "here", "--optimizer", "sgd",
        "--weight-decay", "0.25",
    )  # fmt: skip
    assert found.config.augmentation == Augmentation(0, True)
    assert found.config.weight_decay == 0.25
    assert (found.model.dtype, found.model.param_dtype) == ("bfloat16", "float32")
    assert found.model.build.checkpoint
    assert (found.export, found.resume_from, found.run_directory) == (
        Path("there"),
        3,
        Path("here"),
    )


def test_fine_tuning_has_its_own_settings_and_the_checkpoint_s_processor(train, tmp_path):
    start = tmp_path / "start"
    config = train(*SMALL).model.config
    VisionTransformer(config, rngs=nnx.Rngs(0)).save_pretrained(start)
    moments = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    ImageProcessor(size=8, crop_size=6, do_center_crop=True, **moments).save_pretrained(start)
    found = train("--from", str(start), "--image-size", "10,12")
    assert (found.config.epochs, found.config.learning_rate) == (10, 1e-4)
    assert found.config.augmentation is None
    assert found.run_directory == Path("runs/digits-start")
    assert found.about == {"initial_checkpoint": str(start)}
    assert found.processor == ImageProcessor(size={"height": 10, "width": 12}, **moments)


def test_a_mesh_of_all_devices(train, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    found = train(*SMALL, "--fsdp", "4", "--tensor-parallel", "2")
    assert found.mesh == {"data": 1, "fsdp": 4, "model": 2}
    assert isinstance(found.model.sharding, ViTTensorParallelSharding)


def test_what_goes_wrong_has_its_exit_code(train):
    words = [*SMALL, "--check-gradients", "1"]
    worst = Grade("head.bias", "norm", 2e-7, 1e-7, 1e-8)
    report = GradientReport(0, (3,), "float32", (worst,), 0.5, 0.5, 1, 0.25)
    for error, code in (
        (NotFinite("the loss is nan"), 1),
        (GradientDeparts(report), 1),
        (RunRefused("another run's"), 2),
        (RunCheckpointError("damaged"), 3),
        (OSError("no room"), 3),
    ):
        train(*words, error=error, code=code)
