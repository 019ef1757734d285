"""Shapes as types, checked at run time.

`Scalar[Array, "T D"]` is a NumPy array of shape (T, D) over one of the scalar worlds of
`vitspec.scalars`. `@typed` checks every shape of a public function, on every call, and that all
arrays and records of one call live in one scalar world, so that nothing is promoted in silence.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from beartype import beartype
from jaxtyping import AbstractDtype, Bool, jaxtyped

from vitspec.errors import InvalidArray

__all__ = ["Array", "Bool", "Scalar", "typed"]

Array = np.ndarray

if TYPE_CHECKING:
    from typing import Annotated as Scalar
else:

    class Scalar(AbstractDtype):
        """An array over any scalar world: floats, complex numbers, or objects (real balls)."""

        dtypes = ("float32", "float64", "longdouble", "complex128", "clongdouble", "object_")


F = TypeVar("F", bound=Callable[..., Any])


def typed(function: F) -> F:
    """Check a function's shapes (jaxtyping, beartype) and that its call lives in one scalar world.

    Raises:
        jaxtyping.TypeCheckError: a rank, a size or a kind of scalar is wrong.
        InvalidArray: two arguments have different scalar types.
    """
    checked = jaxtyped(function, typechecker=beartype)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        require_one_world(function.__qualname__, [*args, *kwargs.values()])
        return checked(*args, **kwargs)

    return wrapper  # type: ignore[return-value]


def require_one_world(where: str, values: list[Any]) -> None:
    """Raise `InvalidArray` unless all arrays and records among `values` have one scalar type.

    Boolean arrays are masks, not scalars; they do not count.
    """
    dtypes = {str(d): None for v in values if (d := getattr(v, "dtype", None)) not in (None, bool)}
    if len(dtypes) > 1:
        raise InvalidArray(
            f"{where}: one call works in one scalar type, but was given {' and '.join(dtypes)}. "
            "Convert with .astype(...) (arrays and records both have it), or with to_reals."
        )
