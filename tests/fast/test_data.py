"""Data sets: IDX files, folders of images, digits, arrays; and each way in which one is refused.

Files are made here; the real Fashion-MNIST is read where Debian's package is installed.
"""

import gzip
import io
import struct
import sys

import numpy as np
import pytest
from PIL import Image

from vitfast.data import DatasetError, ImageDataset, Split, dataset_processor, load_dataset
from vitfast.data import idx as idx_files
from vitfast.data import load as load_module
from vitfast.data.folders import FolderImages
from vitfast.images import ImageProcessor
from vitspec.testing.photograph import PHOTOGRAPH

NAMES = [
    f"{split}-{kind}-ubyte"
    for split in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
]


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def idx(array):
    header = struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape)
    return header + array.tobytes()


def arrays():
    """Images and labels of 3 classes, of a training split of 11 and a test split of 5."""
    train, test = np.arange(11, dtype=np.uint8) % 3, np.arange(5, dtype=np.uint8) % 3
    return [noise(11, 6, 4), train, noise(5, 6, 4, seed=1), test]


def written(folder, packed=False, **contents):
    """The four files, of `arrays()` but for those named in `contents` (None: left out)."""
    folder.mkdir(exist_ok=True)
    for name, array in zip(NAMES, arrays(), strict=True):
        data = contents.get(name.split("-idx")[0].replace("-", "_"), idx(array))
        if data is not None:
            end = ".gz" * packed
            (folder / f"{name}{end}").write_bytes(gzip.compress(data) if packed else data)
    return folder


def refused(call, *words):
    """The error's one line, which has all the words."""
    with pytest.raises(DatasetError) as found:
        call()
    text = str(found.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text
    return text


# IDX files


@pytest.mark.parametrize("packed", [False, True])
def test_four_idx_files_are_a_data_set(tmp_path, packed):
    dataset = load_dataset(written(tmp_path / "mine", packed))
    images, labels, test_images, test_labels = arrays()
    np.testing.assert_array_equal(dataset.train.images, images[..., None])
    np.testing.assert_array_equal(dataset.train.labels, labels)
    np.testing.assert_array_equal(dataset.test.images, test_images[..., None])
    np.testing.assert_array_equal(dataset.test.labels, test_labels)
    assert dataset.train.labels.dtype == np.int32
    assert (dataset.name, dataset.class_names) == ("mine", ("0", "1", "2"))
    assert (dataset.channels, dataset.image_size) == (1, (6, 4))


def test_names_with_a_dot_and_the_content_decides_what_is_packed(tmp_path):
    for name, array in zip(NAMES, arrays(), strict=True):
        (tmp_path / name.replace("-idx", ".idx")).write_bytes(gzip.compress(idx(array)))
    assert len(load_dataset(tmp_path).train) == 11


def test_the_fingerprint_is_that_of_the_contents(tmp_path):
    plain = load_dataset(written(tmp_path / "a"))
    packed = load_dataset(written(tmp_path / "b", packed=True))
    changed = arrays()[0]
    changed[10, 5, 3] ^= 1
    other = load_dataset(written(tmp_path / "c", train_images=idx(changed)))
    assert plain.fingerprint == packed.fingerprint != other.fingerprint
    assert len(plain.fingerprint) == 64


IMAGES, LABELS = idx(arrays()[0]), idx(arrays()[1])


def header(*sizes, magic=0x803):
    return struct.pack(f">I{len(sizes)}I", magic, *sizes)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", ["truncated in its header"]),
        (IMAGES[:13], ["truncated in its header"]),
        (IMAGES[:-1], ["truncated", "11 x 6 x 4"]),
        (IMAGES + b"\0", ["left over"]),
        (LABELS, ["holds labels", "swapped"]),
        (IMAGES[3::-1] + IMAGES[4:], ["wrong order", "big-endian"]),
        (b"\x89PNG" + IMAGES[4:], ["no IDX file", "0x89504e47"]),
        (header(11, 6, 4, magic=0xD03) + IMAGES[16:], ["no IDX file", "0x00000d03"]),
        (header(0, 6, 4), ["is empty", "0 x 6 x 4"]),
        (header(2**32 - 1, 2**32 - 1, 2**32 - 1), ["4294967295 x 4294967295"]),
        (header(10, 6, 4) + IMAGES[16:-24], ["train has 10 images and 11 labels"]),
        (header(11, 4, 6) + IMAGES[16:], ["(4, 6, 1)", "(6, 4, 1)"]),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_wrong_file_of_images_is_named(tmp_path, data, words, packed):
    folder = written(tmp_path / "mine", packed, train_images=data)
    refused(lambda: load_dataset(folder), *words, str(folder))


def test_a_header_that_claims_much_takes_no_memory(tmp_path, monkeypatch):
    def never(*size):
        raise AssertionError(size)

    claim = header(4000, 1000, 1000)
    packed = gzip.compress(claim + bytes(10**6))
    for name, data, word in (("a", claim, "truncated"), ("b", packed, "cannot hold")):
        (tmp_path / name).write_bytes(data)
        monkeypatch.setattr(idx_files.np, "empty", never)
        refused(lambda name=name: idx_files.read_idx(tmp_path / name, 3), "4000 x 1000", word)
        monkeypatch.undo()
    monkeypatch.setattr(idx_files, "LARGEST", 100)
    (tmp_path / "large").write_bytes(IMAGES)
    refused(lambda: idx_files.read_idx(tmp_path / "large", 3), "too large")


def test_no_more_is_unpacked_than_the_header_says(tmp_path, monkeypatch):
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(IMAGES + bytes(5 * 10**7)))
    unpacked = []

    class Counting(gzip.GzipFile):
        def read(self, size=-1):
            unpacked.append(size)
            assert size >= 0
            return super().read(size)

    monkeypatch.setattr(idx_files.gzip, "GzipFile", Counting)
    refused(lambda: idx_files.read_idx(bomb, 3), "left over", "bomb.gz")
    assert sum(unpacked) < 300


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named(tmp_path, name):
    folder = written(tmp_path / "mine", packed=True)
    (folder / f"{name}.gz").unlink()
    refused(lambda: load_dataset(folder), f"no {name}", "without .gz", str(folder))


