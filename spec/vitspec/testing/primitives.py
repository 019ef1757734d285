"""How far each primitive of a correct implementation may be off, in units of u.

A primitive whose true value is f may return f + e with |e| <= c u s, where u is the unit roundoff
of the precision and s a scale that the primitive has: |f| for exp, log, roots and quotients, 1 for
erf, erfc, tanh, the logistic function and the derivatives of tanh and GELU, |x| for activations,
and 1 + |x u'| for the derivatives of those that are made of tanh u or of the logistic function of
u. `ERROR` has the c: the largest error that was measured in any library and instruction
set, rounded up to a tenth; so it is one number for every machine and implementation.
`docs/primitives.md` says what was measured, and `benchmarks/primitives.py` measures it.

Of sums of n terms, `sum` and `dot` are in units of u sqrt(n) times the sum of the terms'
magnitudes, `sum_of_equal` and `dot_of_equal`, whose terms are all equal and round alike, in units
of u n times that. In bfloat16 and float16, which are summed in float32 and rounded once, n plays no
part: all four are in units of u times the sum of the magnitudes.
"""

from __future__ import annotations

from collections.abc import Mapping

_PRECISIONS = ("float64", "float32", "bfloat16", "float16")

# Written by `python benchmarks/primitives.py --table`.
_TABLE: Mapping[str, tuple[float, float, float, float]] = {
    "erf": (0.9, 6.8, 0.5, 0.6),
    "erfc": (3.4, 3.6, 1.0, 1.0),
    "exp": (2.0, 3.6, 1.0, 1.0),
    "exp_positive": (2.0, 5.6, 1.0, 1.0),
    "gelu": (2.2, 6.4, 1.3, 1.6),
    "gelu_derivative": (2.9, 6.0, 2.0, 2.1),
    "gelu_tanh": (4.4, 4.5, 1.8, 1.7),
    "gelu_tanh_derivative": (6.8, 6.2, 1.6, 1.4),
    "log": (1.1, 4.6, 1.0, 1.0),
    "quick_gelu": (2.3, 2.5, 1.8, 2.0),
    "quick_gelu_derivative": (1.5, 1.4, 1.0, 1.2),
    "reciprocal": (1.0, 1.0, 1.0, 1.0),
    "rsqrt": (1.5, 1.5, 1.5, 1.5),
    "sigmoid": (1.5, 3.0, 1.4, 1.5),
    "sqrt": (1.2, 1.5, 1.0, 1.0),
    "tanh": (7.0, 6.9, 0.5, 0.5),
    "tanh_derivative": (13.9, 13.8, 1.8, 2.0),
    "cubic_weights": (2.8, 2.9, 0.3, 0.2),
    "divide": (1.0, 1.0, 1.0, 1.0),
    "dot": (1.1, 1.2, 1.0, 1.0),
    "dot_of_equal": (0.3, 0.3, 1.0, 1.0),
    "sum": (0.9, 0.7, 1.0, 1.0),
    "sum_of_equal": (0.3, 0.3, 1.0, 1.0),
}

ERROR: Mapping[str, Mapping[str, float]] = {
    name: dict(zip(_PRECISIONS, row, strict=True)) for name, row in _TABLE.items()
}
"""By primitive and precision."""
