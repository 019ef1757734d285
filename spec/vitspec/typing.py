"""Shapes as types, checked at run time.

`Scalar[Array, "T D"]` is a NumPy array of shape (T, D) over one of the scalar worlds of
`vitspec.scalars`. `@typed` checks a public function on every call:

- ranks, sizes and kinds of all arguments and of the result (jaxtyping, beartype);
- that an axis has one size throughout: in the arrays of the records as in those beside them;
- that all arrays live in one scalar world, so that nothing is promoted in silence.

jaxtyping's switch, JAXTYPING_DISABLE=1, switches all of this off.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import jaxtyping
import numpy as np
from beartype import beartype
from beartype.vale import Is
from jaxtyping import AbstractDtype, Bool, jaxtyped

from vitspec.errors import InvalidArray

__all__ = ["SCALAR_TYPES", "Array", "Bool", "Scalar", "TupleOf", "typed"]

Array = np.ndarray
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

SCALAR_TYPES = ("float32", "float64", "longdouble", "complex128", "clongdouble", "object_")
"""NumPy's names of the scalar worlds' types."""

if TYPE_CHECKING:
    from typing import Annotated as Scalar

    TupleOf = tuple[T, ...]
else:

    class Scalar(AbstractDtype):
        """An array over any scalar world: floats, complex numbers, or objects (real balls)."""

        dtypes = SCALAR_TYPES

    class TupleOf:
        """`TupleOf[X]` is a tuple of X of any length, of which every entry is checked.

        (beartype checks one entry of `tuple[X, ...]`, which it draws from Python's global random
        numbers.)
        """

        def __class_getitem__(cls, item):
            return Annotated[tuple, Is[lambda value: all(isinstance(v, item) for v in value)]]


def _jaxtyped(target: Any) -> Any:
    """jaxtyping's decorator, without what its first use does: import jax, if that is installed."""
    if "jax" in sys.modules:
        return jaxtyped(target, typechecker=beartype)
    sys.modules["jax"] = None  # type: ignore[assignment] # "there is none", for this moment
    try:
        return jaxtyped(target, typechecker=beartype)
    finally:
        del sys.modules["jax"]


def typed(function: F) -> F:
    """Check a function's shapes and scalar types on every call.

    Raises:
        jaxtyping.TypeCheckError: a rank, a size or a kind of scalar is wrong.
        InvalidArray: an axis has two sizes, one of them in a record, or two arguments have
            different scalar types.
    """
    checked = _jaxtyped(function)
    parameters = tuple(inspect.signature(function).parameters)
    axes = {n: a for n in parameters if (a := named_axes(str(function.__annotations__.get(n))))}

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not shapes_are_checked():
            return function(*args, **kwargs)
        given = [*zip(parameters, args, strict=False), *kwargs.items()]
        require_one_world(function.__qualname__, (value for _, value in given))
        _require_axes_agree(function.__qualname__, given, axes)
        return checked(*args, **kwargs)

    return wrapper  # type: ignore[return-value]


def checked_record(cls: type[T]) -> type[T]:
    """Check a dataclass's fields whenever one is built."""
    return _jaxtyped(cls)


def shapes_are_checked() -> bool:
    """Whether calls and records are checked: unless jaxtyping is switched off."""
    return not jaxtyping.config.jaxtyping_disable


@contextmanager
def shapes_unchecked() -> Iterator[None]:
    """Check neither shapes nor types meanwhile: most of the time of many small evaluations."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def require_one_world(where: str, values: Iterable[Any]) -> None:
    """Raise `InvalidArray` unless all arrays and records among `values` have one scalar type.

    Boolean arrays are masks, not scalars; they do not count.
    """
    dtypes = {d: None for v in values if (d := getattr(v, "dtype", None)) is not None}
    worlds = [str(d) for d in dtypes if d != np.bool_]
    if len(worlds) > 1:
        raise InvalidArray(
            f"{where}: one call works in one scalar type, but was given {' and '.join(worlds)}. "
            "Convert with .astype(...) (arrays and records both have it), or with to_reals."
        )


class Axes(NamedTuple):
    """The named axes of an array: its rank, if that is fixed, and (position, name) of each."""

    rank: int | None
    named: tuple[tuple[int, str], ...]


@functools.cache
def named_axes(annotation: str) -> Axes | None:
    """The named axes of an annotation such as `Scalar[Array, "*heads n d"]`, by position.

    Axes behind a starred one are counted from the end.

    >>> named_axes('Scalar[Array, "*heads n d"]')
    Axes(rank=None, named=((-2, 'n'), (-1, 'd')))
    """
    match = re.match(r"\w+\[Array, ['\"](.*?)['\"]\]", annotation)
    if match is None:
        return None
    names = match[1].split()
    star = next((i for i, name in enumerate(names) if name.startswith("*")), len(names))
    positions = [*range(star), star, *range(star + 1 - len(names), 0)]
    named = ((i, n) for i, n in zip(positions, names, strict=False) if n.isidentifier())
    return Axes(len(names) if star == len(names) else None, tuple(named))


def _require_axes_agree(where: str, given: list[tuple[str, Any]], axes: dict[str, Axes]) -> None:
    """Raise `InvalidArray` if an axis of a record's array has another size elsewhere.

    Two arrays that disagree are left to jaxtyping, which says more.
    """
    sizes: dict[str, tuple[int, str]] = {}
    for name, value in given:
        if hasattr(value, "named_sizes"):
            _bind(where, sizes, ((f"{name}.{path}", a, s) for path, a, s in value.named_sizes()))
    if sizes:
        for name, value in given:
            if name in axes and isinstance(value, np.ndarray):
                _bind(where, dict(sizes), _sizes(name, value, axes[name]))


def _sizes(name: str, array: Array, axes: Axes) -> Iterator[tuple[str, str, int]]:
    if axes.rank in (None, array.ndim):  # a wrong rank is left to jaxtyping
        yield from ((name, axis, array.shape[position]) for position, axis in axes.named)


def _bind(
    where: str, sizes: dict[str, tuple[int, str]], found: Iterable[tuple[str, str, int]]
) -> None:
    for name, axis, size in found:
        known, holder = sizes.setdefault(axis, (size, name))
        if known != size:
            raise InvalidArray(
                f"{where}: axis {axis} is {known} in {holder}, but {size} in {name}; expected one "
                "size"
            )
