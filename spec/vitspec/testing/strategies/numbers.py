"""Arrays of fresh numbers, parameters, and the points of the Lean mirror that are made of them.

`values` chooses the numbers; None draws the kind as well:

| values | arrays (`images`, `cotangents`, `arrays`) | parameters |
| --- | --- | --- |
| `normal` | normal | as `ViTSpec.init` draws them |
| `offset` | normal about 100 | the tokens are about 100: a layer norm has to subtract first |
| `tiny` | normal times 1e-4 | the tokens are about 1e-4: a layer norm's epsilon counts |
| `large` | normal times 30 | queries and keys are times 30: the softmax saturates |
| `ties` | -1, 0 or 1 | patch tokens alike; feature 0 of each hidden layer is at the ReLU's kink |
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from vitspec.config import ViTConfig
from vitspec.models.parameters import check_model, parameter_shapes, random_parameters
from vitspec.testing.reference import Point
from vitspec.testing.strategies.sizes import Size, cases, seeds
from vitspec.typing import Array

VALUES = ("normal", "offset", "tiny", "large", "ties")
"""The kinds of numbers that an array may hold."""


def kinds(values: str | None, known: tuple[str, ...] = VALUES) -> st.SearchStrategy[str]:
    """The kind of numbers that is asked for, or any of those known."""
    if values not in (None, *known):
        raise ValueError(f"values: expected one of {', '.join(known)} or None, got {values!r}")
    return st.sampled_from(known if values is None else (values,))


@st.composite
def arrays(
    draw: Any, /, shape: tuple[int, ...], values: str | None = "normal", dtype: Any = np.float64
) -> Array:
    """Fresh numbers of one shape; `values` is one of `VALUES`, or None for any of them."""
    kind = draw(kinds(values))
    rng = np.random.default_rng(draw(seeds))
    if kind == "ties":
        return rng.integers(-1, 1, shape, endpoint=True).astype(dtype)
    offset, scale = {"offset": (100, 1), "tiny": (0, 1e-4), "large": (0, 30)}.get(kind, (0, 1))
    return (offset + scale * rng.standard_normal(shape)).astype(dtype)


def images(
    size: Size, batch: int | None = None, values: str | None = "normal", dtype: Any = np.float64
) -> st.SearchStrategy[Array]:
    """Images of one size: (C, H, W), or (batch, C, H, W)."""
    return arrays(_with_batch(size, batch), values, dtype)


def cotangents(
    config: ViTConfig,
    batch: int | None = None,
    values: str | None = "normal",
    dtype: Any = np.float64,
) -> st.SearchStrategy[Array]:
    """Cotangents of the logits: (K,), or (batch, K)."""
    return arrays(_with_batch((config.num_classes,), batch), values, dtype)


def _with_batch(shape: tuple[int, ...], batch: int | None) -> tuple[int, ...]:
    return shape if batch is None else (batch, *shape)


@st.composite
def parameters(
    draw: Any,
    /,
    config: ViTConfig,
    size: Size,
    spec: str = "vit",
    values: str | None = "normal",
    dtype: Any = np.float64,
) -> dict[str, Array]:
    """The parameters of a model by flat name; `values` is one of `VALUES`, or None for any."""
    cls = spec == "vit-cls"
    shapes = parameter_shapes(config, *check_model(config, *size, cls=cls), cls=cls)
    kind = draw(kinds(values))
    flat = random_parameters(shapes, np.random.default_rng(draw(seeds)), np.dtype(np.float64))
    _change_parameters(kind, flat)
    return {name: leaf.astype(dtype) for name, leaf in flat.items()}


def _change_parameters(kind: str, flat: dict[str, Array]) -> None:
    """Make fresh parameters those of a kind, in place."""
    positions = flat["pos_enc.pos"]
    if kind == "offset":
        positions += 100
    elif kind == "tiny":
        for name in ("patch_embed.kernel", "patch_embed.bias", "cls_token", "pos_enc.pos"):
            if name in flat:
                flat[name] *= 1e-4
    elif kind == "large":
        for name in flat:
            if name.endswith((".wq", ".wk")):
                flat[name] *= 30
    elif kind == "ties":
        flat["patch_embed.kernel"][...] = 0
        positions[...] = positions[-1]
        for name in flat:
            if name.endswith((".w1", ".b1")):
                flat[name][..., 0] = 0


@st.composite
def points(
    draw: Any,
    /,
    spec: str | None = None,
    *,
    max_batch: int = 3,
    values: str | None = "normal",
    **sizes: Any,
) -> Point:
    """Models with parameters, a batch of images and a cotangent, as the checks evaluate them.

    Args:
        draw: given by Hypothesis.
        spec: "vit" or "vit-cls"; None for either.
        max_batch: the largest batch.
        values: of the parameters; images and cotangents are normal.
        **sizes: as in `cases`.
    """
    case = draw(cases(spec, **sizes))
    batch = draw(st.integers(1, max_batch))
    return Point(
        case.spec,
        case.config,
        draw(parameters(case.config, case.image_shape, case.spec, values)),
        draw(images(case.image_shape, batch)),
        draw(cotangents(case.config, batch)),
    )