def test_labels_that_are_no_class(tmp_path):
    test_labels = arrays()[3]
    test_labels[3] = 7
    folder = written(tmp_path / "mine", t10k_labels=idx(test_labels))
    refused(lambda: load_dataset(folder), "1 of 5 labels", "0 to 2", "first 7 of image 3")


def test_what_is_no_ordinary_file_or_cannot_be_read(tmp_path):
    folder = written(tmp_path / "mine", train_images=None)
    (folder / NAMES[0]).mkdir()
    refused(lambda: load_dataset(folder), "no ordinary file", NAMES[0])
    refused(lambda: idx_files.read_idx(tmp_path / "none", 3), "No such file")


def damaged(whole, generator):
    """The bytes with up to three bits changed, and perhaps cut off."""
    data = bytearray(whole)
    for _ in range(generator.integers(4)):
        # Half of the damage is to the first bytes: headers, and gzip's.
        end = len(data) if generator.random() < 0.5 else 24
        data[generator.integers(end)] ^= 1 << generator.integers(8)
    return data[: generator.integers(len(data))] if generator.random() < 0.3 else data


@pytest.mark.parametrize(
    "whole", [IMAGES, gzip.compress(IMAGES), gzip.compress(bytes(60))], ids=["plain", "gzip", "x"]
)
def test_damage_anywhere_is_an_error_in_words_or_leaves_a_whole_array(
    tmp_path, whole, without_type_checks
):
    generator, path, wrong = np.random.default_rng(0), tmp_path / "file", []
    for _ in range(700):
        path.write_bytes(damaged(whole, generator))
        try:
            found = idx_files.read_idx(path, 3)
        except DatasetError as error:
            wrong.append(str(error))
        else:
            assert (found.ndim, found.dtype) == (3, np.uint8)
    assert len(wrong) > 200
    assert not any("\n" in line for line in wrong)


