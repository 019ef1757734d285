"""Name maps: the same parameters under other names and in other layouts, as data.

A `NameMap` is a list of rules, each of strings only:

    Rule(theirs name, our name or names, layout)

`{i}` stands for the number of a layer, so one rule serves them all. The layout says how the entries
of our array lie in theirs; it is a name or a pattern of axes (see `layouts`). Several of our names
are stacked first, along an axis `s` of its own, and our name with `*` for the layer's number stacks
all layers, along a first axis `L`.

Every layout is a permutation of entries, whose adjoint is its inverse. That is why one rule serves
parameters in both directions and gradients too. The exception is a `Constant`, a parameter of
theirs that ours lacks: it has its value on the way there, must still have it on the way back, and
its gradient is dropped.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from vitspec.config import ViTConfig
from vitspec.errors import InvalidParameters
from vitspec.geometry import patch_count
from vitspec.models.parameters import parameter_shapes
from vitspec.models.vision_transformer_parameters import parameter_shapes as practical_shapes
from vitspec.testing.adapters.bound_map import BoundMap, Move
from vitspec.testing.adapters.layouts import Shape, arrangement, axes_of, sized
from vitspec.vision_transformer_config import VisionTransformerConfig

Config = ViTConfig | VisionTransformerConfig


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
            array of ours exactly once. Those for what a model lacks are passed over: for the
            `cls_token` of a `ViTConfig`, and for all that the practical family can leave out.
        constants: each array of theirs that has nothing of ours.
    """

    name: str
    rules: tuple[Rule, ...]
    constants: tuple[Constant, ...] = ()

    def bind(self, config: Config, *image_shape: int, cls: bool = False) -> BoundMap:
        """The map for one model, with every name and shape spelled out.

        Args:
            config: of either family.
            *image_shape: in_channels, height and width, which a `ViTConfig` does not say.
            cls: whether a `ViTConfig` is that of a `ViTClsSpec`.

        Raises:
            InvalidParameters: the rules do not take all of ours exactly once, or a layout does not
                fit; everything that is wrong is listed.
        """
        shapes = shapes_of(config, *image_shape, cls=cls)
        # Also without layers, a stack of all layers has the width of one.
        with_layer = replace(config, num_layers=max(config.num_layers, 1))
        one = shapes_of(with_layer, *image_shape, cls=cls)
        sizes = axis_sizes(config, *image_shape, cls=cls)
        optional = {"cls_token"} if isinstance(config, ViTConfig) else {*every_name(EVERYTHING)}
        absent = optional - {_any_layer(name) for name in one}
        moves: list[Move] = []
        constants: dict[str, tuple[Shape, float]] = {}
        problems: list[str] = []
        entries: tuple[Rule | Constant, ...] = (*self.rules, *self.constants)
        for rule in entries:
            if isinstance(rule, Rule) and not absent.isdisjoint(rule.of_layer_i):
                continue
            for i in range(config.num_layers if "{i}" in rule.theirs else 1):
                theirs = rule.theirs.replace("{i}", str(i))
                try:
                    if isinstance(rule, Rule):
                        moves.append(_move(theirs, rule, i, one, sizes))
                    else:
                        constants[theirs] = sized(axes_of(rule.shape), sizes), rule.value
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


# ---- what a configuration says -------------------------------------------------------------------


def shapes_of(config: Config, *image_shape: int, cls: bool = False) -> dict[str, Shape]:
    """The shapes of our parameters, by flat name."""
    if isinstance(config, ViTConfig):
        return parameter_shapes(config, *image_shape, cls=cls)
    return practical_shapes(config)


def axis_sizes(config: Config, *image_shape: int, cls: bool = False) -> dict[str, int]:
    """The sizes of the axes that have a meaning, by their letters.

    In the practical family, "P" is the width of what is classified.

    >>> sizes = axis_sizes(ViTConfig(), 3, 224, 224, cls=True)
    >>> sizes["n"], sizes["D"], sizes["H"], sizes["d"]
    (197, 768, 12, 64)
    """
    sizes = {
        "D": config.embed_dim,
        "F": config.hidden_dim,
        "K": config.num_classes,
        "H": config.head_count,
        "d": config.head_dim,
        "ph": config.patch_h,
        "pw": config.patch_w,
        "L": config.num_layers,
    }
    if isinstance(config, ViTConfig):
        in_channels, height, width = image_shape
        return sizes | {"C": in_channels, "n": patch_count(config, height, width) + cls}
    return sizes | {"C": config.in_channels, "n": config.token_count, "P": config.pooled_dim}


EVERYTHING = VisionTransformerConfig(
    num_layers=1, layer_scale=True, mask_token=True, pooler_dim=1, decoder_stride=1
)
"""A model that has every parameter there is."""


def every_name(config: VisionTransformerConfig) -> list[str]:
    """The names of the parameters, with `{i}` for any layer."""
    return list(dict.fromkeys(map(_any_layer, practical_shapes(config))))


def _any_layer(name: str) -> str:
    return re.sub(r"^encoder\.layers\.\d+\.", "encoder.layers.{i}.", name)
