"""Errors of operations on rows of n numbers: sums, products, softmax, the normalised row.

The arguments are drawn, and the truth is computed in float64 for 32 and 16 bits, in longdouble for
float64. `OPERATIONS` has each operation's scale, in terms of which an error is c u:

    divide      |x / y|
    sum         sum |x|, along the last axis and along the first
    mean        mean |x|
    variance    the variance, and |mean| times the standard deviation
    dot         sum |a| |b|
    softmax     A (1 + max - x): the difference is rounded before exp
    layer_norm  1 + |y| + |mean| / standard deviation: what the difference loses
    cubic_weights  the larger of both numbers of positions: coordinates are rounded, and so are off
                by more in a larger grid; there is no drawn argument, and n is the old number
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from vitspec.layers.position_interpolation import interpolation_weights

ROWS, EPSILON = 48, 1e-6


def draws(n: int, dtype: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Rows of n and the second factor, each a number of the type: of kinds that sum differently."""
    rng = np.random.default_rng(n)
    shape = (ROWS, n)
    other = rng.standard_normal((n, ROWS))
    equal = np.broadcast_to(rng.uniform(1, 2, (ROWS, 1)), shape)
    yield "normal", _fit(rng.standard_normal(shape), dtype), _fit(other, dtype)
    yield "positive", _fit(rng.uniform(0, 1, shape), dtype), _fit(np.abs(other), dtype)
    yield "shifted", _fit(3 + rng.standard_normal(shape), dtype), _fit(other, dtype)
    yield "wide", _fit(np.exp2(rng.uniform(-10, 3, shape)), dtype), _fit(other, dtype)
    yield "equal", _fit(equal, dtype), _fit(np.broadcast_to(equal.T[:1], other.shape), dtype)


def _fit(x: np.ndarray, dtype: str) -> np.ndarray:
    """x rounded to the type, as float64."""
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
        return (bits & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)
    return np.ascontiguousarray(x).astype(dtype).astype(np.float64)


def _divide(x: Any, y: Any) -> tuple[Any, Any]:
    quotient = x / y.T
    return quotient, np.abs(quotient)


def _softmax(x: Any, y: Any) -> tuple[Any, Any]:
    below = np.max(x, -1, keepdims=True) - x
    weights = np.exp(-below)
    weights = weights / np.sum(weights, -1, keepdims=True)
    return weights, weights * (1 + below)


def _layer_norm(x: Any, y: Any) -> tuple[Any, Any]:
    mean = np.mean(x, -1, keepdims=True)
    deviation = np.sqrt(np.var(x, -1, keepdims=True) + EPSILON)
    result = (x - mean) / deviation
    return result, 1 + np.abs(result) + np.abs(mean) / deviation


def _variance(x: Any, y: Any) -> tuple[Any, Any]:
    variance = np.var(x, -1)
    return variance, variance + np.abs(np.mean(x, -1)) * np.sqrt(variance)


NEW_SIZES = (2, 3, 5, 8, 11, 16, 19, 27, 37, 50)


def _cubic_weights(x: Any, y: Any) -> tuple[Any, Any]:
    old = x.shape[-1]
    weights = [interpolation_weights(old, new, np.dtype(np.float64)) for new in NEW_SIZES]
    sizes = [np.full_like(one, max(one.shape)) for one in weights]
    return np.concatenate(weights), np.concatenate(sizes)


OPERATIONS: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    "divide": _divide,
    "sum": lambda x, y: (np.sum(x, -1), np.sum(np.abs(x), -1)),
    "sum_first": lambda x, y: (np.sum(x.T, 0), np.sum(np.abs(x.T), 0)),
    "mean": lambda x, y: (np.mean(x, -1), np.mean(np.abs(x), -1)),
    "variance": _variance,
    "dot": lambda x, y: (np.matmul(x, y), np.matmul(np.abs(x), np.abs(y))),
    "softmax": _softmax,
    "layer_norm": _layer_norm,
    "cubic_weights": _cubic_weights,
}
"""Of rows x and a second factor y: the result, and the scale of its error."""


