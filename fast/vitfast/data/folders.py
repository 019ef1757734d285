"""Folders of images by class, read lazily.

    ROOT/train/CLASS/x.jpg + ROOT/test/CLASS/y.jpg, or ROOT/CLASS/x.jpg with a held-out part

Every file's header is read at the start, so that what cannot be used is named before training; its
pixels are read when they are asked for, by the rules of docs/images.md.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitfast.data.dataset import ImageDataset, Split
from vitfast.data.errors import DatasetError, shown
from vitfast.data.split import held_out
from vitfast.images.errors import InvalidImage
from vitfast.images.reading import read_header, read_picture

SUFFIXES = tuple(
    ".bmp .gif .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()  # noqa: SIM905
)
TEST_FOLDERS = ("test", "val", "validation")
"""The first that is there, beside `train`, is the test split."""

DIGESTED = 4096
"""Bytes from the start of each file in the fingerprint, beside its name and size."""

FILES_AT_ONCE = 10_000

GREY_MODES = ("1", "L", "I", "I;16", "I;16B", "I;16L", "F")
"""Pillow's modes of files that become grey pictures."""


class FolderImages(Sequence):
    """The pictures of files, each read when it is asked for: uint8, (H, W, channels)."""

    def __init__(self, paths: Sequence[str], channels: int) -> None:
        self.paths, self.channels = tuple(paths), channels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        try:
            picture = read_picture(self.paths[index])
        except InvalidImage as error:
            raise DatasetError(str(error)) from error
        picture = picture.convert("L" if self.channels == 1 else "RGB")
        return np.asarray(picture).reshape(picture.height, picture.width, self.channels)


class Header(NamedTuple):
    """What is known of a file before it is decoded."""

    size: tuple[int, int]
    grey: bool
    digest: bytes
    problem: str = ""


def read_folders(root: Path, fraction: float, seed: int) -> ImageDataset:
    """The data set of a directory.

    Args:
        root: has `train` and one of `TEST_FOLDERS`, only `train`, or the classes themselves.
        fraction: how much of each class is held out, if there is no folder for the test.
        seed: which images are.

    Raises:
        DatasetError: it has no such form, or an image's header says that it cannot be used.
    """
    training = root / "train" if os.path.isdir(root / "train") else root
    tests = [
        root / name for name in TEST_FOLDERS if training != root and os.path.isdir(root / name)
    ]
    classes = _class_names(training)
    paths, labels = _files(training, classes)
    if tests:
        test_classes = _class_names(tests[0])
        if extra := sorted(set(test_classes) - set(classes)):
            raise DatasetError(
                f"{shown(tests[0])}: class {shown(extra[0])} is not in {shown(training)}; the test "
                "has the classes of the training, by the same names"
            )
        test_paths, test_labels = _files(tests[0], test_classes)
        numbers = np.array([classes.index(name) for name in test_classes])
        parts = [(paths, labels), (test_paths, numbers[test_labels])]
    else:
        relative = [Path(path).relative_to(training).as_posix() for path in paths]
        parts = [
            ([paths[index] for index in chosen], labels[chosen])
            for chosen in held_out(relative, labels, classes, fraction, seed)
        ]
    return _dataset(root, classes, parts)


def _dataset(root: Path, classes: tuple[str, ...], parts: list[tuple[list[str], Any]]) -> Any:
    """The data set of the files and labels of the training and the test, headers checked."""
    headers = [_headers(paths) for paths, _ in parts]
    everything = [header for part in headers for header in part]
    if bad := [header.problem for header in everything if header.problem]:
        more = f" (the first of {len(bad)} such files)" if len(bad) > 1 else ""
        raise DatasetError(f"{bad[0]}{more}")
    digest = hashlib.sha256(repr(classes).encode())
    for (paths, labels), known in zip(parts, headers, strict=True):
        digest.update(f"{len(paths)}\n".encode())
        for path, label, header in zip(paths, labels, known, strict=True):
            digest.update(f"{int(label)} {os.path.basename(path)!r}\n".encode())
            digest.update(header.digest)
    channels = 1 if all(header.grey for header in everything) else 3
    sizes = {header.size for header in everything}
    train, test = (Split(FolderImages(paths, channels), labels) for paths, labels in parts)
    return ImageDataset(
        name=shown(root.resolve().name),
        train=train,
        test=test,
        class_names=classes,
        fingerprint=digest.hexdigest(),
        channels=channels,
        image_size=sizes.pop() if len(sizes) == 1 else None,
    )


def _class_names(folder: Path) -> tuple[str, ...]:
    """The names of the folders in it, in order."""
    names = sorted(entry.name for entry in _entries(folder) if os.path.isdir(entry))
    if len(names) < 2:
        raise DatasetError(
            f"{shown(folder)}: has {len(names)} folders, expected one for each of two or more "
            "classes, or four IDX files such as train-images-idx3-ubyte.gz"
        )
    for name in names:
        if not name.isprintable():
            raise DatasetError(
                f"{shown(folder)}: {shown(name)} cannot be a class's name; rename it"
            )
    return tuple(names)


def _files(folder: Path, classes: tuple[str, ...]) -> tuple[list[str], Any]:
    """The paths of all pictures, by class and then by name, and their labels."""
    paths, labels = [], []
    for number, name in enumerate(classes):
        entries = sorted(_entries(folder / name), key=lambda entry: entry.name)
        if not entries:
            raise DatasetError(f"{shown(folder / name)}: has no pictures; remove it or fill it")
        for entry in entries:
            if os.path.isdir(entry) or not entry.name.lower().endswith(SUFFIXES):
                raise DatasetError(
                    f"{shown(entry.path)}: is no picture ({', '.join(SUFFIXES)}); a class's folder "
                    "holds nothing else: move it away or convert it"
                )
            paths.append(entry.path)
            labels.append(number)
    return paths, np.array(labels, np.int32)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in it, but for hidden files."""
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if not entry.name.startswith(".")]
    except OSError as error:
        raise DatasetError(f"{shown(folder)}: cannot be listed: {error.strerror}") from error


def _headers(paths: list[str]) -> list[Header]:
    """What is known of each file, some at a time: each that waits for its turn takes memory."""
    found: list[Header] = []
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), FILES_AT_ONCE):
            found += pool.map(_header, paths[start : start + FILES_AT_ONCE])
    return found


def _header(path: str) -> Header:
    """What a file's first bytes say."""
    try:
        width, height, mode = read_header(path)
        with open(path, "rb") as file:
            start = file.read(DIGESTED)
            size = os.fstat(file.fileno()).st_size
    except (InvalidImage, OSError) as error:
        return Header((0, 0), False, b"", shown(" ".join(str(error).split())))
    digest = hashlib.sha256(f"{size}\n".encode() + start).digest()
    return Header((height, width), mode in GREY_MODES, digest)
