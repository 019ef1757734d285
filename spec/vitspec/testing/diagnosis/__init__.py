"""What is wrong with an implementation: the nearest named deviations, and what departs first.

    diagnosis = diagnose(my_vit)
    print(diagnosis.verdict)

The implementation is evaluated at four small points. The specification is evaluated there as well,
with each deviation of the catalogue planted in turn: the one that computes the same, up to the
rounding of the precision, is the name of the mistake. If no single one does, pairs are tried.
"""

from __future__ import annotations

from vitspec.testing.diagnosis.diagnosis import Departure, Diagnosis, Near
from vitspec.testing.diagnosis.run import diagnose, expected_by_name
from vitspec.testing.diagnosis.text import diagnosis_tables

__all__ = [
    "Departure",
    "Diagnosis",
    "Near",
    "diagnose",
    "diagnosis_tables",
    "expected_by_name",
]