# Fashion-MNIST


def fashion(folder, **contents):
    folder.mkdir(parents=True)
    images, labels = noise(20, 28, 28), np.arange(20, dtype=np.uint8) % 10
    return written(
        folder, packed=True, train_images=idx(images), train_labels=idx(labels),
        t10k_images=idx(images[:10]), t10k_labels=idx(labels[:10]), **contents,
    )  # fmt: skip


def test_fashion_mnist_is_found_with_its_class_names(tmp_path, monkeypatch):
    monkeypatch.setattr(load_module, "DEBIAN", tmp_path / "usr")
    monkeypatch.setenv("VITFAST_DATA", str(tmp_path / "data"))
    refused(
        lambda: load_dataset("fashion-mnist"), "dataset-fashion-mnist", "VITFAST_DATA",
        str(tmp_path / "usr"), str(tmp_path / "data"),
    )  # fmt: skip
    fashion(tmp_path / "data" / "fashion-mnist")
    named = load_dataset("fashion-mnist")
    assert named.class_names[0] == "T-shirt/top"
    assert named.class_names[9] == "Ankle boot"
    by_path = load_dataset(tmp_path / "data" / "fashion-mnist")
    assert (by_path.name, by_path.class_names) == (named.name, named.class_names)
    monkeypatch.delenv("VITFAST_DATA")
    refused(lambda: load_dataset("fashion-mnist"), "dataset-fashion-mnist")
    fashion(tmp_path / "usr" / "fashion-mnist")
    assert load_dataset("fashion-mnist").fingerprint == named.fingerprint


def test_the_real_fashion_mnist():
    try:
        dataset = load_dataset("fashion-mnist")
    except DatasetError as error:
        pytest.skip(str(error))
    assert (len(dataset.train), len(dataset.test)) == (60_000, 10_000)
    assert set(np.bincount(dataset.train.labels)) == {6000}
    processor = dataset_processor(config(1, 28, 28), dataset)
    assert (processor.image_mean, processor.image_std) == ((0.286,), (0.353,))


# Digits


def test_digits_are_split_by_class_and_their_levels_go_back():
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_digits

    dataset, whole = load_dataset("digits"), load_digits()
    assert (len(dataset.train), len(dataset.test)) == (1438, 359)
    everything = np.concatenate([dataset.train.images, dataset.test.images])
    back = np.rint(everything[..., 0] * (16 / 255)).astype(int)
    assert back.max() == 16
    assert sorted(back.reshape(-1, 64).tolist()) == sorted(whole.data.astype(int).tolist())
    shares = np.bincount(dataset.test.labels) / np.bincount(whole.target)
    # A part of a class is whole images: up to half of one of 174.
    np.testing.assert_allclose(shares, 0.2, atol=0.004)
    assert load_dataset("digits").fingerprint == dataset.fingerprint
    assert load_dataset("digits", split_seed=1).fingerprint != dataset.fingerprint
    # The same split on any machine, and tomorrow: results are compared by it.
    assert dataset.fingerprint.startswith("168e0648571a")


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    refused(lambda: load_dataset("digits"), "scikit-learn", "vitspec[train]")


# Folders


