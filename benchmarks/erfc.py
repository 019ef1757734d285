"""What `vitspec.special.erfc` costs, and how right it is, beside `math.erfc` and SciPy's.

    python benchmarks/erfc.py

Nanoseconds of processor time for each entry of a million, normal of standard deviation 0.9, as GELU
has them (the best of several runs), and the largest error in units in the last place, over some of
these and over the tail down to the smallest normal number. It needs the extra `reals`; SciPy is
left out where it is missing.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import time
from collections.abc import Callable

import numpy as np

from vitspec import scalars, special, to_reals
from vitspec.typing import Array

ENTRIES, RUNS, CHECKED = 1_000_000, 15, 4000
TAIL = {"float32": 9.19, "float64": 26.54}
"""Up to here erfc is a normal number."""


def entry_by_entry(x: Array) -> Array:
    """`math.erfc`, as `np.vectorize` calls it."""
    return np.vectorize(math.erfc, otypes=[x.dtype])(x)


def functions() -> dict[str, Callable[[Array], Array]]:
    """What is compared."""
    found = {"np.vectorize(math.erfc)": entry_by_entry, "vitspec.special.erfc": special.erfc}
    with contextlib.suppress(ImportError):
        found["scipy.special.erfc"] = importlib.import_module("scipy.special").erfc
    return found


def nanoseconds(function: Callable[[Array], Array], x: Array) -> float:
    """The shortest time for an entry."""
    function(x[:1])  # the tables
    times = []
    for _ in range(RUNS):
        start = time.process_time()
        function(x)
        times.append(time.process_time() - start)
    return min(times) / x.size * 1e9


def units(function: Callable[[Array], Array], x: Array) -> float:
    """The largest error, in units in the last place of the result."""
    value = function(x)
    unit = np.nextafter(value, x.dtype.type(np.inf)) - value
    error = (to_reals(value) - scalars.erfc(to_reals(x, 256))) / to_reals(unit)
    return max(float(one.abs_upper()) for one in error)


def main() -> None:
    """Measure, and print the table."""
    rng = np.random.default_rng(0)
    print("| type | function | ns an entry | ulp, usual | ulp, tail |")
    print("| --- | --- | ---: | ---: | ---: |")
    for dtype, last in TAIL.items():
        x = (0.9 * rng.standard_normal(ENTRIES)).astype(dtype)
        tail = rng.uniform(4, last, CHECKED).astype(dtype)
        for name, function in functions().items():
            cost = nanoseconds(function, x)
            usual, far = units(function, x[:CHECKED]), units(function, tail)
            print(f"| {dtype} | `{name}` | {cost:.1f} | {usual:.2f} | {far:.2f} |")


if __name__ == "__main__":
    main()
