"""Matrix products alone, by JAX."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from vitfast.bench.cases import SQUARE, Case, Flat


@jax.jit
def multiply(operands: Any) -> Any:
    """All products, of which little is returned; behind the barrier all of it is needed."""
    return [jax.lax.optimization_barrier(a @ b)[..., 0, 0] for a, b in operands]


class Products:
    """The matrix products of each pass alone, and a square one: what could be reached."""

    def __init__(self, case: Case, side: int) -> None:
        self._key, self._shared = jax.random.key(0), dict[tuple[int, ...], Any]()
        self._dtype = jnp.dtype(case.dtype)
        lists = {name: case.products(name) for name in case.passes}
        lists[SQUARE] = [((side, side), (side, side))]
        self._operands = {name: self._operands_of(products) for name, products in lists.items()}
        self.passes: dict[str, Callable[[], Any]] = {
            name: partial(self._run, name) for name in lists
        }

    def _operands_of(self, products: Any) -> list[tuple[Any, Any]]:
        # Products may share their first operand, as a model's do; the second is their own, for
        # equal products would be computed once.
        for a, _ in products:
            if a not in self._shared:
                self._shared[a] = self._random(a)
        return [(self._shared[a], self._random(b)) for a, b in products]

    def _run(self, name: str) -> Any:
        return jax.block_until_ready(multiply(self._operands[name]))

    def lowered(self, name: str) -> Any:
        """The program of a pass, as handed to the compiler."""
        return multiply.lower(self._operands[name])

    def _random(self, shape: tuple[int, ...]) -> Any:
        self._key, key = jax.random.split(self._key)
        return jax.random.normal(key, shape, self._dtype)

    def memory(self) -> dict[str, int]:
        """Nothing is reported of a ceiling."""
        return {}

    def results(self) -> Flat:
        """Nor computed."""
        return {}


def ceiling(case: Case, device: str, *, side: int) -> Products:
    """The products of the passes, and one of `side` x `side` matrices."""
    return Products(case, side)