def picture(path, height=5, width=7, mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = noise(height, width, 3, seed=seed)
    Image.fromarray(levels).convert(mode).save(path)
    return np.asarray(Image.open(path).convert(mode))


def folders(root, counts, **how):
    """Folders with so many pictures each."""
    for number, (name, count) in enumerate(counts.items()):
        for index in range(count):
            picture(root / name / f"{index}.png", seed=100 * number + index, **how)
    return root


def test_folders_by_class_with_a_part_held_out(tmp_path):
    folders(tmp_path, {"cat": 10, "bird": 20, "ant": 2})
    dataset = load_dataset(tmp_path)
    assert dataset.class_names == ("ant", "bird", "cat")
    assert np.bincount(dataset.test.labels).tolist() == [1, 4, 2]
    assert np.bincount(dataset.train.labels).tolist() == [1, 16, 8]
    paths = dataset.train.images.paths + dataset.test.images.paths
    assert len(set(paths)) == 32
    for index in (0, 7, 24):
        path = dataset.train.images.paths[index]
        assert dataset.class_names[dataset.train.labels[index]] in path
        np.testing.assert_array_equal(dataset.train.images[index], np.asarray(Image.open(path)))
    assert load_dataset(tmp_path, held_out=0.5).test.labels.tolist().count(1) == 10
    others = load_dataset(tmp_path, split_seed=3)
    assert others.test.images.paths != dataset.test.images.paths
    assert load_dataset(tmp_path).test.images.paths == dataset.test.images.paths


def test_what_is_held_out_stays_so_when_pictures_are_added(tmp_path):
    folders(tmp_path, {"a": 40, "b": 40})
    before = set(load_dataset(tmp_path).test.images.paths)
    folders(tmp_path, {"a": 44, "b": 44})
    after = set(load_dataset(tmp_path).test.images.paths)
    assert len(before - after) <= 4


@pytest.mark.parametrize("name", ["test", "val", "validation"])
def test_folders_for_training_and_test(tmp_path, name):
    folders(tmp_path / "train", {"x": 3, "y": 2, "z": 2})
    folders(tmp_path / name, {"x": 1, "z": 2, "y": 1}, height=4)
    dataset = load_dataset(tmp_path)
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert dataset.test.labels.tolist() == [0, 1, 2, 2]
    assert dataset.test.images[0].shape == (4, 7, 3)
    assert (dataset.channels, dataset.image_size) == (3, None)
    assert dataset.name == tmp_path.name


def test_a_test_without_one_of_the_classes_keeps_the_numbers(tmp_path):
    folders(tmp_path / "train", {"x": 1, "y": 1, "z": 1})
    folders(tmp_path / "test", {"z": 1, "y": 1})
    assert load_dataset(tmp_path).test.labels.tolist() == [1, 2]


def test_grey_pictures_make_a_grey_data_set_and_others_colour(tmp_path):
    folders(tmp_path / "grey", {"x": 2, "y": 2}, mode="L")
    grey = load_dataset(tmp_path / "grey")
    assert (grey.channels, grey.image_size) == (1, (5, 7))
    assert grey.train.images[0].shape == (5, 7, 1)
    picture(tmp_path / "grey" / "x" / "9.png")
    mixed = load_dataset(tmp_path / "grey")
    assert mixed.channels == 3
    assert {image.shape for image in mixed.train.images} == {(5, 7, 3)}


def test_hidden_files_are_passed_over_and_links_followed(tmp_path):
    elsewhere = folders(tmp_path / "elsewhere", {"b": 2})
    root = folders(tmp_path / "root", {"a": 2})
    (root / "b").symlink_to(elsewhere / "b")
    (root / ".cache").mkdir()
    (root / "a" / ".DS_Store").write_bytes(b"x")
    assert load_dataset(root).class_names == ("a", "b")
    (root / "a" / "round.png").symlink_to(root / "a" / "round.png")
    refused(lambda: load_dataset(root), "round.png", "cannot be opened")
    (root / "a" / "round.png").unlink()
    (root / "a" / "z.png").symlink_to(tmp_path / "nowhere.png")
    refused(lambda: load_dataset(root), "z.png", "no such file")


def test_the_fingerprint_of_folders(tmp_path):
    root = folders(tmp_path / "one", {"a": 3, "b": 3})
    before = load_dataset(root).fingerprint
    assert before == load_dataset(folders(tmp_path / "two", {"a": 3, "b": 3})).fingerprint
    (root / "a" / "1.png").rename(root / "a" / "7.png")
    renamed = load_dataset(root).fingerprint
    picture(root / "a" / "7.png", seed=77)
    assert len({before, renamed, load_dataset(root).fingerprint}) == 3


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: (root / "a" / "0.png").write_bytes(b""), ["0.png", "is empty"]),
        (lambda root: (root / "a" / "0.png").write_bytes(b"x" * 99), ["0.png", "damaged"]),
        (lambda root: [(root / c / "0.png").write_bytes(b"x") for c in "ab"], ["first of 2"]),
        (lambda root: (root / "a" / "x.pbm").write_bytes(b"P4 10000 10000\n"), ["max_pixels"]),
        (lambda root: (root / "a" / "x.pbm").write_bytes(b"P4 20000 20000\n"), ["x.pbm", "limit"]),
        (lambda root: (root / "a" / "notes.txt").write_text("x"), ["notes.txt", "no picture"]),
        (lambda root: (root / "a" / "more").mkdir(), ["more", "no picture"]),
        (lambda root: (root / "c").mkdir(), ["c: has no pictures"]),
        (lambda root: picture(root / "c" / "0.png"), ["class c", "has 1 images"]),
        (lambda root: picture(root / "c\nd" / "0.png"), [r"'c\nd'", "rename"]),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, spoil, words):
    root = folders(tmp_path / "root", {"a": 2, "b": 2})
    spoil(root)
    refused(lambda: load_dataset(root), *words)


