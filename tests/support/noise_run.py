"""A short run of `fit` on images of noise, which tests kill, or spread over processes."""

from unittest import mock

import numpy as np

from vitfast import from_flat
from vitfast.data import Augmentation, ImageDataset
from vitfast.training import TrainConfig, fit
from vitfast.training.reporting import RunDirectory
from vitspec.models.vision_transformer_parameters import parameter_shapes
from vitspec.vision_transformer_config import DropoutRates, VisionTransformerConfig

MODEL = VisionTransformerConfig(
    image_h=6, image_w=8, in_channels=1, patch_h=3, patch_w=2, embed_dim=24, hidden_dim=16,
    head_count=3, num_layers=2, num_classes=4, dropout=DropoutRates(embedding=0.2),
)  # fmt: skip

TRAINING = TrainConfig(
    steps=6, batch_size=16, optimizer="sgd", momentum=0.9, learning_rate=0.1, evaluate_every=0,
    checkpoint_every=3, log_every=1, augmentation=Augmentation(crop_padding=1),
)  # fmt: skip
"""Not Adam, which divides the gradient of a key's bias, 0 but for rounding, by its own size."""


def dataset():
    """Images of noise, which no model learns but by heart."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 6, 8, 1), dtype=np.uint8)
    labels = rng.integers(0, 4, 60)
    return ImageDataset.from_arrays(images[:50], labels[:50], images[50:], labels[50:])


def train(folder, dtype, training=TRAINING, sharding=None, **options):
    """The run, or what is left of it; without pictures, which take longer than the training."""
    rng = np.random.default_rng(1)
    flat = {
        name: rng.normal(0, 0.3, shape).astype(dtype)
        for name, shape in parameter_shapes(MODEL).items()
    }
    model = from_flat(MODEL, flat, sharding=sharding)
    with mock.patch.object(RunDirectory, "finish"):
        return fit(model, dataset(), training, run_directory=folder, quiet=True, **options)
