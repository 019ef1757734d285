"""Parameter records and their flat form {dotted name: array}.

A model is its parameters and a static configuration, held in frozen dataclasses: records. The
arrays of a record, named by their path, are its *flat* form, which is the schema of adapters,
vectors and ledgers. A gradient record has Lean's field names (`d_w1`), and the flat names of the
parameters that it belongs to (`w1`), so both forms can be compared key by key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeVar, dataclass_transform

import numpy as np

from vitspec import scalars
from vitspec.errors import InvalidArray, InvalidParameters
from vitspec.typing import (
    SCALAR_TYPES,
    Array,
    checked_record,
    named_axes,
    require_one_world,
    shapes_are_checked,
)

T = TypeVar("T")


def named(flat_name: str) -> Any:
    """A dataclass field whose flat name differs from its own."""
    return dataclasses.field(metadata={"flat_name": flat_name})


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(named,))
def record(cls: type[T]) -> type[T]:
    """Make a frozen dataclass whose fields' shapes are checked when one is built."""
    return checked_record(dataclasses.dataclass(frozen=True, eq=False)(cls))


class Record:
    """What all parameter and gradient records share. Arrays are leaves; other fields are static."""

    def __post_init__(self) -> None:
        """Require that all arrays have one scalar type."""
        if shapes_are_checked():
            require_one_world(type(self).__name__, self.to_flat().values())

    def to_flat(self) -> dict[str, Array]:
        """The arrays by flat name, in the order of the fields; the arrays are not copied."""
        return dict(_leaves(self, ""))

    def map(self, f: Callable[..., Array], *others: Self) -> Self:
        """The record of f(leaf, corresponding leaves of `others`)."""
        return _map(self, f, *others)

    def astype(self, dtype: Any) -> Self:
        """The same record in another NumPy scalar type."""
        return self.map(lambda leaf: leaf.astype(dtype))

    @property
    def dtype(self) -> np.dtype | None:
        """The scalar type of all arrays; None for a record that has none."""
        return next((leaf.dtype for _, leaf in _leaves(self, "")), None)

    def named_sizes(self) -> Iterator[tuple[str, str, int]]:
        """(field, axis, size) for every named axis of every array, such as ("w1", "D", 768)."""
        return _named_sizes(self, "")


def _named_sizes(node: Any, path: str) -> Iterator[tuple[str, str, int]]:
    if isinstance(node, tuple):
        for i, child in enumerate(node):
            yield from _named_sizes(child, f"{path}.{i}")
    elif isinstance(node, Record):
        for field in dataclasses.fields(node):  # type: ignore[arg-type]
            value = getattr(node, field.name)
            name = f"{path}.{field.name}" if path else field.name
            if isinstance(value, np.ndarray):
                axes = named_axes(str(field.type))
                for position, axis in axes.named if axes else ():
                    yield name, axis, value.shape[position]
            else:
                yield from _named_sizes(value, name)


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Array]]:
    if isinstance(node, np.ndarray):
        yield path, node
    elif isinstance(node, tuple):
        for i, child in enumerate(node):
            yield from _leaves(child, f"{path}.{i}")
    elif isinstance(node, Record):
        for field in dataclasses.fields(node):  # type: ignore[arg-type]
            name = field.metadata.get("flat_name", field.name)
            yield from _leaves(getattr(node, field.name), f"{path}.{name}" if path else name)


def _map(node: Any, f: Callable[..., Array], *others: Any) -> Any:
    if isinstance(node, np.ndarray):
        return f(node, *others)
    if isinstance(node, tuple):
        return tuple(_map(*group) for group in zip(node, [f] * len(node), *others, strict=True))
    if isinstance(node, Record):
        changes = {
            field.name: _map(
                getattr(node, field.name), f, *(getattr(o, field.name) for o in others)
            )
            for field in dataclasses.fields(node)  # type: ignore[arg-type]
        }
        return type(node)(**changes)
    return node


def check_flat(
    flat: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    subject: str,
    scalar_types: Sequence[str] = SCALAR_TYPES,
) -> None:
    """Raise `InvalidParameters` unless `flat` has exactly the names and shapes of `shapes`.

    Every missing, unexpected, misshapen or non-array entry is listed, and so are a mixture of
    scalar types and a type that is not among `scalar_types`, which are the scalar worlds.
    """
    if not isinstance(flat, Mapping):
        problem = f"expected a mapping of flat names to arrays, got {type(flat).__name__}"
        raise InvalidParameters(subject, [problem])
    problems = [f"{name}: missing, expected shape {shapes[name]}" for name in shapes.keys() - flat]
    problems += [f"{name}: unexpected name" for name in flat.keys() - shapes.keys()]
    for name in flat.keys() & shapes.keys():
        value = flat[name]
        if not isinstance(value, np.ndarray):
            problems.append(f"{name}: expected a NumPy array, got {type(value).__name__}")
        elif value.shape != tuple(shapes[name]):
            problems.append(f"{name}: expected shape {tuple(shapes[name])}, got {value.shape}")
        elif not scalars.is_world(value):
            problems.append(f"{name}: objects must be real balls (flint.arb); to_reals makes them")
    dtypes = sorted({str(v.dtype) for v in flat.values() if isinstance(v, np.ndarray)})
    if len(dtypes) > 1:
        problems.append(f"the arrays mix the scalar types {', '.join(dtypes)}; expected one")
    problems += [
        f"the arrays are of {name}; expected one of {', '.join(scalar_types)}"
        for name in dtypes
        if not is_scalar_type(name, scalar_types)
    ]
    if problems:
        raise InvalidParameters(subject, sorted(problems))


def is_scalar_type(dtype: Any, scalar_types: Sequence[str] = SCALAR_TYPES) -> bool:
    """Whether a NumPy type is one of these, which are those of the scalar worlds."""
    try:
        return np.dtype(dtype).type.__name__ in scalar_types
    except TypeError:  # no NumPy type at all
        return False


def check_array(
    name: str, value: Any, shape: tuple[int, ...], axes: str, dtype: np.dtype | None
) -> None:
    """Raise `InvalidArray` unless `value` is a finite array of this shape and scalar type.

    Args:
        name: what to call it in the error.
        value: anything.
        shape: the expected shape.
        axes: the names of the axes, such as "channels, height, width".
        dtype: the expected scalar type; None admits any.
    """
    expected = f"expected shape {shape} ({axes})" + (f" of {dtype}" if dtype else "")
    if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray):
        raise InvalidArray(f"{name}: {expected}, got {type(value).__name__}; pass a NumPy array")
    if value.shape != shape:
        advice = (
            "; it looks like channels last: transpose it" if _channels_last(value, shape) else ""
        )
        raise InvalidArray(f"{name}: {expected}, got shape {value.shape}{advice}")
    if value.dtype != dtype and dtype is not None:
        raise InvalidArray(
            f"{name}: {expected}, got {value.dtype}; convert {name} or the model with .astype"
        )
    if not scalars.is_world(value):
        raise InvalidArray(
            f"{name}: expected real balls (flint.arb); to_reals makes them of floats"
        )
    if not scalars.all_finite(value):
        raise InvalidArray(f"{name}: expected finite numbers, got NaN or infinity among them")


def _channels_last(value: Array, shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and value.shape == (*shape[1:], shape[0])
