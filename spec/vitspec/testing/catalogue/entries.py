"""All entries, and how to find one."""

from __future__ import annotations

from vitspec.testing.catalogue.attention import ATTENTION
from vitspec.testing.catalogue.batch_and_accuracy import ACCURACY, BATCH
from vitspec.testing.catalogue.deviation import Deviation
from vitspec.testing.catalogue.embedding import EMBEDDING
from vitspec.testing.catalogue.encoder import ENCODER_DEVIATIONS
from vitspec.testing.catalogue.gradients import GRADIENTS
from vitspec.testing.catalogue.normalization import NORMALIZATION

GROUPS: dict[str, tuple[Deviation, ...]] = {
    "Attention": ATTENTION,
    "Layer normalisation": NORMALIZATION,
    "Encoder and feed-forward": ENCODER_DEVIATIONS,
    "Patches, tokens, positions, pooling": EMBEDDING,
    "Derivatives": GRADIENTS,
    "Batches": BATCH,
    "Accuracy": ACCURACY,
}
"""Every known deviation, by where it sits."""

CATALOGUE: tuple[Deviation, ...] = tuple(d for group in GROUPS.values() for d in group)
"""Every known deviation."""

_BY_NAME = {d.name: d for d in CATALOGUE}


def deviation(name: str) -> Deviation:
    """The deviation of this name.

    Raises:
        KeyError: there is none; the message lists the names.
    """
    if name not in _BY_NAME:
        raise KeyError(f"no deviation is named {name!r}; known: {', '.join(_BY_NAME)}")
    return _BY_NAME[name]
