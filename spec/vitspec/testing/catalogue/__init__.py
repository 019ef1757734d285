"""The catalogue of named deviations: mistakes that people make in a ViT, as patches of the spec.

A deviation names one function of the specification, a piece of its source, and what stands there
instead. `planted` runs the specification with it; nothing on disk changes, and the specification
itself has no switches. `docs/catalogue.md` shows them all.
"""

from vitspec.testing.catalogue.deviation import KINDS, Deviation, Kind, Patch
from vitspec.testing.catalogue.entries import (
    CATALOGUE,
    EVERY,
    GROUPS,
    LATER,
    deviation,
    deviations_of,
)
from vitspec.testing.catalogue.page import catalogue_markdown
from vitspec.testing.catalogue.planting import ConflictError, nothing_planted, planted

__all__ = [
    "CATALOGUE",
    "EVERY",
    "GROUPS",
    "KINDS",
    "LATER",
    "ConflictError",
    "Deviation",
    "Kind",
    "Patch",
    "catalogue_markdown",
    "deviation",
    "deviations_of",
    "nothing_planted",
    "planted",
]
