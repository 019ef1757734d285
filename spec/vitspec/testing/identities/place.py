"""Numbers for the roles of a model, in one of its layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitspec.testing.identities.naming import Model
from vitspec.typing import Array

Sides = tuple[Array, Any]


@dataclass(frozen=True)
class Place:
    """One layer (or None: outside the layers) of a model, and numbers for its roles.

    Attributes:
        model: the roles.
        layer: which layer.
        heads: how many heads there are.
        geometry: the strides of the patches along both axes, and the padding.
        weights: parameters by name, and `images` and `cotangent`.
        gradients: by name, `image`, and what else identities are linear in: `logits`, `cotangent`.
    """

    model: Model
    layer: int | None
    heads: int | None
    geometry: tuple[tuple[int, ...], int]
    weights: Mapping[str, Array]
    gradients: Mapping[str, Array]

    def where(self, role: str) -> tuple[str, int | None] | None:
        """The key of a role here; `attn_norm`, `ffn_norm`, `last_norm` are what feeds those."""
        part, _, array = role.partition(".")
        post, last = self.model.naming.norm == "post", self.model.num_layers - 1
        inside = (role, self.layer) in self.model.roles
        key: tuple[str, int | None] = (role, self.layer if inside else None)
        if part == "last_norm":
            key = (f"norm2.{array}", last) if post else (f"final_norm.{array}", None)
        elif part == "attn_norm" and self.layer is not None:
            key = (f"norm2.{array}", self.layer - 1) if post else (f"norm1.{array}", self.layer)
        elif part == "ffn_norm":
            key = (f"norm1.{array}" if post else f"norm2.{array}", self.layer)
        return key if key in self.model.roles else None

    def has(self, *roles: str) -> bool:
        """Whether the model has all of these roles here."""
        return all(self.where(role) for role in roles)

    def name(self, role: str) -> str:
        """The parameter that holds a role."""
        key = self.where(role)
        assert key is not None, role
        return self.model.roles[key].name

    def w(self, role: str) -> Array:
        """The weights of a role."""
        return self._canonical(role, self.weights)

    def d(self, role: str) -> Array:
        """The gradient of a role."""
        return self._canonical(role, self.gradients)

    def _canonical(self, role: str, flat: Mapping[str, Array]) -> Array:
        key = self.where(role)
        assert key is not None, role
        located = self.model.roles[key]
        return located.stored.canonical(role, flat[located.name])

    def affine(self, part: str, of: Callable[[str], Array]) -> Array:
        """The matrix of a linear map with its bias, if it has one, as one more row."""
        rows = [of(f"{part}.weight")]
        if self.has(f"{part}.bias"):
            rows.append(of(f"{part}.bias")[None])
        return np.concatenate(rows)

    def by_head(self, matrix: Array) -> Array:
        """(n, H d) -> (H, n, d)."""
        assert self.heads is not None
        return matrix.reshape(len(matrix), self.heads, -1).swapaxes(0, 1)
