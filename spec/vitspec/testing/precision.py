"""Precisions, and arithmetic that errs as they do.

What a correct implementation may lose is found by running the specification itself in *Monte Carlo
arithmetic* (Parker, 1997): every operation's result is moved at random by up to the rounding of the
precision under test. Such a run is one of the answers that a correct implementation in that
precision could have given, whatever the order of its sums; several runs show how far they spread,
also where everything cancels. It needs no hardware of that precision, and gives the same numbers on
every machine.

- In `float64` and `float32` a function errs by the constant that was measured for it
  (`vitspec.testing.primitives`). A product's sums err by up to u times the sum of the terms'
  magnitudes, and by sqrt(n) times the sum where n terms do not cancel. A plain sum of n terms errs
  by sqrt(n) times the magnitudes, and by m times that if m of the terms are equal, as in the
  gradient of the last shift under mean pooling: then these additions round the same way, and a loop
  over the tokens is off by as many roundings as there are such tokens.
- `bfloat16` and `float16` round each operation's result, but sum in something wider.
- `tf32` is float32 whose matrix products round their factors to 11 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitspec.testing.primitives import ERROR
from vitspec.typing import Array


@dataclass(frozen=True)
class Precision:
    """A floating-point format as implementations compute in it.

    Attributes:
        name: as implementations call it.
        significand: its bits, the implicit one included.
        lowest_exponent: the smallest positive number is 2 to this power.
        sums_wider: whether sums are accumulated in a wider format.
        products_only: whether only the factors of matrix products are rounded to it.
        carrier: NumPy's type of the arrays that hold its numbers.
    """

    name: str
    significand: int
    lowest_exponent: int
    sums_wider: bool = False
    products_only: bool = False
    carrier: str = "float32"

    @property
    def u(self) -> float:
        """The unit roundoff: the largest relative error of rounding to nearest."""
        return 2.0**-self.significand

    @property
    def least(self) -> float:
        """Below this, numbers count as zero: hardware may flush what is subnormal.

        Formats of 16 bits keep theirs; float16's smallest numbers are part of its range.
        """
        return {"float64": 2.0**-1022, "float16": 2.0**-24}.get(self.name, 2.0**-126)

    @property
    def own_type(self) -> bool:
        """Whether NumPy has this type, so that arrays of it say what they are."""
        return self.name == self.carrier


PRECISIONS = {
    p.name: p
    for p in (
        Precision("float64", 53, -1074, carrier="float64"),
        Precision("float32", 24, -149),
        Precision("tf32", 11, -136, products_only=True),
        Precision("bfloat16", 8, -133, sums_wider=True),
        Precision("float16", 11, -24, sums_wider=True),
    )
}
"""The precisions that can be graded, by name."""


def rounded(x: Array, precision: Precision) -> Array:
    """x rounded to nearest, ties to even, in the carrier's type.

    >>> rounded(np.array([1 + 2.0**-9, 1 + 2.0**-7]), PRECISIONS["bfloat16"]).tolist()
    [1.0, 1.0078125]
    """
    if precision.own_type:
        return np.asarray(x).astype(precision.carrier)
    _, exponent = np.frexp(x)
    step = np.maximum(exponent - precision.significand, precision.lowest_exponent)
    # Dividing by a power of two is exact, and so is the product.
    nearest = np.ldexp(np.rint(np.ldexp(np.asarray(x, np.float64), -step)), step)
    return nearest.astype(precision.carrier)


class Noisy(np.ndarray):
    """An array whose arithmetic errs at random, and so does that of what is computed from it."""

    arithmetic: NoisyArithmetic

    def __array_finalize__(self, source: Any) -> None:
        """A view or a copy errs like its source."""
        self.arithmetic = getattr(source, "arithmetic", None)  # type: ignore[assignment]

    def __array_ufunc__(
        self, ufunc: Any, method: str, *inputs: Any, out: Any = (), **kwargs: Any
    ) -> Any:
        """Compute on plain arrays, then move the result."""
        constant = self.arithmetic.constant
        plain = [x.view(np.ndarray) if isinstance(x, Noisy) else constant(x) for x in inputs]
        if ufunc is np.matmul:
            plain = [
                value if isinstance(x, Noisy) else self.arithmetic.weights(value)
                for x, value in zip(inputs, plain, strict=True)
            ]
        if out:
            kwargs["out"] = tuple(_plain(x) for x in out)
        result = getattr(ufunc, method)(*plain, **kwargs)
        if method == "at" or np.asarray(result).dtype.kind != "f":
            return result
        if ufunc not in EXACT:
            result = self.arithmetic.move(ufunc, method, plain, kwargs, result)
        return out[0] if out else _noisy(result, self.arithmetic)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Concatenating rounds nothing, but what is computed from the result must err."""
        result = super().__array_function__(function, types, args, kwargs)
        return _noisy(result, self.arithmetic) if function is np.concatenate else result

    def in_one_operation(self, function: Any) -> Noisy:
        """A function of each entry that is no ufunc, such as erfc; its result errs once.

        It errs by u of 1 at least: an implementation may have 1 + erf(-x) where we have erfc(x).
        """
        result = function(_plain(self))
        return _noisy(self.arithmetic.move_values(result, np.maximum(np.abs(result), 1)),
                      self.arithmetic)  # fmt: skip


