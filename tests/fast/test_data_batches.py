"""Batches: their order, what augmentation does to them, several processes, resuming, threads."""

import itertools
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vitfast
from vitfast.data import (
    Augmentation,
    DatasetError,
    Split,
    evaluation_batches,
    load_dataset,
    train_batches,
)
from vitfast.data.augmentation import DRAWS, draws_of
from vitfast.images import ImageProcessor

pytest.importorskip("grain")

N, HEIGHT, WIDTH = 53, 5, 7
BOTH = Augmentation(crop_padding=2, horizontal_flip=True)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


SPLIT = Split(noise(N, HEIGHT, WIDTH, 1), np.arange(N))
"""Each image has a label of its own, by which it is known."""

AS_IS = ImageProcessor(size=(HEIGHT, WIDTH), image_mean=[0.3], image_std=[0.2])


def batches(split=SPLIT, processor=AS_IS, **how):
    how = {
        "batch_size": 12, "seed": 0, "threads": 0, "process_index": 0, "process_count": 1
    } | how  # fmt: skip
    return train_batches(split, processor, **how)


def first(iterator, count):
    with iterator:
        return list(itertools.islice(iterator, count))


def labels(steps):
    return np.concatenate([batch.labels for batch in steps])


def refused(call, *words):
    with pytest.raises(DatasetError) as found:
        call()
    assert "\n" not in str(found.value)
    for word in words:
        assert word in str(found.value), str(found.value)


def equal(some, others):
    for one, other in zip(some, others, strict=True):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)


# The order


ORDER_OF_SEED_0 = [21, 37, 31, 14, 9, 46, 28, 6, 51, 41, 36, 15]


