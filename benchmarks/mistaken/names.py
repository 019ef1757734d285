"""Which mistakes are made here, in which family, and which are not, and why."""

from __future__ import annotations

from vitspec.testing.catalogue import deviations_of

FRAMEWORKS = ("torch", "jax")
FAMILIES = ("vit", "vit-cls", "vision-transformer")

_NO_TANGENTS = "an implementation has a forward and a vjp; nobody asks it for tangents"

NOT_MADE: dict[str, str] = dict.fromkeys(
    (
        "jvp-without-key-tangent",
        "jvp-without-query-weight-tangent",
        "jvp-without-gamma",
        "jvp-without-image-tangent",
    ),
    _NO_TANGENTS,
)
"""Mistakes of the catalogue that cannot be made in a framework's code, and why."""


def made(family: str) -> tuple[str, ...]:
    """The mistakes that both frameworks' code makes in a family, in the catalogue's order."""
    known = [d.name for d in deviations_of(family, other_sizes=True)]
    return tuple(name for name in known if name not in NOT_MADE)


def check_names(family: str, mistakes: frozenset[str]) -> None:
    """Raise `KeyError` if one of them is not made in this family."""
    for name in sorted(mistakes - set(made(family))):
        reason = NOT_MADE.get(name, f"{family} has no mistake of this name")
        raise KeyError(f"{name}: {reason}")