EXACT = {np.maximum, np.minimum, np.negative, np.absolute, np.positive, np.copysign}
"""Operations that never round."""


def primitives_of(precision: Precision) -> dict[str, float]:
    """By how many roundings each of NumPy's functions may err: what was measured for the precision.

    `erfc` stands for GELU, x erfc(-x / sqrt 2) / 2, and so has twice its constant. Where results
    are rounded to 16 bits, functions are computed wider, and that rounding is all.
    """
    if precision.sums_wider:
        return {}
    column = "float64" if precision.name == "float64" else "float32"
    own = {name: ERROR[name][column] for name in ("exp", "log", "tanh", "sqrt")}
    own |= {"erfc": 2 * ERROR["gelu"][column], "matmul": ERROR["dot"][column]}
    return own | {"cubic_weights": ERROR["cubic_weights"][column]}


NEARLY_EQUAL = 64
"""Terms that differ by no more than this many roundings round alike when they are added up."""


class NoisyArithmetic:
    """Monte Carlo arithmetic in one precision.

    Args:
        precision: how large an operation's error may be.
        rng: where the errors are drawn from.
        alike: whether all rows (tokens) err alike. Real rounding does where tokens are nearly
            equal, and then their errors add up in a sum instead of averaging out.
        primitives: by how many roundings each function may err; None is `primitives_of`.
    """

    def __init__(
        self,
        precision: Precision,
        rng: np.random.Generator,
        alike: bool = False,
        primitives: Mapping[str, float] | None = None,
    ) -> None:
        self.precision, self.rng, self.alike = precision, rng, alike
        self.format = PRECISIONS["float32"] if precision.products_only else precision
        self.u = self.format.u
        self.primitives = primitives_of(precision) if primitives is None else primitives

    def array(self, x: Array) -> Noisy:
        """The numbers of x, in arithmetic that errs."""
        return _noisy(x, self)

    def constant(self, x: Any) -> Any:
        """A number that the precision cannot hold, such as 1 / sqrt(3), moved once for all uses."""
        if not isinstance(x, (float, np.floating)) or rounded(np.asarray(x), self.format) == x:
            return x
        return type(x)(x * (1 + self.u * self.rng.uniform(-1, 1)))

    def weights(self, x: Array) -> Array:
        """The factor x of a product; if it has the weights of an interpolation, they err.

        They are known by their sums, which are 1. Implementations compute them from coordinates,
        whose rounding is larger in a larger table; but not where all of them are numbers of so few
        digits that nothing rounds on the way to them.
        """
        if "cubic_weights" not in self.primitives or not _adds_up_to_1(x):
            return x
        few = PRECISIONS["float32"] if self.format.name == "float64" else self.format
        if np.array_equal(rounded(x, few), x):
            return x
        size = np.full_like(x, self.primitives["cubic_weights"] * max(x.shape))
        return np.asarray(self._moved(x, size, self.u))

    def move(self, ufunc: Any, method: str, inputs: Any, kwargs: Any, result: Any) -> Any:
        """The result of an operation, moved by up to its rounding; in place if it is an array."""
        magnitude: Any
        if ufunc is np.matmul and self.precision.products_only:
            magnitude = np.abs(result)
            factors = [self._moved(x, np.abs(x), self.precision.u) for x in inputs]
            result = np.matmul(*factors)
        elif ufunc is np.matmul and not self.precision.sums_wider:
            magnitude = self._of_product(inputs[0], inputs[1], result)
        elif method == "reduce" and not self.precision.sums_wider:
            magnitude = self._of_sum(inputs[0], np.size(result), {**kwargs, "out": None})
        else:
            magnitude = np.abs(result)
            if ufunc is not np.matmul and ufunc.__name__ in self.primitives:
                magnitude = np.ones_like(magnitude) if ufunc is np.tanh else magnitude
                magnitude = magnitude * magnitude.dtype.type(self.primitives[ufunc.__name__])
        moved = self._moved(result, magnitude, self.u)
        if "out" in kwargs:
            kwargs["out"][0][...] = moved
        return moved

    def move_values(self, x: Any, magnitude: Any) -> Any:
        """x, moved by up to u times a magnitude."""
        return self._moved(x, magnitude * x.dtype.type(self.primitives.get("erfc", 1)), self.u)

    def _of_product(self, a: Array, b: Array, result: Any) -> Any:
        """How far a matrix product may be off, in units of u.

        Partial sums round, not terms. Where terms cancel they stay below the sum of magnitudes;
        where terms have one sign they grow with every term, and n of them err by sqrt(n) as much.
        """
        magnitude = np.matmul(np.abs(a), np.abs(b))
        if "matmul" not in self.primitives:
            return magnitude
        times = magnitude.dtype.type(self.primitives["matmul"] * np.sqrt(a.shape[-1]))
        return np.maximum(magnitude, times * np.abs(result))

    def _of_sum(self, x: Array, results: int, kwargs: dict[str, Any]) -> Any:
        """How far a plain sum of x may be off, in units of u."""
        if x.size == 0:
            return np.add.reduce(x, **kwargs)
        n = x.size / results
        sizes = np.abs(x)
        times = np.maximum(self._alike(x, sizes, n, kwargs), np.sqrt(n))
        return np.add.reduce(sizes, **kwargs) * times.astype(x.dtype)

    def _alike(self, x: Array, sizes: Array, n: float, kwargs: dict[str, Any]) -> Any:
        """How many of the n terms of each sum are nearly the one in the middle."""
        if not self.primitives:  # prices of the shipped vectors: all or none
            largest = np.maximum.reduce(sizes, **kwargs)
            spread = np.maximum.reduce(x, **kwargs) - np.minimum.reduce(x, **kwargs)
            return np.where(spread <= NEARLY_EQUAL * self.u * largest, n, 0)
        axis = kwargs.get("axis")
        largest, middle = sizes.max(axis, keepdims=True), _middle(x, axis)
        near = np.abs(x - middle) <= NEARLY_EQUAL * self.u * largest
        return np.add.reduce(near & (middle != 0), **kwargs)  # adding 0 rounds nothing

    def _moved(self, x: Any, magnitude: Any, u: float) -> Any:
        dtype = np.asarray(x).dtype
        size = magnitude * dtype.type(u)
        if self.precision.name == "float16":  # the others do not reach their smallest numbers
            size = size + dtype.type(2.0 ** (self.precision.lowest_exponent - 1))
        shape = list(np.shape(x))
        if self.alike and len(shape) > 1:
            shape[-2] = 1
        single = dtype.type if dtype == np.float32 else np.float64
        by = self.rng.random(shape, dtype=single)
        by *= 2
        by -= 1
        return x + size * by.astype(dtype, copy=False)


