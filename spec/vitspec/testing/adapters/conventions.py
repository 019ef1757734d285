"""What a framework calls the parameters of its own layers, and the rules that follow from it.

Most models are made of their framework's convolution, normalisation and linear layer, and differ
only in what they call these: a map gives the names, and a `Convention` makes the rules.
"""

from __future__ import annotations

from dataclasses import dataclass

from vitspec.testing.adapters.layouts import LAYOUTS
from vitspec.testing.adapters.name_maps import NameMap, Rule

LAYER = "encoder.layers.{i}."
ALL_LAYERS = "encoder.layers.*."
QKV = tuple(f"{LAYER}mha.w{letter}" for letter in "qkv")
QKV_BIAS = tuple(f"{LAYER}mha.b{letter}" for letter in "qkv")

PAIRS = {
    "patches": ("patch_embed.kernel", "patch_embed.bias"),
    "final_norm": ("final_norm_gamma", "final_norm_beta"),
    "head": ("head.weights", "head.bias"),
    "norm1": (LAYER + "norm1_gamma", LAYER + "norm1_beta"),
    "norm2": (LAYER + "norm2_gamma", LAYER + "norm2_beta"),
    "q": (LAYER + "mha.wq", LAYER + "mha.bq"),
    "k": (LAYER + "mha.wk", LAYER + "mha.bk"),
    "v": (LAYER + "mha.wv", LAYER + "mha.bv"),
    "out": (LAYER + "mha.wo", LAYER + "mha.bo"),
    "up": (LAYER + "ffn.w1", LAYER + "ffn.b1"),
    "down": (LAYER + "ffn.w2", LAYER + "ffn.b2"),
}
"""The layers, each with our names for its two parameters. "up" leads to F entries, "down" back."""
SINGLE: dict[str, tuple[str | tuple[str, ...], str]] = {
    "cls_token": ("cls_token", "row-1-1"),
    "positions": ("pos_enc.pos", "rows-1"),
    "qkv": (QKV, "qkv-out-in"),
    "qkv_bias": (QKV_BIAS, "qkv-bias"),
    "layer_scale1": (LAYER + "layer_scale1", "same"),
    "layer_scale2": (LAYER + "layer_scale2", "same"),
}
"""Parameters that are no layer's, or of a layer that others split: ours, and the usual layout."""


@dataclass(frozen=True)
class Convention:
    """How a framework names and lays out the two parameters of a layer.

    Attributes:
        norm: what a normalisation calls its scale and its shift.
        layer: what another layer calls its weights and its bias.
        patches: the layout of a convolution's weights.
        linear: that of a linear layer's weights, which we store (in, out).
        head: that of the classifier's, which we store (out, in).
    """

    norm: tuple[str, str]
    layer: tuple[str, str]
    patches: str
    linear: str
    head: str

    def name_map(self, name: str, block: str, **names: str | tuple[str, str]) -> NameMap:
        """The name map of a model that has no other parameters than these: see `rules`."""
        return NameMap(name, self.rules(block, **names))

    def rules(self, block: str, **names: str | tuple[str, str]) -> tuple[Rule, ...]:
        """The rules of parameters and layers, in the order in which they are given.

        Args:
            block: what precedes their names of what is in a block. Without `{i}` for the number of
                the block, all blocks are stacked.
            **names: for each key of `SINGLE` or `PAIRS`, their name; or that, and a layout other
                than the usual one. A layer's two parameters have their own names below its.

        >>> for rule in FLAX.rules("blocks.{i}.", norm1="ln1", head="head"):
        ...     print(rule.theirs, "<-", rule.ours, rule.layout)
        blocks.{i}.ln1.scale <- encoder.layers.{i}.norm1_gamma same
        blocks.{i}.ln1.bias <- encoder.layers.{i}.norm1_beta same
        head.kernel <- head.weights transpose
        head.bias <- head.bias same
        """
        rules: list[Rule] = []
        for key, given in names.items():
            name, layout = (given, "") if isinstance(given, str) else given
            if key in SINGLE:
                ours, usual = SINGLE[key]
                rules.append(Rule(name, ours, layout or usual))
                continue
            words = self.norm if "norm" in key else self.layer
            layout = layout or ("same" if "norm" in key else getattr(self, key, self.linear))
            of_bias = "heads-bias" if layout == "heads-in" else "same"
            for word, own, how in zip(words, PAIRS[key], (layout, of_bias), strict=True):
                rules.append(Rule(f"{name}.{word}", own, how))
        return tuple(_in_block(rule, block) for rule in rules)


def _in_block(rule: Rule, block: str) -> Rule:
    """The rule with `block` before their name, if it is for what is in a block."""
    if LAYER not in rule.names[0]:
        return rule
    if "{i}" in block:
        return Rule(block + rule.theirs, rule.ours, rule.layout)
    left, _, right = LAYOUTS.get(rule.layout, rule.layout).partition("->")
    layout = f"L {left}-> L{right}" if right else rule.layout
    ours = tuple(name.replace(LAYER, ALL_LAYERS) for name in rule.names)
    return Rule(block + rule.theirs, ours if len(ours) > 1 else ours[0], layout)


def multi_head(theirs: str, out: str = "out") -> dict[str, tuple[str, str]]:
    """Flax's or Keras's attention, with an axis for the heads: its output and projections."""
    projections = {name[0]: (f"{theirs}.{name}", "heads-in") for name in ("query", "key", "value")}
    return {"out": (f"{theirs}.{out}", "heads-out")} | projections


PYTORCH = Convention(("weight", "bias"), ("weight", "bias"), "same", "transpose", "same")
FLAX = Convention(("scale", "bias"), ("kernel", "bias"), "kernel-hwio", "same", "transpose")
KERAS = Convention(("gamma", "beta"), ("kernel", "bias"), "kernel-hwio", "same", "transpose")
