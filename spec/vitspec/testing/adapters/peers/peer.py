"""What is said of a peer, another library's ViT: where its adapter is, and what it needs.

The tables of peers are data (`torch_table`, `jax_table`); `registry` has them all. An adapter's
module imports its library when it is loaded or first computes, never from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata

from vitspec.testing.declared import Deviation

__all__ = ["Deviation", "Peer", "installed"]


@dataclass(frozen=True)
class Peer:
    """Another library's ViT, and what is known of it.

    Attributes:
        name: what `vitspec check` and `vitspec peers` call it.
        target: its adapter, "module:attribute": an implementation of the kit, or a function without
            parameters that returns one.
        needs: the distributions that must be installed, the library first: the peer's version is
            its version.
        what: the class or function that is graded, and how it is set up.
        limits: configurations that it cannot have, and habits that no check fails for, in words;
            the adapter's `supports` refuses those configurations.
        deviations: what the kit finds that departs, as in a file of declared deviations.
    """

    name: str
    target: str
    needs: tuple[str, ...]
    what: str
    limits: tuple[str, ...] = ()
    deviations: tuple[Deviation, ...] = ()

    @property
    def missing(self) -> tuple[str, ...]:
        """Those of `needs` that are not installed."""
        return tuple(name for name in self.needs if installed(name) is None)

    @property
    def version(self) -> str | None:
        """The installed version of the library; None if it is not installed."""
        return installed(self.needs[0])


def installed(distribution: str) -> str | None:
    """The version of a distribution, without importing it; None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