def test_each_epoch_has_every_image_once_in_another_order():
    seen = labels(first(batches(), 4 * N // 12 + 1))
    epochs = [tuple(seen[start : start + N]) for start in range(0, 4 * N, N)]
    assert all(sorted(epoch) == list(range(N)) for epoch in epochs)
    assert len({*epochs, tuple(range(N))}) == 5


def test_a_batch_has_what_the_arrays_have():
    (batch,) = first(batches(), 1)
    assert (batch.images.shape, batch.images.dtype) == ((12, HEIGHT, WIDTH, 1), np.float32)
    assert (batch.labels.shape, batch.labels.dtype) == ((12,), np.int32)
    np.testing.assert_array_equal(batch.images, AS_IS(SPLIT.images[batch.labels]))


def test_the_order_is_of_the_seed_and_does_not_change_from_version_to_version():
    # Of Grain or of this: a run that is resumed with newer ones must go on with its own order.
    assert first(batches(), 1)[0].labels.tolist() == ORDER_OF_SEED_0
    assert labels(first(batches(batch_size=N, seed=1), 1)).tolist()[:12] != ORDER_OF_SEED_0
    # The first epoch of a seed is not the second one of the seed before.
    ones = [tuple(labels(first(batches(batch_size=N, seed=s), 2))) for s in (0, 1)]
    assert len({ones[0][:N], ones[0][N:], ones[1][:N], ones[1][N:]}) == 4


def test_batches_of_one_image():
    with batches() as twelve, batches(batch_size=1) as ones:
        assert labels(itertools.islice(ones, 12)).tolist() == next(twelve).labels.tolist()


def test_any_image_comes_first():
    ones = [first(batches(batch_size=4, seed=seed), 1)[0].labels for seed in range(75)]
    # Of 53 images; each is expected 5.7 times.
    counts = np.bincount(np.concatenate(ones), minlength=N)
    assert counts.min() > 0
    assert counts.max() < 18


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_processes_together_see_what_one_sees(count, threads):
    one = first(batches(augmentation=BOTH), 10)
    several = [
        first(batches(augmentation=BOTH, process_index=p, process_count=count, threads=threads), 10)
        for p in range(count)
    ]
    for step, batch in enumerate(one):
        parts = [process[step] for process in several]
        assert all(len(part.labels) == 12 // count for part in parts)
        equal([batch], [type(batch)(*map(np.concatenate, zip(*parts, strict=True)))])


def test_the_process_is_asked_of_jax_if_it_is_not_given(monkeypatch):
    import jax

    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    how = {"process_index": None, "process_count": None}
    equal(first(batches(**how), 2), first(batches(process_index=1, process_count=2), 2))


@pytest.mark.parametrize("step", [0, 3, 7])
@pytest.mark.parametrize("count", [1, 4])
def test_it_goes_on_in_the_middle_of_an_epoch_with_any_number_of_processes(step, count):
    whole = first(batches(augmentation=BOTH), 10)
    before = batches(augmentation=BOTH, process_index=1, process_count=2, threads=2)
    with before:
        for _ in range(step):
            next(before)
        state = json.loads(json.dumps(before.get_state()))
    rest = []
    for p in range(count):
        after = batches(augmentation=BOTH, process_index=p, process_count=count, threads=2)
        next(after)
        after.set_state(state)
        assert after.get_state() == state
        rest.append(first(after, 10 - step))
    joined = [map(np.concatenate, zip(*parts, strict=True)) for parts in zip(*rest, strict=True)]
    equal(whole[step:], [type(whole[0])(*parts) for parts in joined])


def test_states_of_another_order_are_refused():
    state = batches().get_state()
    assert state == {"next_index": 0, "seed": 0, "batch_size": 12, "examples": N}
    refused(lambda: batches(seed=1).set_state(state), "seed 0", "seed 1")
    refused(lambda: batches(batch_size=6).set_state(state), "batch_size 12", "batch_size 6")
    fewer = SPLIT.take(range(40))
    refused(lambda: batches(fewer).set_state(state), f"examples {N}", "examples 40")
    refused(lambda: batches().set_state({}), "seed None")
    for wrong in (-1, 1.0, None, True):
        refused(lambda w=wrong: batches().set_state(state | {"next_index": w}), "next_index")


def test_steps_of_an_epoch():
    assert batches().steps_per_epoch == 5
    assert batches(batch_size=N).steps_per_epoch == 1
    assert batches(SPLIT.take(range(48))).steps_per_epoch == 4


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"batch_size": N + 1}, ["batch_size", "54", "53 images"]),
        ({"batch_size": 0}, ["batch_size", "1 or more"]),
        ({"batch_size": 10, "process_count": 4}, ["batch_size", "10", "4 processes"]),
        ({"process_index": 2, "process_count": 2}, ["process_index", "0 to 1"]),
        ({"seed": -1}, ["seed", "-1"]),
        ({"seed": 2**32}, ["seed"]),
        ({"augmentation": Augmentation(crop_padding=5)}, ["crop_padding", "5 x 7", "less than 5"]),
    ],
)
def test_what_no_batches_can_be_made_of(how, words):
    refused(lambda: batches(**how), *words)


