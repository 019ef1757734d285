"""Test vectors: inputs and true outputs as files, to grade a program in any language.

    vitspec vectors export DIR     # the program answers in DIR
    vitspec vectors grade DIR

`docs/vectors.md` describes the files.
"""

from vitspec.testing.vectors.building import build
from vitspec.testing.vectors.folder import Vector, export, ids, load
from vitspec.testing.vectors.format import VectorError
from vitspec.testing.vectors.grading import check_vectors, grade_report, verify
from vitspec.testing.vectors.tables import cases_table, low_precision_table

__all__ = [
    "Vector",
    "VectorError",
    "build",
    "cases_table",
    "check_vectors",
    "export",
    "grade_report",
    "ids",
    "load",
    "low_precision_table",
    "verify",
]