def test_directories_that_are_no_data_set(tmp_path):
    refused(lambda: load_dataset(tmp_path / "none"), "no such directory", '"digits"')
    refused(lambda: load_dataset(tmp_path), "has 0 folders", "four IDX files")
    (tmp_path / "file").write_bytes(b"")
    refused(lambda: load_dataset(tmp_path / "file"), "is no directory")
    folders(tmp_path / "train", {"a": 1, "b": 1})
    folders(tmp_path / "val", {"a": 1, "c": 1})
    refused(lambda: load_dataset(tmp_path), "class c", "is not in")
    for fraction in (0.0, 1.0, -0.5, float("nan")):
        refused(lambda f=fraction: load_dataset(tmp_path / "train", held_out=f), "held_out")


def test_pictures_by_the_reader_s_rules(tmp_path):
    path = tmp_path / "x.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(4, 9, 3)).save(path, exif=exif)
    assert FolderImages([str(path)], 3)[0].shape == (9, 4, 3)
    Image.fromarray(noise(4, 9, 4), "CMYK").save(path)
    assert FolderImages([str(path)], 3)[0].shape == (4, 9, 3)


def test_a_picture_that_is_found_to_be_damaged_when_it_is_read(tmp_path):
    folders(tmp_path, {"a": 2, "b": 2}, height=50, width=60)
    path = tmp_path / "a" / "0.png"
    path.write_bytes(path.read_bytes()[:2000])
    dataset = load_dataset(tmp_path)
    everything = [*dataset.train.images.paths, *dataset.test.images.paths]
    refused(lambda: FolderImages(everything, 3)[everything.index(str(path))], str(path), "damaged")


# Arrays


def given(**changes):
    images, labels, test_images, test_labels = arrays()
    keys = ("train_images", "train_labels", "test_images", "test_labels")
    values = dict(zip(keys, (images, labels, test_images, test_labels), strict=True))
    return values | changes


