"""Matrix products alone, by PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vitfast.bench.cases import SQUARE, Case, Flat
from vitspec.testing.adapters.frameworks import framework

torch = framework("torch")


class Products:
    """The matrix products of each pass alone, and a square one: what could be reached."""

    def __init__(self, case: Case, device: str, side: int) -> None:
        self._device, self._dtype = "cuda" if device == "gpu" else "cpu", case.dtype
        self._shared: dict[tuple[int, ...], Any] = {}
        self._outputs: dict[tuple[int, ...], Any] = {}
        lists = {name: case.products(name) for name in case.passes}
        lists[SQUARE] = [((side, side), (side, side))]
        self.passes: dict[str, Callable[[], Any]] = {
            name: self._program(products) for name, products in lists.items()
        }

    def _program(self, products: Any) -> Callable[[], Any]:
        # As for JAX, products may share their first operand; and here, where the result goes.
        for a, b in products:
            out = (*a[:-1], b[-1])
            for store, shape in ((self._shared, a), (self._outputs, out)):
                if shape not in store:
                    store[shape] = self._random(shape)
        operands = [
            (self._shared[a], self._random(b), self._outputs[*a[:-1], b[-1]]) for a, b in products
        ]

        def run() -> None:
            with torch.inference_mode():
                for a, b, out in operands:
                    torch.matmul(a, b, out=out)
            if self._device == "cuda":
                torch.cuda.synchronize()

        return run

    def _random(self, shape: tuple[int, ...]) -> Any:
        return torch.randn(shape, device=self._device).to(getattr(torch, self._dtype))

    def memory(self) -> dict[str, int]:
        """Nothing is reported of a ceiling."""
        return {}

    def results(self) -> Flat:
        """Nor computed."""
        return {}


def ceiling(case: Case, device: str, *, side: int) -> Products:
    """The products of the passes, and one of `side` x `side` matrices."""
    return Products(case, device, side)
