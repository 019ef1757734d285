"""All entries, and how to find one."""

from __future__ import annotations

from vitspec.testing.catalogue.attention import ATTENTION
from vitspec.testing.catalogue.batch_and_accuracy import ACCURACY, BATCH
from vitspec.testing.catalogue.deviation import LEAN, PRACTICAL, Deviation
from vitspec.testing.catalogue.embedding import EMBEDDING
from vitspec.testing.catalogue.encoder import ENCODER, LAYERS
from vitspec.testing.catalogue.feed_forward import FEED_FORWARD
from vitspec.testing.catalogue.gradients import GRADIENTS
from vitspec.testing.catalogue.normalization import NORMALIZATION
from vitspec.testing.catalogue.practical import PRACTICAL_FORWARD
from vitspec.testing.catalogue.practical_gradients import (
    DECODER,
    INTERPOLATION,
    PRACTICAL_GRADIENTS,
)

GROUPS: dict[str, tuple[Deviation, ...]] = {
    "Attention": ATTENTION,
    "Layer normalisation": NORMALIZATION,
    "Encoder and feed-forward": (*LAYERS, *FEED_FORWARD, *ENCODER),
    "Patches, tokens, positions, pooling": EMBEDDING,
    "Derivatives": GRADIENTS,
    "Batches": BATCH,
    "Accuracy": ACCURACY,
}
"""The deviations of the Lean mirror's models, by where they sit; most show in both families."""

PRACTICAL_GROUPS: dict[str, tuple[Deviation, ...]] = {
    "The practical family": PRACTICAL_FORWARD,
    "The practical family: derivatives": PRACTICAL_GRADIENTS,
    "The practical family: interpolated positions": INTERPOLATION,
    "The practical family: decoder": DECODER,
}
"""The deviations of the practical family alone."""

_LEAN = tuple(d for group in GROUPS.values() for d in group)
_PRACTICAL_ALONE = tuple(d for group in PRACTICAL_GROUPS.values() for d in group)

CATALOGUE: tuple[Deviation, ...] = tuple(d.of(*LEAN) for d in _LEAN)
"""The deviations as the Lean mirror's models show them, by which test vectors are admitted."""

EVERY: tuple[Deviation, ...] = (*_LEAN, *_PRACTICAL_ALONE)
"""Every known deviation, each with its forms in all families."""

ALIASES: dict[str, str] = {d.alias: d.name for d in EVERY if d.alias}
"""Names that entries of the practical family had, and what they are called now."""

_BY_NAME = {d.name: d for d in EVERY}


def deviations_of(spec: str, other_sizes: bool = False) -> tuple[Deviation, ...]:
    """The deviations that can show in a model, as they are planted there.

    Args:
        spec: the model.
        other_sizes: whether images may have another size than the configuration's.
    """
    if spec not in PRACTICAL:
        return tuple(d for d in CATALOGUE if spec in d.specs)
    shown = (d for d in (*_PRACTICAL_ALONE, *_LEAN) if spec in d.specs)
    return tuple(d.of(spec) for d in shown if other_sizes or not d.other_sizes_only)


def deviation(name: str) -> Deviation:
    """The deviation of this name, planted in all families that show it.

    By an alias, which only the practical family had, it is the deviation of that family, under the
    name that it has now.

    Raises:
        KeyError: there is none; the message lists the names.
    """
    if name in ALIASES:
        return _BY_NAME[ALIASES[name]].of(*PRACTICAL)
    if name not in _BY_NAME:
        raise KeyError(f"no deviation is named {name!r}; known: {', '.join(_BY_NAME)}")
    return _BY_NAME[name]
