"""The suites: each kind of check is one object in one file.

    photograph      a fresh random model of full size, on a photograph
    cases           small random configurations
    laws            what must hold of the implementation's own results
    interpolation   images of another size than the configuration's
    degenerate      points where code breaks: constant rows, blank images, extreme scores
    vectors         the shipped test vectors
    ill_formed      what must be refused
    identities      what needs no specification

A new kind of check is a file here and a line below; `docs/how-the-kit-decides.md` shows the way.
"""

from __future__ import annotations

from vitspec.testing.suites.cases import Cases
from vitspec.testing.suites.degenerate import Degenerate
from vitspec.testing.suites.identities import Identities
from vitspec.testing.suites.ill_formed import IllFormed
from vitspec.testing.suites.interpolation import Interpolation
from vitspec.testing.suites.laws import LAWS, Laws
from vitspec.testing.suites.photograph import Photograph
from vitspec.testing.suites.suite import Suite
from vitspec.testing.suites.vectors import Vectors

__all__ = ["LAWS", "SUITES", "Suite"]

SUITES: dict[str, Suite] = {
    one.name: one
    for one in (
        Photograph(), Vectors(), Laws(), Identities(), Interpolation(), Degenerate(), Cases(),
        IllFormed(),
    )
}  # fmt: skip
"""Every suite by its name, those with the longest units first."""
