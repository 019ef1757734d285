"""Layouts: how the entries of our array lie in theirs, by a name or a pattern of axes.

    "D C ph pw -> ph pw C D"        a convolution's kernel, input channels next to last
    "D (H d) -> D H d"              a projection, its columns split into heads

An axis in parentheses is made of several, the first one varying slowest, and `1` is an axis of one
entry. Several of our arrays are stacked first, along an axis `s` of its own:

    "s D (H d) -> (s H d) D"        q, k and v one above the other, as (out, in)

The axes have the letters of the specification: D embed_dim, F hidden_dim, K num_classes, H
head_count, d head_dim, C channels, ph and pw the patch, n rows of the sequence, L layers. Other
letters take their size from our array.

Every layout moves entries and neither changes, repeats nor drops one: as a linear map it is a
permutation, whose adjoint is its inverse.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vitspec.typing import Array

Shape = tuple[int, ...]

LAYOUTS = {
    "same": "",
    "transpose": "i o -> o i",
    # the patch embedding's kernel
    "kernel-hwio": "D C ph pw -> ph pw C D",
    "kernel-chw-in-out": "D C ph pw -> (C ph pw) D",
    "kernel-hwc-in-out": "D C ph pw -> (ph pw C) D",
    "kernel-chw-out-in": "D C ph pw -> D (C ph pw)",
    "kernel-hwc-out-in": "D C ph pw -> D (ph pw C)",
    # CLS token and positions with leading axes for the batch
    "row-1": "D -> 1 D",
    "row-1-1": "D -> 1 1 D",
    "rows-1": "n D -> 1 n D",
    # projections split into heads
    "heads-in": "D (H d) -> D H d",
    "heads-in-first": "D (H d) -> H D d",
    "heads-out": "(H d) D -> H d D",
    "heads-bias": "(H d) -> H d",
    # q, k and v in one array: s counts them
    "qkv-in-out": "s D (H d) -> D (s H d)",
    "qkv-out-in": "s D (H d) -> (s H d) D",
    "qkv-by-head-in-out": "s D (H d) -> D (H s d)",
    "qkv-by-head-out-in": "s D (H d) -> (H s d) D",
    "qkv-d3hd": "s D (H d) -> D s H d",
    "qkv-dh3d": "s D (H d) -> D H s d",
    "qkv-3dhd": "s D (H d) -> s D H d",
    "qkv-bias": "s (H d) -> (s H d)",
    "qkv-by-head-bias": "s (H d) -> (H s d)",
    "qkv-bias-3hd": "s (H d) -> s H d",
    "qkv-bias-h3d": "s (H d) -> H s d",
}
"""The layouts with a name. Any other pattern can stand in a rule as it is."""


@dataclass(frozen=True)
class Arrangement:
    """A layout for one shape: where every entry of ours goes.

    Attributes:
        source: the shape of ours, stacked.
        split: the same with its axes taken apart.
        order: the order of these axes in theirs.
        shape: the shape of theirs.
    """

    source: Shape
    split: Shape
    order: tuple[int, ...]
    shape: Shape

    def there(self, ours: Array) -> Array:
        """Theirs, made of ours."""
        return ours.reshape(self.split).transpose(self.order).reshape(self.shape)

    def back(self, theirs: Array) -> Array:
        """Ours, made of theirs: the inverse, and the adjoint."""
        moved = theirs.reshape([self.split[axis] for axis in self.order])
        return moved.transpose(np.argsort(self.order)).reshape(self.source)


def arrangement(layout: str, source: Shape, sizes: Mapping[str, int]) -> Arrangement:
    """A layout for an array of ours (or a stack of them) of this shape.

    Args:
        layout: a name of `LAYOUTS`, or a pattern.
        source: the shape.
        sizes: of the axes that have a meaning, by letter.

    Raises:
        ValueError: the layout is unknown, no pattern, or does not fit.

    >>> arrangement("i (H d) -> (H d) i", (5, 6), {"H": 3}).split
    (5, 3, 2)
    """
    pattern = layout if "->" in layout else LAYOUTS.get(layout)
    if pattern is None:
        raise ValueError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}")
    if not pattern:
        return Arrangement(source, source, tuple(range(len(source))), source)
    left, right = (axes_of(side) for side in pattern.split("->"))
    axes = [axis for group in left for axis in group]
    if len(set(axes)) != len(axes) or sorted(axes) != sorted(a for group in right for a in group):
        raise ValueError(f"{pattern!r}: both sides must have the same axes, each once")
    if len(left) != len(source):
        raise ValueError(f"{pattern!r} is for {len(left)} axes, but ours has shape {source}")
    known = dict(sizes)
    for group, length in zip(left, source, strict=True):
        unknown = [axis for axis in group if axis not in known]
        rest = math.prod(known[axis] for axis in group if axis in known)
        if len(unknown) == 1 and rest and length % rest == 0:
            known[unknown[0]] = length // rest
        elif unknown or rest != length:
            made = " x ".join(f"{axis}={known.get(axis, '?')}" for axis in group) or "1"
            raise ValueError(f"{pattern!r}: {made} does not make {length} of shape {source}")
    split = tuple(known[axis] for axis in axes)
    order = tuple(axes.index(axis) for group in right for axis in group)
    return Arrangement(source, split, order, sized(right, known))


def axes_of(side: str) -> list[list[str]]:
    """The axes of one side of a pattern: "D (H d) 1" is [[D], [H, d], []]."""
    tokens = re.findall(r"\(([^()]*)\)|([^\s()]+)", side)
    if re.sub(r"\([^()]*\)|[^\s()]+|\s+", "", side):
        raise ValueError(f"{side.strip()!r}: unmatched parenthesis")
    return [[a for a in (inner or single).split() if a != "1"] for inner, single in tokens]


def sized(groups: list[list[str]], sizes: Mapping[str, int]) -> Shape:
    """The shape whose axes are made of these; a number stands for itself."""
    known = dict(sizes) | {axis: int(axis) for group in groups for axis in group if axis.isdigit()}
    if unknown := [axis for group in groups for axis in group if axis not in known]:
        raise ValueError(f"axes of unknown size: {', '.join(unknown)}")
    return tuple(math.prod(known[axis] for axis in group) for group in groups)
