"""All entries, and how to find one."""

from __future__ import annotations

from dataclasses import replace

from vitspec.testing.catalogue.attention import ATTENTION
from vitspec.testing.catalogue.batch_and_accuracy import ACCURACY, BATCH
from vitspec.testing.catalogue.deviation import Deviation, Patch
from vitspec.testing.catalogue.embedding import EMBEDDING
from vitspec.testing.catalogue.encoder import ENCODER_DEVIATIONS
from vitspec.testing.catalogue.gradients import GRADIENTS
from vitspec.testing.catalogue.normalization import NORMALIZATION
from vitspec.testing.catalogue.practical import PRACTICAL, SPECS
from vitspec.testing.catalogue.practical_gradients import (
    DECODER,
    INTERPOLATION,
    PRACTICAL_GRADIENTS,
)

GROUPS: dict[str, tuple[Deviation, ...]] = {
    "Attention": ATTENTION,
    "Layer normalisation": NORMALIZATION,
    "Encoder and feed-forward": ENCODER_DEVIATIONS,
    "Patches, tokens, positions, pooling": EMBEDDING,
    "Derivatives": GRADIENTS,
    "Batches": BATCH,
    "Accuracy": ACCURACY,
}
"""The deviations of the Lean mirror's models, by where they sit."""

PRACTICAL_GROUPS: dict[str, tuple[Deviation, ...]] = {
    "The practical family": PRACTICAL,
    "The practical family: derivatives": PRACTICAL_GRADIENTS,
    "The practical family: interpolated positions": INTERPOLATION,
    "The practical family: decoder": DECODER,
}
"""The deviations of the practical family alone."""

CATALOGUE: tuple[Deviation, ...] = tuple(d for group in GROUPS.values() for d in group)
"""The deviations of the Lean mirror's models, by which test vectors are admitted."""

EVERY: tuple[Deviation, ...] = (*CATALOGUE, *(d for g in PRACTICAL_GROUPS.values() for d in g))
"""Every known deviation."""

_BY_NAME = {d.name: d for d in EVERY}

_SHARED = {
    "layers.activation:relu",
    "layers.activation:relu_deriv",
    "layers.activation:softmax",
    "layers.activation:softmax_backward_from_weights",
    "layers.attention:attention_scale_denom",
    "layers.attention:attention_weights",
    "layers.conv2d:kernel_as_matrix",
    "layers.linear:linear",
    "layers.linear:linear_backward",
    "layers.linear:linear_jvp",
    "layers.multi_head_attention:combine_heads",
    "layers.multi_head_attention:split_heads",
    "layers.normalization:layer_norm",
    "layers.normalization:layer_norm_backward",
    "layers.normalization:layer_norm_jvp",
    "layers.normalization:normalize",
    "layers.normalization:normalize_derivative",
    "models.tokens:cls_pool",
    "models.tokens:mean_pool",
    "models.tokens:mean_pool_backward",
    "models.tokens:prepend_cls",
    "testing.reference:sum_over_batch",
    "testing.reference:_evaluate",
}
"""The functions that the Lean mirror's models and the practical family have in common."""


def deviations_of(spec: str, other_sizes: bool = False) -> tuple[Deviation, ...]:
    """The deviations that can show in a model; the practical family has others' too.

    A mistake in a function that both have in common is one in both. Where the practical family
    derives it elsewhere, the derivatives that go with it are not written down.

    Args:
        spec: the model.
        other_sizes: whether images may have another size than the configuration's.
    """
    if spec not in SPECS:
        return tuple(d for d in CATALOGUE if spec in d.specs)
    shared = (d for d in CATALOGUE if d.specs and _in_common(d.patches))
    own = (d for d in EVERY if spec in d.specs and (other_sizes or not d.other_sizes_only))
    return (*own, *(_shared(d) for d in shared))


def _in_common(patches: tuple[Patch, ...]) -> bool:
    return all(patch.function in _SHARED for patch in patches)


def _shared(d: Deviation) -> Deviation:
    derivatives = d.derivatives if d.derivatives is None or _in_common(d.derivatives) else None
    return replace(d, specs=SPECS, derivatives=derivatives)


def deviation(name: str) -> Deviation:
    """The deviation of this name.

    Raises:
        KeyError: there is none; the message lists the names.
    """
    if name not in _BY_NAME:
        raise KeyError(f"no deviation is named {name!r}; known: {', '.join(_BY_NAME)}")
    return _BY_NAME[name]
