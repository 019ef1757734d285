"""Name maps: the same parameters under other names and in other layouts, as data.

A `NameMap` is a list of rules, each of strings only:

    Rule(theirs name, our name or names, layout)

`{i}` stands for the number of a layer, so one rule serves them all. The layout says how the entries
of our array lie in theirs; it is a name of `LAYOUTS`, or a pattern of axes such as

    "D C ph pw -> ph pw C D"        a convolution's kernel, input channels next to last
    "D (H d) -> D H d"              a projection, its columns split into heads

in which an axis in parentheses is made of several, the first one varying slowest, and `1` is an
axis of one entry. Several of our names are stacked first, along an axis `s` of its own:

    "s D (H d) -> (s H d) D"        q, k and v one above the other, as (out, in)

and our name with `*` for the layer's number stacks all layers, along a first axis `L`.

The axes have the letters of the specification: D embed_dim, F hidden_dim, K num_classes, H
head_count, d head_dim, C channels, ph and pw the patch, n rows of the sequence, L layers. Other
letters take their size from our array.

Every layout moves entries and neither changes, repeats nor drops one: as a linear map it is a
permutation, whose adjoint is its inverse. That is why one rule serves parameters in both directions
and gradients too. The exception is a `Constant`, a parameter of theirs that ours lacks: it has its
value on the way there, must still have it on the way back, and its gradient is dropped.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vitspec.config import ViTConfig
from vitspec.errors import InvalidParameters
from vitspec.geometry import patch_count
from vitspec.models.parameters import parameter_shapes
from vitspec.models.vision_transformer_parameters import parameter_shapes as practical_shapes
from vitspec.typing import Array
from vitspec.vision_transformer_config import VisionTransformerConfig

Flat = dict[str, Array]
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
class Rule:
    """One array of theirs and what of ours lies in it.

    Attributes:
        theirs: its name, with `{i}` for the number of the layer.
        ours: our flat name; or several, which are stacked in this order.
        layout: a name of `LAYOUTS`, or a pattern.
    """

    theirs: str
    ours: str | tuple[str, ...]
    layout: str = "same"

    @property
    def names(self) -> tuple[str, ...]:
        """Ours, as a tuple also if it is one."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    @property
    def of_layer_i(self) -> set[str]:
        """Ours, without the difference between one layer and all of them."""
        return {name.replace("*", "{i}") for name in self.names}


@dataclass(frozen=True)
class Constant:
    """A parameter of theirs that ours lacks, such as a bias of attention.

    Attributes:
        theirs: its name, with `{i}` for the number of the layer.
        shape: its axes, such as "(3 H d)"; a number stands for itself.
        value: what it must be for the two to compute the same function.
    """

    theirs: str
    shape: str
    value: float = 0.0


@dataclass(frozen=True)
class NameMap:
    """How another implementation names and lays out the parameters.

    Attributes:
        name: what messages call it.
        rules: each array of theirs that has something of ours. Between them they must take every
            array of ours exactly once. Rules for `cls_token` are passed over if there is none.
        constants: each array of theirs that has nothing of ours.
    """

    name: str
    rules: tuple[Rule, ...]
    constants: tuple[Constant, ...] = ()

    def bind(
        self, config: ViTConfig, in_channels: int, height: int, width: int, *, cls: bool
    ) -> BoundMap:
        """The map for one model, with every name and shape spelled out.

        Raises:
            InvalidParameters: the rules do not take all of ours exactly once, or a layout does not
                fit; everything that is wrong is listed.
        """
        size = (in_channels, height, width)
        shapes = parameter_shapes(config, *size, cls=cls)
        sizes = axis_sizes(config, *size, cls=cls)
        # Also without layers, a stack of all layers has the width of one.
        one = parameter_shapes(config, *size, cls=cls, num_layers=max(config.num_layers, 1))
        absent = frozenset() if cls else frozenset({"cls_token"})
        return self._bound(config.num_layers, shapes, one, sizes, absent)

    def bind_practical(self, config: VisionTransformerConfig) -> BoundMap:
        """The map for one model of the practical family.

        Rules for what the configuration leaves out, such as a bias, are passed over.

        Raises:
            InvalidParameters: as `bind`.
        """
        shapes = practical_shapes(config)
        one = practical_shapes(replace(config, num_layers=max(config.num_layers, 1)))
        absent = frozenset(every_name(EVERYTHING)) - {_any_layer(name) for name in one}
        return self._bound(config.num_layers, shapes, one, practical_sizes(config), absent)

    def _bound(
        self,
        num_layers: int,
        shapes: dict[str, Shape],
        one: dict[str, Shape],
        sizes: dict[str, int],
        absent: frozenset[str],
    ) -> BoundMap:
        """The map for parameters of these shapes.

        Args:
            num_layers: of the model.
            shapes: of its parameters.
            one: of those of a model that has a layer at least.
            sizes: of the axes.
            absent: what other models have and this one lacks, with `{i}` for any layer.
        """
        moves: list[Move] = []
        constants: dict[str, tuple[Shape, float]] = {}
        problems: list[str] = []
        entries: tuple[Rule | Constant, ...] = (*self.rules, *self.constants)
        for rule in entries:
            if isinstance(rule, Rule) and not absent.isdisjoint(rule.of_layer_i):
                continue
            for i in range(num_layers if "{i}" in rule.theirs else 1):
                theirs = rule.theirs.replace("{i}", str(i))
                try:
                    if isinstance(rule, Rule):
                        moves.append(_move(theirs, rule, i, one, sizes))
                    else:
                        constants[theirs] = _shape(_groups(rule.shape), sizes), rule.value
                except ValueError as error:
                    problems.append(f"{theirs}: {error}")
        made = Counter([move.theirs for move in moves] + [*constants])
        problems += [f"{n} (theirs): made {count} times" for n, count in made.items() if count > 1]
        taken = Counter(name for move in moves for name in move.ours)
        if not problems:  # else what is missing follows from what is wrong
            problems += [f"{name}: taken by no rule" for name in shapes if not taken[name]]
            problems += [f"{n}: taken {count} times" for n, count in taken.items() if count > 1]
        if problems:
            raise InvalidParameters(f"The rules of the name map {self.name!r}", problems)
        return BoundMap(self.name, tuple(moves), constants, shapes)

    def replacing(self, *rules: Rule, name: str | None = None) -> NameMap:
        """The same map, but with these rules in place of those that take the same of ours.

        >>> conv = Rule("patch.weight", "patch_embed.kernel")
        >>> NameMap("mine", (Rule("stem.kernel", "patch_embed.kernel"),)).replacing(conv).rules
        (Rule(theirs='patch.weight', ours='patch_embed.kernel', layout='same'),)
        """
        taken = {name for rule in rules for name in rule.of_layer_i}
        kept = tuple(rule for rule in self.rules if taken.isdisjoint(rule.of_layer_i))
        return replace(self, name=name or self.name, rules=(*kept, *rules))


