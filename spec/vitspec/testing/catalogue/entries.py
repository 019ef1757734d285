"""All entries, and how to find one."""

from __future__ import annotations

from vitspec.testing.catalogue.attention import ATTENTION
from vitspec.testing.catalogue.batch_and_accuracy import ACCURACY, BATCH
from vitspec.testing.catalogue.deviation import LEAN, PRACTICAL, Deviation
from vitspec.testing.catalogue.embedding import EMBEDDING
from vitspec.testing.catalogue.encoder import ENCODER, LAYERS
from vitspec.testing.catalogue.feed_forward import FEED_FORWARD
from vitspec.testing.catalogue.gradients import GRADIENTS
from vitspec.testing.catalogue.inputs_and_norms import HEAD, IMAGES, INTERPOLATED, NORMS_AND_BLOCKS
from vitspec.testing.catalogue.layouts import LAYOUTS
from vitspec.testing.catalogue.left_out import ANOTHER_ACTIVATION, LEFT_OUT
from vitspec.testing.catalogue.normalization import NORMALIZATION
from vitspec.testing.catalogue.practical import PRACTICAL_FORWARD
from vitspec.testing.catalogue.practical_gradients import (
    DECODER,
    INTERPOLATION,
    PRACTICAL_GRADIENTS,
)
from vitspec.testing.catalogue.scores import SCORES
from vitspec.testing.catalogue.tangents import TANGENTS
from vitspec.testing.catalogue.wrong_gradients import WRONG_GRADIENTS

GROUPS: dict[str, tuple[Deviation, ...]] = {
    "Attention": ATTENTION,
    "Layer normalisation": NORMALIZATION,
    "Encoder and feed-forward": (*LAYERS, *FEED_FORWARD, *ENCODER),
    "Patches, tokens, positions, pooling": EMBEDDING,
    "Derivatives": (*GRADIENTS, *TANGENTS),
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

LATER_GROUPS: dict[str, tuple[Deviation, ...]] = {
    "Layouts": LAYOUTS,
    "Another activation": ANOTHER_ACTIVATION,
    "Left out": LEFT_OUT,
    "Scores and weights": SCORES,
    "Images, and what stands for positions": (*IMAGES, *INTERPOLATED),
    "Normalisations and blocks": NORMS_AND_BLOCKS,
    "The head": HEAD,
    "Further derivatives": WRONG_GRADIENTS,
}
"""Those that came after the test vectors' first version, of either family or of both."""

_LEAN = tuple(d for group in GROUPS.values() for d in group)
_PRACTICAL_ALONE = tuple(d for group in PRACTICAL_GROUPS.values() for d in group)
_LATER = tuple(d for group in LATER_GROUPS.values() for d in group)

CATALOGUE: tuple[Deviation, ...] = tuple(d.of(*LEAN) for d in _LEAN)
"""The deviations as the Lean mirror's models show them, by which test vectors are admitted."""

LATER: tuple[Deviation, ...] = tuple(d.of(*LEAN) for d in _LATER if set(d.specs) & set(LEAN))
"""Those that came later, which no ledger of the vectors knows, as these models show them."""

EVERY: tuple[Deviation, ...] = (*_LEAN, *_PRACTICAL_ALONE, *_LATER)
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
        return tuple(d for d in (*CATALOGUE, *LATER) if spec in d.specs)
    shown = (d for d in (*_PRACTICAL_ALONE, *_LEAN, *_LATER) if spec in d.specs)
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