def worst_rows(name: str, function: Any, dtype: str, n: int, u: float) -> dict[str, float]:
    """For each kind of rows, the largest error in u of the scale."""
    found = {}
    for kind, x, y in draws(n, dtype):
        if kind == "equal" and name in ("variance", "layer_norm"):
            continue  # the variance is 0: what the mean loses decides, not the operation
        if kind != "normal" and name == "cubic_weights":
            continue
        if name == "divide":  # neither overflow nor a result below the smallest normal number
            x, y = (np.where(np.abs(z) < 2.0**-6, 2.0**-6, z) for z in (x, y))
        wide = np.longdouble if dtype == "float64" else np.float64
        truth, scale = OPERATIONS[name](x.astype(wide), y.astype(wide))
        error = np.abs(function(x, y) - truth)
        found[kind] = float(f"{np.max(error / (u * scale)):.4g}")
    return found


# ---- the libraries -------------------------------------------------------------------------------


def row_functions(library: str, dtype: str) -> dict[str, Any]:
    """A library's operations, from float64 to float64, computed in the type."""
    makers = {"numpy": _numpy, "torch": _torch, "torch-onednn": _torch, "jax": _jax}
    return makers[library](dtype) if library in makers else {}


def _numpy(dtype: str) -> dict[str, Any]:
    if dtype not in ("float32", "float64"):
        return {}

    def wrapped(operation: Any) -> Any:
        return lambda x, y: operation(x.astype(dtype), y.astype(dtype))[0].astype(np.float64)

    others = {name: one for name, one in OPERATIONS.items() if name != "cubic_weights"}
    return {name: wrapped(operation) for name, operation in others.items()}


def _torch(dtype: str) -> dict[str, Any]:
    import torch
    from torch.nn import functional

    kind = getattr(torch, dtype)
    named = {
        "divide": lambda x, y: x / y.T,
        "sum": lambda x, y: x.sum(-1),
        "sum_first": lambda x, y: x.T.contiguous().sum(0),
        "mean": lambda x, y: x.mean(-1),
        "variance": lambda x, y: x.var(-1, correction=0),
        "dot": torch.matmul,
        "softmax": lambda x, y: torch.softmax(x, -1),
        "layer_norm": lambda x, y: functional.layer_norm(x, x.shape[-1:], eps=EPSILON),
        "cubic_weights": lambda x, y: torch.cat([weights(x.shape[-1], new) for new in NEW_SIZES]),
    }

    def weights(old: int, new: int) -> Any:
        """What interpolation makes of the identity: a column for each old position."""
        one_each = torch.eye(old, dtype=kind).reshape(1, old, old, 1)
        return functional.interpolate(one_each, (new, 1), mode="bicubic")[0, :, :, 0].T

    def wrapped(function: Any) -> Any:
        def run(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                pair = (torch.from_numpy(z).to(kind) for z in (x, y))
                return function(*pair).double().numpy()

        return run

    return {name: wrapped(function) for name, function in named.items()}


def _jax(dtype: str) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    def layer_norm(x: Any, y: Any) -> Any:
        centred = x - jnp.mean(x, -1, keepdims=True)
        return centred * jax.lax.rsqrt(jnp.var(x, -1, keepdims=True) + EPSILON)

    named = {
        "divide": lambda x, y: x / y.T,
        "sum": lambda x, y: jnp.sum(x, -1),
        "sum_first": lambda x, y: jnp.sum(x, 0),
        "mean": lambda x, y: jnp.mean(x, -1),
        "variance": lambda x, y: jnp.var(x, -1),
        "dot": jnp.matmul,
        "softmax": lambda x, y: jax.nn.softmax(x, -1),
        "layer_norm": layer_norm,
    }

    def wrapped(name: str, function: Any) -> Any:
        program = jax.jit(function)
        kind = jnp.dtype(dtype)

        def run(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            rows = x.T if name == "sum_first" else x
            return np.asarray(program(rows.astype(kind), y.astype(kind))).astype(np.float64)

        return run

    return {name: wrapped(name, function) for name, function in named.items()}