def test_without_grain(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    refused(batches, "Grain", "vitspec[train]")


# Images


GREY = {"image_mean": [0.3], "image_std": [0.2]}
PROCESSORS = {
    "as it is": ImageProcessor(size=(HEIGHT, WIDTH), **GREY),
    "not resized": ImageProcessor(do_resize=False, **GREY),
    "grey to colour": ImageProcessor(size=(HEIGHT, WIDTH), image_mean=[0.1, 0.2, 0.3]),
    "larger": ImageProcessor(size=(9, 8), **GREY),
    "turned": ImageProcessor(size=(WIDTH, HEIGHT), **GREY),
    "cut": ImageProcessor(do_resize=False, do_center_crop=True, crop_size=(3, 9), **GREY),
    "shortest edge": ImageProcessor(size={"shortest_edge": 10}, **GREY),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("processor", PROCESSORS.values(), ids=PROCESSORS)
def test_the_model_sees_what_the_exported_processor_makes_of_an_image(processor, channels):
    split = Split(noise(N, HEIGHT, WIDTH, channels), np.arange(N))
    (batch,) = first(batches(split, processor), 1)
    one_by_one = [
        processor(split.images[label], input_data_format="channels_last")[0]
        for label in batch.labels
    ]
    np.testing.assert_array_equal(batch.images, one_by_one)


def test_images_of_several_sizes_that_are_not_resized_are_no_batch():
    split = Split([noise(3, 4, 1), noise(5, 2, 1)], np.arange(2))
    (batch,) = first(batches(split, AS_IS, batch_size=2), 1)
    assert batch.images.shape == (2, HEIGHT, WIDTH, 1)
    for name in ("not resized", "shortest edge"):
        refused(lambda n=name: batches(split, PROCESSORS[n], batch_size=2), "several sizes")


@pytest.mark.parametrize("threads", [0, 2])
def test_a_damaged_picture_stops_it_by_name(tmp_path, threads):
    for name in "ab":
        (tmp_path / name).mkdir()
        for index in range(6):
            path = tmp_path / name / f"{index}.png"
            Image.fromarray(noise(40, 50, 3, seed=index)).save(path)
    bad = load_dataset(tmp_path).train.images.paths[3]
    with open(bad, "r+b") as file:
        file.truncate(1500)
    split = load_dataset(tmp_path).train
    processor = ImageProcessor(size=8)
    with batches(split, processor, batch_size=2, threads=threads) as iterator:
        refused(lambda: list(itertools.islice(iterator, 5)), bad, "damaged")


# Augmentation


def test_nothing_happens_unless_it_is_asked_for():
    images = noise(20, HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(Augmentation().apply(images, draws_of(0, 0, 20)), images)
    equal(first(batches(augmentation=Augmentation()), 3), first(batches(), 3))


def test_every_shift_is_alike_likely_and_keeps_the_pixels():
    padding, count = 2, 5000
    # Each pixel's value says where it was.
    one = np.arange(1, HEIGHT * WIDTH + 1, dtype=np.uint8).reshape(1, HEIGHT, WIDTH, 1)
    images = np.repeat(one, count, axis=0)
    found = Augmentation(crop_padding=padding).apply(images, draws_of(3, 0, count))
    framed = np.pad(one[0, ..., 0], padding)
    shifts = {
        framed[top : top + HEIGHT, left : left + WIDTH].tobytes(): (top, left)
        for top in range(2 * padding + 1)
        for left in range(2 * padding + 1)
    }
    counts = np.zeros((5, 5))
    for image in found[..., 0]:
        counts[shifts[image.tobytes()]] += 1
    # 200 of each are expected, with a standard deviation of 14.
    assert abs(counts - 200).max() < 65


def test_half_are_mirrored_whatever_their_shift():
    count = 4000
    images = np.repeat(noise(1, HEIGHT, WIDTH, 3), count, axis=0)
    draws = draws_of(5, 100, count)
    found = Augmentation(horizontal_flip=True).apply(images, draws)
    mirrored = (found == images[:, :, ::-1]).all((1, 2, 3))
    assert (mirrored | (found == images).all((1, 2, 3))).all()
    assert abs(mirrored.mean() - 0.5) < 0.04
    up, left = draws[:, 0] < 0.5, draws[:, 1] < 0.5
    for other in (up, left):
        assert abs(mirrored[other].mean() - 0.5) < 0.06
    both = BOTH.apply(images, draws)
    shifted = Augmentation(crop_padding=2).apply(images, draws)
    np.testing.assert_array_equal(both[mirrored], shifted[mirrored][:, :, ::-1])
    np.testing.assert_array_equal(both[~mirrored], shifted[~mirrored])


def test_images_given_are_not_changed():
    images = noise(9, HEIGHT, WIDTH, 1)
    images.setflags(write=False)
    assert BOTH.apply(images, draws_of(0, 0, 9)).shape == images.shape


def test_an_image_s_numbers_depend_on_its_place_alone():
    whole = draws_of(7, 0, 30)
    assert whole.shape == (30, DRAWS)
    np.testing.assert_array_equal(whole[11:20], draws_of(7, 11, 9))
    assert len(np.unique(whole)) == whole.size
    assert not np.isin(draws_of(8, 0, 30), whole).any()
    # Places beyond 32 bits, after years of training.
    assert not np.isin(draws_of(7, 2**40, 30), whole).any()
    many = draws_of(0, 0, 4000)
    assert many.min() >= 0
    assert many.max() < 1
    # Six standard deviations of the mean of 4000 uniform numbers.
    np.testing.assert_allclose(many.mean(0), 0.5, atol=0.03)


def test_an_image_is_not_changed_alike_in_two_epochs():
    split = Split(np.repeat(noise(1, HEIGHT, WIDTH, 1), 8, axis=0), np.arange(8))
    steps = first(batches(split, batch_size=8, augmentation=BOTH), 6)
    assert len({image.tobytes() for batch in steps for image in batch.images}) > 15
    others = first(batches(split, batch_size=8, augmentation=BOTH, seed=1), 1)
    assert (others[0].images != steps[0].images).any()


def test_augmentation_that_is_none():
    refused(lambda: Augmentation(crop_padding=-1), "crop_padding", "-1")


# Evaluation


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [8, 52, 60])
@pytest.mark.parametrize("threads", [0, 2])
def test_every_image_counts_once_over_all_processes(batch_size, count, threads):
    times, steps = np.zeros(N), set()
    for p in range(count):
        evaluation = evaluation_batches(
            SPLIT, AS_IS, batch_size=batch_size, process_index=p, process_count=count,
            threads=threads,
        )  # fmt: skip
        found = list(evaluation)
        steps.add(len(found))
        assert len(evaluation) == len(found) == -(-N // batch_size)
        for images, numbers, weights in found:
            assert images.shape == (batch_size // count, HEIGHT, WIDTH, 1)
            assert (weights.dtype, numbers.dtype) == (np.float32, np.int32)
            np.testing.assert_array_equal(images, AS_IS(SPLIT.images[numbers]))
            np.add.at(times, numbers, weights)
    np.testing.assert_array_equal(times, 1)
    assert len(steps) == 1


def test_evaluation_is_in_order_and_again():
    evaluation = evaluation_batches(SPLIT, AS_IS, batch_size=10, process_index=0, process_count=1)
    for _ in range(2):
        numbers = np.concatenate([numbers for _, numbers, _ in evaluation])
        assert numbers[:N].tolist() == list(range(N))
    next(iter(evaluation))
    refused(
        lambda: evaluation_batches(
            Split(noise(0, HEIGHT, WIDTH, 1), np.zeros(0, int)),
            AS_IS,
            batch_size=1,
            process_index=0,
            process_count=1,
        ),
        "no images",
    )


# Threads


def grain_threads():
    return [one for one in threading.enumerate() if one.name.startswith("grain")]


def test_threads_prepare_ahead_and_end():
    with batches(threads=3) as iterator:
        next(iterator)
        assert 1 <= len(grain_threads()) <= 3
    list(evaluation_batches(SPLIT, AS_IS, batch_size=9, process_index=0, process_count=1))
    for _ in range(200):
        if not grain_threads():
            break
        time.sleep(0.01)
    assert not grain_threads()


def test_large_batches_are_not_all_prepared_ahead(monkeypatch):
    from vitfast.data import batches as module

    made = []
    monkeypatch.setattr(module, "PREFETCHED", 3 * 4 * 12 * HEIGHT * WIDTH)
    prepared = module.prepared
    monkeypatch.setattr(module, "prepared", lambda *how: made.append(0) or prepared(*how))
    with batches(threads=8) as iterator:
        next(iterator)
        time.sleep(0.2)
    assert 1 < len(made) <= 4


PROGRAM = """
import sys, types
import vitspec
# Without vitfast's own __init__, which imports what this has no use for.
sys.modules["vitfast"] = vitfast = types.ModuleType("vitfast")
vitfast.__path__ = [PATH]
import numpy as np
from vitfast.data import Split, train_batches
from vitfast.images import ImageProcessor
split = Split(np.zeros((40, 6, 6, 1), np.uint8), np.arange(40))
processor = ImageProcessor(size=48, image_mean=[0.5], image_std=[0.5])
b = train_batches(split, processor, batch_size=40, seed=0, process_index=0, process_count=1,
                  threads=4)
print(next(b).images.shape)
"""


def test_an_interpreter_that_leaves_them_open_ends_in_silence():
    program = PROGRAM.replace("PATH", repr(str(Path(vitfast.__file__).parent)))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "(40, 48, 48, 1)\n", "")
