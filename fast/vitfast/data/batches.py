"""Batches for training and evaluation, through Grain.

    place n of a run = image shuffle_seed(n) of the split, epoch n // N      (N images)
    step s           = places s B .. (s + 1) B - 1                            (B in a batch)
    process p of P   = rows p b .. (p + 1) b - 1 of it, b = B / P

Everything is a function of the seed and the place: the order, and what augmentation does. So the
batch of a step is the same however many processes and threads read it, and to go on after step s is
to go on at number s + 1. Epochs follow each other without a gap: a batch may end one and begin the
next, and no image is left out.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from vitfast.data.augmentation import Augmentation, draws_of
from vitfast.data.dataset import Split
from vitfast.data.errors import DatasetError
from vitfast.data.processing import image_shape, prepared
from vitfast.images import ImageProcessor

PREFETCHED = 2**30
"""The most bytes of images that are prepared ahead."""

LARGEST_SEED = 2**32 - 1


class Batch(NamedTuple):
    """A process's part of a batch: images (b, H, W, C) float32, labels (b,) int32."""

    images: Any
    labels: Any


class TrainBatches(Iterator[Batch]):
    """A process's part of each batch, without end; `train_batches` makes it.

    Leave it by `close()`, or as a context manager, and its threads end.

    Attributes:
        steps_per_epoch: the steps after which every image has been seen, ceil(N / B).
    """

    def __init__(self, batches: Any, order: dict[str, int]) -> None:
        self.steps_per_epoch = math.ceil(order["examples"] / order["batch_size"])
        self._iterator, self._order = iter(batches), order

    def __next__(self) -> Batch:
        return next(self._iterator)

    def get_state(self) -> dict[str, int]:
        """Where it is, for `set_state`: the number of batches given, and what the order is of."""
        return {"next_index": int(self._iterator.get_state()["next_index"])} | self._order

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from there; the state may be of another number of processes.

        Raises:
            DatasetError: it is the state of another order.
        """
        if differs := [name for name in self._order if state.get(name) != self._order[name]]:
            theirs, ours = ([f"{n} {d.get(n)}" for n in differs] for d in (state, self._order))
            raise DatasetError(
                f"the data's state is of {', '.join(theirs)}, this run has {', '.join(ours)}; go "
                "on with the same, or start a new run"
            )
        step = state.get("next_index")
        if type(step) is not int or step < 0:
            raise DatasetError(f"the data's state: next_index must be 0 or more, got {step!r}")
        self._iterator.set_state({"next_index": step})

    def close(self) -> None:
        """Ends its threads; what they are at is finished, and left."""
        self._iterator.close()

    def __enter__(self) -> TrainBatches:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class EvaluationBatches:
    """A process's part of a split, once for each time it is iterated over.

    Gives (images, labels, weights), all of one shape: rows that fill up the last batch repeat the
    last image, with weight 0, so that sums of weight times anything over all processes count each
    image once.
    """

    def __init__(self, batches: Any, count: int, options: Any) -> None:
        self._batches, self._count, self._options = batches, count, options

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[Any, Any, Any]]:
        iterator = iter(self._batches.to_iter_dataset(self._options))
        try:
            yield from iterator
        finally:
            iterator.close()


def train_batches(
    split: Split,
    processor: ImageProcessor,
    *,
    batch_size: int,
    seed: int,
    augmentation: Augmentation | None = None,
    process_index: int | None = None,
    process_count: int | None = None,
    threads: int | None = None,
) -> TrainBatches:
    """The batches of a run.

    Args:
        split: what to train on.
        processor: the model's.
        batch_size: B, of all processes together.
        seed: of the order and of augmentation.
        augmentation: None is none.
        process_index: p; None asks JAX.
        process_count: P; None asks JAX.
        threads: how many prepare batches ahead; None is one for each core, at most 8, and 0 is
            none: a batch is then prepared when it is asked for.

    Raises:
        DatasetError: the batch is larger than the split, processes do not divide it, or Grain is
            not installed.
    """
    grain, examples = _grain(), len(split)
    index, b = _part(batch_size, process_index, process_count)
    if batch_size > examples:
        raise DatasetError(
            f"batch_size: {batch_size} is more than the {examples} images to train on; make it "
            "smaller"
        )
    if type(seed) is not int or not 0 <= seed <= LARGEST_SEED:
        raise DatasetError(f"seed: must be an integer from 0 to {LARGEST_SEED}, got {seed!r}")
    shape = image_shape(split, processor)
    if augmentation is not None and augmentation.crop_padding >= min(shape[:2]):
        raise DatasetError(
            f"crop_padding: {augmentation.crop_padding} can move an image of {shape[0]} x "
            f"{shape[1]} out of sight; it must be less than {min(shape[:2])}"
        )

    def batch(number: int, indices: Any) -> Batch:
        draws = None if augmentation is None else draws_of(seed, number * b, b)
        images = prepared(split, indices, processor, augmentation, draws)
        return Batch(images, split.labels[indices])

    order = grain.MapDataset.range(examples).seed(seed).shuffle().repeat()
    # Parts of b places, of which those of process p are every P-th.
    # There is no remainder to drop; but only so is the length an exact integer.
    parts = order.batch(b, drop_remainder=True, batch_fn=np.array).map_with_index(batch)
    return TrainBatches(
        parts[index :: batch_size // b].to_iter_dataset(_read_options(grain, threads, b, shape)),
        {"seed": seed, "batch_size": batch_size, "examples": examples},
    )


def evaluation_batches(
    split: Split,
    processor: ImageProcessor,
    *,
    batch_size: int,
    process_index: int | None = None,
    process_count: int | None = None,
    threads: int | None = None,
) -> EvaluationBatches:
    """The batches of a whole split, in order; the arguments are those of `train_batches`.

    Raises:
        DatasetError: the split is empty, processes do not divide the batch, or Grain is not
            installed.
    """
    grain, examples = _grain(), len(split)
    index, b = _part(batch_size, process_index, process_count)
    if not examples:
        raise DatasetError("the split to evaluate on has no images")
    shape = image_shape(split, processor)

    def batch(step: int) -> tuple[Any, Any, Any]:
        places = step * batch_size + index * b + np.arange(b)
        indices = np.minimum(places, examples - 1)
        weights = (places < examples).astype(np.float32)
        return prepared(split, indices, processor), split.labels[indices], weights

    count = math.ceil(examples / batch_size)
    batches = grain.MapDataset.range(count).map(batch)
    return EvaluationBatches(batches, count, _read_options(grain, threads, b, shape))


def _part(batch_size: int, index: int | None, count: int | None) -> tuple[int, int]:
    """The process's number, and its share of a batch."""
    if index is None or count is None:
        import jax

        index, count = jax.process_index(), jax.process_count()
    if not 0 <= index < count:
        raise DatasetError(f"process_index: {index} is not from 0 to {count - 1}")
    if type(batch_size) is not int or batch_size < 1:
        raise DatasetError(f"batch_size: must be 1 or more, got {batch_size!r}")
    if batch_size % count:
        raise DatasetError(
            f"batch_size: {batch_size} cannot be divided among {count} processes; use a multiple "
            f"of {count}"
        )
    return index, batch_size // count


def _read_options(grain: Any, threads: int | None, b: int, shape: tuple[int, int, int]) -> Any:
    """As many threads, and twice as many batches ahead, as `PREFETCHED` allows; at least one."""
    threads = min(8, os.cpu_count() or 1) if threads is None else threads
    ahead = max(1, min(2 * threads, PREFETCHED // (4 * b * math.prod(shape))))
    return grain.ReadOptions(
        num_threads=min(threads, ahead), prefetch_buffer_size=ahead if threads else 0
    )


def _grain() -> Any:
    try:
        import grain
    except ImportError as error:
        raise DatasetError(
            "training reads its data through Grain, which is not installed: pip install "
            "'vitspec[train]'"
        ) from error
    return grain