class RoundingArithmetic(NoisyArithmetic):
    """The precision's own arithmetic: every operation's result is rounded to nearest."""

    def __init__(self, precision: Precision) -> None:
        super().__init__(precision, np.random.default_rng(0))

    def constant(self, x: Any) -> Any:
        """The nearest number that the precision holds."""
        if not isinstance(x, (float, np.floating)):
            return x
        return type(x)(rounded(np.asarray(x), self.format))

    def weights(self, x: Array) -> Array:
        """The nearest that the precision holds, if x has such weights."""
        return rounded(x, self.format).astype(x.dtype) if _adds_up_to_1(x) else x

    def move(self, ufunc: Any, method: str, inputs: Any, kwargs: Any, result: Any) -> Any:
        """The result of an operation, rounded; in place if it is an array."""
        if ufunc is np.matmul and self.precision.products_only:
            factors = [rounded(x, self.precision).astype(x.dtype) for x in inputs]
            result = np.matmul(*factors)
        nearest = rounded(result, self.format).astype(np.asarray(result).dtype)
        if "out" in kwargs:
            kwargs["out"][0][...] = nearest
        return nearest

    def move_values(self, x: Any, magnitude: Any) -> Any:
        """x rounded."""
        return rounded(x, self.format).astype(x.dtype)


def _middle(x: Array, axis: int | tuple[int, ...] | None) -> Array:
    """The entry of x in the middle of what is added up, in axes of size 1."""
    half = [slice(None)] * x.ndim
    for i in range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,):
        half[i] = slice(x.shape[i] // 2, x.shape[i] // 2 + 1)
    return x[tuple(half)]


def _adds_up_to_1(x: Array) -> bool:
    """Whether each row of a matrix does, or each column."""
    return x.ndim == 2 and any(bool(np.all(np.abs(x.sum(axis=i) - 1) < 1e-9)) for i in (0, 1))


def _plain(x: Any) -> Any:
    return x.view(np.ndarray) if isinstance(x, Noisy) else x


def _noisy(x: Any, arithmetic: NoisyArithmetic) -> Noisy:
    array = np.asarray(x).view(Noisy)
    array.arithmetic = arithmetic
    return array
