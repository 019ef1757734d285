"""A name map for one model: every name and shape spelled out, and the way there and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitspec.errors import InvalidParameters
from vitspec.testing.adapters.layouts import Arrangement, Shape
from vitspec.typing import Array

Flat = dict[str, Array]


@dataclass(frozen=True)
class Move:
    """One array of theirs, the arrays of ours that are stacked in it, and how."""

    theirs: str
    ours: tuple[str, ...]
    arranged: Arrangement


@dataclass(frozen=True)
class BoundMap:
    """A `NameMap` for one model.

    Attributes:
        name: of the map.
        moves: where ours lie in theirs.
        constants: shapes and values of those of theirs that have nothing of ours.
        shapes: ours, by flat name.
    """

    name: str
    moves: tuple[Move, ...]
    constants: Mapping[str, tuple[Shape, float]]
    shapes: Mapping[str, Shape]

    @property
    def their_shapes(self) -> dict[str, Shape]:
        """The shapes of theirs, by their names."""
        constants = {name: shape for name, (shape, _) in self.constants.items()}
        return {move.theirs: move.arranged.shape for move in self.moves} | constants

    @property
    def dropped(self) -> tuple[str, ...]:
        """Those of theirs whose gradients belong to nothing of ours."""
        return tuple(self.constants)

    def to_theirs(self, flat: Mapping[str, Array]) -> Flat:
        """Their arrays from ours; no entry is rounded."""
        self._check({n: np.shape(a) for n, a in flat.items()}, self.shapes, "our parameters")
        dtype = next((np.asarray(array).dtype for array in flat.values()), np.dtype(float))
        found = {}
        for move in self.moves:
            stack = np.array([flat[name] for name in move.ours], dtype)
            found[move.theirs] = move.arranged.there(stack.reshape(move.arranged.source))
        return found | {n: np.full(shape, v, dtype) for n, (shape, v) in self.constants.items()}

    def to_ours(self, theirs: Mapping[str, Array]) -> Flat:
        """Our arrays from theirs.

        Raises:
            InvalidParameters: names or shapes differ, or a constant has another value, so that no
                parameters of ours give the same function.
        """
        self.check(theirs, "their parameters")
        problems = [
            f"{name}: must be {value:g} everywhere, for the specification has no such parameter"
            for name, (_, value) in self.constants.items()
            if not np.all(np.asarray(theirs[name]) == value)
        ]
        if problems:
            raise InvalidParameters(f"their parameters (name map {self.name!r})", problems)
        return self._back(theirs)

    def to_our_gradients(self, theirs: Mapping[str, Array]) -> Flat:
        """Our gradients from theirs: the adjoint of `to_theirs`. Those of `dropped` are dropped."""
        self.check(theirs, "their gradients")
        return self._back(theirs)

    def check(self, theirs: Mapping[str, Any], subject: str) -> None:
        """Raise `InvalidParameters` unless these have their names and shapes.

        Everything missing, unexpected or misshapen is listed at once.
        """
        found = {name: tuple(np.shape(array)) for name, array in theirs.items()}
        self._check(found, self.their_shapes, subject)

    def describe(self) -> str:
        """One line for each array of theirs: its shape, and what of ours lies in it."""
        lines = [f"{m.theirs} {m.arranged.shape} <- {', '.join(m.ours)}" for m in self.moves]
        lines += [
            f"{name} {shape} = {value:g}, and its gradient is dropped"
            for name, (shape, value) in self.constants.items()
        ]
        return "\n".join(lines)

    def _back(self, theirs: Mapping[str, Array]) -> Flat:
        found: Flat = {}
        for move in self.moves:
            whole = move.arranged.back(np.asarray(theirs[move.theirs]))
            shape = self.shapes[move.ours[0]] if move.ours else (0,)  # a stack of no layers
            found |= zip(move.ours, whole.reshape(len(move.ours), *shape), strict=True)
        return {name: found[name] for name in self.shapes}

    def _check(
        self, found: Mapping[str, Shape], expected: Mapping[str, Shape], subject: str
    ) -> None:
        missing = [name for name in expected if name not in found]
        problems = [f"{name}: missing, expected shape {expected[name]}" for name in missing]
        problems += [
            f"{name}: unexpected name, of shape {shape}"
            for name, shape in found.items()
            if name not in expected
        ]
        for name in expected.keys() & found.keys():
            shape, got = tuple(expected[name]), found[name]
            if got != shape:
                advice = "; transposed?" if got == shape[::-1] else ""
                problems.append(f"{name}: expected shape {shape}, got {got}{advice}")
        if problems:
            raise InvalidParameters(f"{subject} (name map {self.name!r})", sorted(problems))
