"""Which mistakes are made here, in which family, and which are not, and why."""

from __future__ import annotations

from vitspec.testing.catalogue import deviations_of

FRAMEWORKS = ("torch", "jax")
FAMILIES = ("vit", "vit-cls", "vision-transformer")

_NO_TANGENTS = "an implementation has a forward and a vjp; nobody asks it for tangents"

NOT_MADE: dict[str, str] = dict.fromkeys(
    (
        "jvp-without-key-tangent",
        "jvp-without-query-weight-tangent",
        "jvp-without-gamma",
        "jvp-without-image-tangent",
    ),
    _NO_TANGENTS,
)
"""Mistakes of the catalogue that cannot be made in a framework's code, and why."""


EVERY = FAMILIES
PRACTICAL = ("vision-transformer",)
WITH_CLS = ("vit-cls", *PRACTICAL)

ALSO: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            "kernel-hwio-as-oihw",
            "image-hwc-as-chw",
            "head-weight-transposed",
            "head-count-and-head-dim-exchanged",
            "head-bias-missing",
            "attention-scale-after-softmax",
            "attention-scale-inverted",
            "attention-scale-by-head-count",
            "attention-scale-of-padded-head-dim",
            "softmax-over-heads",
            "softmax-missing",
            "softmax-denominator-plus-one",
            "attention-in-windows",
            "image-normalised-again",
            "image-divided-by-255",
            "layer-norm-eps-1e-3",
            "layer-norm-eps-as-floor",
            "layer-norms-swapped",
            "layer-norm-shift-before-scale",
            "layer-norm-gradient-with-sums",
            "layer-norm-gradient-not-divided",
            "layer-norm-gradient-without-eps",
            "positions-gradient-of-one-image",
            "positions-gradient-averaged",
            "loss-scale-left-in",
            "gradients-clipped-by-norm",
            "gradients-clipped-by-value",
            "weight-decay-in-the-gradient",
            "tokens-doubled",
            "output-weight-transposed",
            "feed-forward-second-weight-transposed",
            "fused-qkv-by-head",
            "attention-across-heads",
            "activation-silu",
            "activation-after-the-second-matrix",
            "feed-forward-second-bias-missing",
            "attention-applied-transposed",
            "logits-softmaxed",
            "pooled-tanh",
            "classes-reversed",
            "query-and-key-gradients-swapped",
            "key-gradient-not-scaled",
            "attention-gradient-without-key-path",
            "relu-gradient-replaces",
            "layer-backward-at-its-output",
        ),
        EVERY,
    ),
    **dict.fromkeys(
        (
            "fused-bias-by-head",
            "query-and-value-biases-swapped",
            "activation-relu",
            "gelu-erf-not-scaled",
            "gelu-tanh-without-cube",
            "quick-gelu-slope-1-72",
            "query-bias-missing",
            "value-bias-missing",
            "final-norm-shift-missing",
            "final-norm-gain-and-shift-missing",
            "keys-and-values-not-normalised",
            "interpolation-scale-offset",
            "interpolation-size-exchanged",
            "branches-parallel",
            "feed-forward-residual-of-the-normalised",
            "layer-scales-twice",
            "norm-before-the-blocks",
            "gelu-gradient-of-quick",
            "gelu-gradient-density-not-normalised",
            "gelu-gradient-factor-misplaced",
            "gelu-tanh-gradient-without-3",
        ),
        PRACTICAL,
    ),
    **dict.fromkeys(
        (
            "cls-gradient-of-one-image",
            "cls-gradient-averaged",
        ),
        WITH_CLS,
    ),
}
"""Mistakes that are made here, and their families, whether the catalogue has them yet or not."""


def made(family: str) -> tuple[str, ...]:
    """The mistakes that both frameworks' code makes in a family, in the catalogue's order."""
    known = [d.name for d in deviations_of(family, other_sizes=True)]
    known += [name for name, families in ALSO.items() if family in families]
    return tuple(name for name in dict.fromkeys(known) if name not in NOT_MADE)


def check_names(family: str, mistakes: frozenset[str]) -> None:
    """Raise `KeyError` if one of them is not made in this family."""
    for name in sorted(mistakes - set(made(family))):
        reason = NOT_MADE.get(name, f"{family} has no mistake of this name")
        raise KeyError(f"{name}: {reason}")
