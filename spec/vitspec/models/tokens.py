"""From the patch grid to a sequence of tokens, and from the encoded sequence to one row.

These maps are linear: each is its own JVP, and its backward is its adjoint.

Lean: `reshapeSpec`, `swapFirstTwoSpec`, `concatLeadingAxisSpec`, `sliceLeadingAxisRangeSpec` and
`reduceMeanAuto`, inside `ViTSpec.forward`, `ViTClsSpec.forward` and their `.backward`
(`Models/Vit.lean`).
"""

from __future__ import annotations

import numpy as np

from vitspec import scalars
from vitspec.errors import InvalidArray
from vitspec.typing import Array, Scalar, typed


def require_rows(n: int) -> None:
    """Raise `InvalidArray` if there is no row to pool, or none for the CLS token."""
    if n < 1:
        raise InvalidArray(f"expected at least one row, got {n}")


@typed
def grid_to_tokens(patches: Scalar[Array, "D out_h out_w"]) -> Scalar[Array, "T D"]:
    """Position (i, j) of the grid becomes row i * out_w + j."""
    D, out_h, out_w = patches.shape
    return patches.reshape(D, out_h * out_w).T


@typed
def tokens_to_grid(
    tokens: Scalar[Array, "T D"], out_h: int, out_w: int
) -> Scalar[Array, "D {out_h} {out_w}"]:
    """The inverse of `grid_to_tokens`, and its adjoint; the tokens must fill the grid."""
    if tokens.shape[0] != out_h * out_w:
        raise InvalidArray(f"{tokens.shape[0]} tokens do not fill a grid of {out_h} x {out_w}")
    return tokens.T.reshape(tokens.shape[1], out_h, out_w)


@typed
def prepend_cls(
    cls_token: Scalar[Array, "D"], tokens: Scalar[Array, "T D"]
) -> Scalar[Array, "n D"]:
    """The CLS token as row 0, above the tokens: n = T + 1 rows."""
    return np.concatenate([cls_token[None, :], tokens])


@typed
def prepend_cls_backward(
    d_sequence: Scalar[Array, "n D"],
) -> tuple[Scalar[Array, "D"], Scalar[Array, "T D"]]:
    """The cotangents of the CLS token (row 0) and of the tokens (the other rows)."""
    require_rows(d_sequence.shape[0])
    return d_sequence[0].copy(), d_sequence[1:]


@typed
def mean_pool(encoded: Scalar[Array, "n D"]) -> Scalar[Array, "D"]:
    """The mean of the rows, of which there is at least one: first the sum, then one division."""
    require_rows(encoded.shape[0])
    return scalars.mean(encoded, axis=0)


@typed
def mean_pool_backward(d_pooled: Scalar[Array, "D"], n: int) -> Scalar[Array, "{n} D"]:
    """Every row gets d_pooled * (1 / n)."""
    require_rows(n)
    share = d_pooled * (scalars.scalar(1, d_pooled.dtype) / n)
    return np.tile(share, (n, 1))


@typed
def cls_pool(encoded: Scalar[Array, "n D"]) -> Scalar[Array, "D"]:
    """Row 0: the CLS token's."""
    require_rows(encoded.shape[0])
    return encoded[0]


@typed
def cls_pool_backward(d_pooled: Scalar[Array, "D"], n: int) -> Scalar[Array, "{n} D"]:
    """Row 0 gets d_pooled, every other row exactly 0."""
    require_rows(n)
    d_encoded = scalars.zeros((n, d_pooled.shape[0]), d_pooled.dtype)
    d_encoded[0] = d_pooled
    return d_encoded