def axis_sizes(
    config: ViTConfig, in_channels: int, height: int, width: int, *, cls: bool
) -> dict[str, int]:
    """The sizes of the axes that have a meaning, by their letters.

    >>> sizes = axis_sizes(ViTConfig(), 3, 224, 224, cls=True)
    >>> sizes["n"], sizes["D"], sizes["H"], sizes["d"]
    (197, 768, 12, 64)
    """
    return {
        "D": config.embed_dim,
        "F": config.hidden_dim,
        "K": config.num_classes,
        "H": config.head_count,
        "d": config.head_dim,
        "C": in_channels,
        "ph": config.patch_h,
        "pw": config.patch_w,
        "n": patch_count(config, height, width) + cls,
        "L": config.num_layers,
    }


def practical_sizes(config: VisionTransformerConfig) -> dict[str, int]:
    """The same letters, for the practical family; "P" is the width of what is classified."""
    return {
        "D": config.embed_dim,
        "F": config.hidden_dim,
        "K": config.num_classes,
        "H": config.head_count,
        "d": config.head_dim,
        "C": config.in_channels,
        "ph": config.patch_h,
        "pw": config.patch_w,
        "n": config.token_count,
        "L": config.num_layers,
        "P": config.pooled_dim,
    }


EVERYTHING = VisionTransformerConfig(
    num_layers=1, layer_scale=True, mask_token=True, pooler_dim=1, decoder_stride=1
)
"""A model that has every parameter there is."""


def every_name(config: VisionTransformerConfig) -> list[str]:
    """The names of the parameters, with `{i}` for any layer."""
    return list(dict.fromkeys(map(_any_layer, practical_shapes(config))))


def _any_layer(name: str) -> str:
    return re.sub(r"^encoder\.layers\.\d+\.", "encoder.layers.{i}.", name)


# ---- a map for one model -------------------------------------------------------------------------


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
            shape = [self.shapes[name] for name in move.ours[:1]]
            parts = whole.reshape(len(move.ours), *(shape[0] if shape else (0,)))
            found |= zip(move.ours, parts, strict=True)
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


# ---- a layout for one shape ----------------------------------------------------------------------


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
    left, right = (_groups(side) for side in pattern.split("->"))
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
    return Arrangement(source, split, order, _shape(right, known))


def _groups(side: str) -> list[list[str]]:
    """The axes of one side of a pattern: "D (H d) 1" is [[D], [H, d], []]."""
    tokens = re.findall(r"\(([^()]*)\)|([^\s()]+)", side)
    if re.sub(r"\([^()]*\)|[^\s()]+|\s+", "", side):
        raise ValueError(f"{side.strip()!r}: unmatched parenthesis")
    return [[a for a in (inner or single).split() if a != "1"] for inner, single in tokens]


def _shape(groups: list[list[str]], sizes: Mapping[str, int]) -> Shape:
    unknown = [a for group in groups for a in group if not a.isdigit() and a not in sizes]
    if unknown:
        raise ValueError(f"axes of unknown size: {', '.join(unknown)}")
    sized = [[int(a) if a.isdigit() else sizes[a] for a in group] for group in groups]
    return tuple(math.prod(group) for group in sized)


# ---- rules for one model -------------------------------------------------------------------------


def _move(
    theirs: str, rule: Rule, layer: int, shapes: Mapping[str, Shape], sizes: Mapping[str, int]
) -> Move:
    names = [name.replace("{i}", str(layer)) for name in rule.names]
    every_layer = any("*" in name for name in names)
    first = [name.replace("*", "0") for name in names]
    if unknown := [name for name in first if name not in shapes]:
        raise ValueError(f"ours has no parameter {', '.join(unknown)}")
    if len({shapes[name] for name in first}) != 1:
        raise ValueError(f"only arrays of one shape can be stacked, not {', '.join(names)}")
    stack = () if isinstance(rule.ours, str) else (len(names),)
    if every_layer:
        stack = (sizes["L"], *stack)
        names = [name.replace("*", str(i)) for i in range(sizes["L"]) for name in names]
    arranged = arrangement(rule.layout, (*stack, *shapes[first[0]]), sizes)
    return Move(theirs, tuple(names), arranged)
