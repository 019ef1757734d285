"""A short run of `fit` in float64; as a script, one process of several that make it together.

    python distributed_run.py RANK PROCESSES PORT DEVICES FOLDER

joins the others at the port, with so many devices of its own, makes the run in FOLDER/together, and
reads the checkpoint of a run in FOLDER/alone, as one process wrote it, onto all devices.
"""

import json
import sys
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from vitfast import from_flat, to_flat
from vitfast.data import Augmentation, ImageDataset
from vitfast.sharding import ViTSharding, make_mesh
from vitfast.training import TrainConfig, fit
from vitfast.training.optimizers import make_optimizer, make_schedule
from vitfast.training.reporting import RunDirectory
from vitfast.training.run_checkpoints import RunCheckpoints
from vitfast.training.state import new_state
from vitspec.models.vision_transformer_parameters import parameter_shapes
from vitspec.vision_transformer_config import DropoutRates, VisionTransformerConfig

MODEL = VisionTransformerConfig(
    image_h=6,
    image_w=8,
    in_channels=1,
    patch_h=3,
    patch_w=2,
    embed_dim=24,
    hidden_dim=16,
    head_count=3,
    num_layers=2,
    num_classes=4,
    dropout=DropoutRates(embedding=0.2),
)

TRAINING = TrainConfig(
    steps=6,
    batch_size=16,
    optimizer="sgd",
    momentum=0.9,
    learning_rate=0.1,
    augmentation=Augmentation(crop_padding=1),
    evaluate_every=0,
    checkpoint_every=3,
    log_every=1,
)
"""Not Adam, which divides the gradient of a key's bias, 0 but for rounding, by its own size."""


def new_model(sharding):
    """The model before the first step, on the mesh that is set."""
    rng = np.random.default_rng(1)
    flat = {name: rng.normal(0, 0.3, shape) for name, shape in parameter_shapes(MODEL).items()}
    return from_flat(MODEL, flat, sharding=sharding)


def dataset():
    """Images of noise."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 6, 8, 1), dtype=np.uint8)
    labels = rng.integers(0, 4, 60)
    return ImageDataset.from_arrays(images[:50], labels[:50], images[50:], labels[50:])


def train(folder, sharding, **options):
    """The run, or what is left of it; without pictures, which take longer than the training."""
    model = new_model(sharding)
    with mock.patch.object(RunDirectory, "finish"):
        return fit(model, dataset(), TRAINING, run_directory=folder, quiet=True, **options)


def read(checkpoints, sharding):
    """The state in the last checkpoint of a run, laid out as that of a new one."""
    optimizer = make_optimizer(TRAINING, make_schedule(TRAINING, TRAINING.steps))
    like = new_state(new_model(sharding), optimizer, seed=5)
    return RunCheckpoints(checkpoints).restore(like)[0]


def main(rank, processes, port, devices, folder):
    """Take part, and write down the model that was trained, and the one that was read."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)  # compiles sooner
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, rank)
    with jax.set_mesh(make_mesh(fsdp=-1)):
        result = train(folder / "together", ViTSharding())
        found = read(folder / "alone" / "checkpoints", ViTSharding())
        figures = {
            "devices": [jax.local_device_count(), jax.device_count()],
            "trained": to_flat(result.model),
            "read": to_flat(found.model),
            "test_loss": result.test_loss,
        }
    # As decimals that read back to the same number.
    text = json.dumps(figures, default=np.ndarray.tolist)
    (folder / f"{rank}.json").write_text(text)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:5]), Path(sys.argv[5]))
