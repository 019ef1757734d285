"""Images to train on: data sets, augmentation, and batches in an order that repeats (docs/data.md).

    dataset = load_dataset("fashion-mnist")     # or "digits", or a directory
    processor = dataset_processor(model.config, dataset)
    batches = train_batches(dataset.train, processor, batch_size=128, seed=0)
    images, labels = next(batches)              # (128, H, W, C) float32, (128,) int32

Nothing here needs JAX, but to know the process and how many there are. Grain and scikit-learn are
imported when they are used.
"""

from vitfast.data.augmentation import Augmentation
from vitfast.data.batches import Batch, TrainBatches, evaluation_batches, train_batches
from vitfast.data.dataset import ImageDataset, Split
from vitfast.data.errors import DatasetError
from vitfast.data.load import load_dataset
from vitfast.data.processing import dataset_processor

__all__ = [
    "Augmentation",
    "Batch",
    "DatasetError",
    "ImageDataset",
    "Split",
    "TrainBatches",
    "dataset_processor",
    "evaluation_batches",
    "load_dataset",
    "train_batches",
]
