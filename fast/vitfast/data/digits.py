"""scikit-learn's handwritten digits: 1797 images of 8 x 8, which come with it.

Test set of the Optical Recognition of Handwritten Digits data (E. Alpaydin, C. Kaynak, UCI 1998).
Their levels 0 to 16 become the nearest of 0 to 255: level = rint(v * 255 / 16), and back,
v = rint(level * 16 / 255), exactly.
"""

from __future__ import annotations

import numpy as np

from vitfast.data.dataset import ImageDataset
from vitfast.data.errors import DatasetError
from vitfast.data.split import held_out

HELD_OUT = 0.2


def read_digits(fraction: float = HELD_OUT, seed: int = 0) -> ImageDataset:
    """The digits, with a part of each class held out for the test.

    Raises:
        DatasetError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DatasetError(
            "digits: they come with scikit-learn, which is not installed: pip install "
            "'vitspec[train]'"
        ) from error
    found = load_digits()
    images = np.rint(found.images * (255 / 16)).astype(np.uint8)
    labels = found.target.astype(np.int32)
    class_names = tuple(str(number) for number in range(10))
    names = [str(index) for index in range(len(labels))]
    train, test = held_out(names, labels, class_names, fraction, seed)
    return ImageDataset.from_arrays(
        images[train], labels[train], images[test], labels[test],
        class_names=class_names, name="digits",
    )  # fmt: skip