def test_arrays_as_a_data_set():
    dataset = ImageDataset.from_arrays(**given(), class_names=["a", "b", "c"], name="mine")
    assert dataset.train.images.shape == (11, 6, 4, 1)
    assert dataset.class_names == ("a", "b", "c")
    lists = given(train_labels=arrays()[1].tolist())
    assert ImageDataset.from_arrays(**lists).train.labels.dtype == np.int32


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_images": noise(11, 6, 4) / 255}, ["train_images", "float64", "rint"]),
        ({"train_images": noise(11, 6, 4, 2)}, ["(11, 6, 4, 2)"]),
        ({"test_images": noise(11, 6)}, ["test_images", "(11, 6)"]),
        ({"test_images": noise(0, 6, 4), "test_labels": np.zeros(0, int)}, ["(0, 6, 4, 1)"]),
        ({"test_images": noise(5, 4, 6)}, ["(6, 4, 1)", "(4, 6, 1)"]),
        ({"train_labels": np.zeros(10, int)}, ["11 images and 10 labels"]),
        ({"train_labels": np.zeros(11)}, ["float64"]),
        ({"train_labels": np.zeros((11, 3), int)}, ["(11, 3)"]),
        ({"train_labels": np.full(11, -1), "class_names": ["a"]}, ["first -1"]),
        ({"class_names": ["a", "b"]}, ["train_labels", "0 to 1"]),
    ],
)
def test_arrays_that_are_no_data_set(changes, words):
    refused(lambda: ImageDataset.from_arrays(**given(**changes)), *words)


def test_some_of_a_split():
    split = Split(noise(9, 3, 2, 1), np.arange(9))
    taken = split.take([7, 2])
    np.testing.assert_array_equal(taken.images, split.images[[7, 2]])
    lazily = Split(list(split.images), split.labels).take([7, 2])
    assert lazily.labels.tolist() == taken.labels.tolist() == [7, 2]
    np.testing.assert_array_equal(lazily.images[1], split.images[2])
    assert len(lazily.images) == len(list(lazily.images)) == 2


# The processor


def config(channels, height=6, width=4):
    fields = {"image_h": height, "image_w": width, "in_channels": channels}
    return type("Config", (), fields)


def test_the_processor_has_the_moments_of_the_training_images():
    images = noise(50, 6, 4, 3)
    labels = np.arange(50) % 2
    colour = ImageDataset.from_arrays(images, labels, images[:2], labels[:2])
    processor = dataset_processor(config(3, 8, 10), colour)
    assert processor.size == {"height": 8, "width": 10}
    levels = images / 255
    # Both are stored to four decimals.
    np.testing.assert_allclose(processor.image_mean, levels.mean((0, 1, 2)), atol=5.1e-5)
    np.testing.assert_allclose(processor.image_std, levels.std((0, 1, 2)), atol=5.1e-5)
    assert dataset_processor(config(1), colour).image_mean == (0.5,)
    grey = ImageDataset.from_arrays(images[..., 0], labels, images[:2, ..., 0], labels[:2])
    assert dataset_processor(config(1), grey).image_mean == processor.image_mean[:1]
    assert dataset_processor(config(3), grey).image_std == processor.image_std[:1] * 3


def test_the_processor_where_nothing_can_be_measured(tmp_path):
    black = np.zeros((2, 6, 4), np.uint8)
    flat = ImageDataset.from_arrays(black, [0, 1], black, [0, 1])
    assert dataset_processor(config(1), flat) == ImageProcessor(
        size=(6, 4), image_mean=[0.5], image_std=[0.5]
    )
    files = load_dataset(folders(tmp_path, {"a": 2, "b": 2}))
    assert dataset_processor(config(3), files).image_mean == (0.5,) * 3
    refused(lambda: dataset_processor(config(4), flat), "in_channels", "4")


def test_a_photograph_through_a_folder_is_what_the_processor_makes_of_the_file(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(2):
            file = io.BytesIO()
            Image.open(PHOTOGRAPH).rotate(90 * index, expand=True).save(file, "PNG")
            (tmp_path / name / f"{index}.png").write_bytes(file.getvalue())
    dataset = load_dataset(tmp_path)
    processor = dataset_processor(config(3, 12, 20), dataset)
    for path, image in zip(dataset.test.images.paths, dataset.test.images, strict=True):
        seen = processor(image, input_data_format="channels_last")
        np.testing.assert_array_equal(seen, processor(path))
