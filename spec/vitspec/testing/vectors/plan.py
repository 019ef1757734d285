"""Which test vectors exist: their shapes, their numbers, and why each is there.

The numbers of a case come from no random generator, whose stream might change from one version to
the next, but from a hash (SHAKE-256) of its name: each byte is one number. So they have eight
significant bits, and float64, float32, tf32, bfloat16 and float16 all hold them exactly.
"""

from __future__ import annotations

import fnmatch
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from vitspec.config import ViTConfig
from vitspec.geometry import sliding_window_out_dim
from vitspec.models.parameters import parameter_shapes
from vitspec.models.transformer import TransformerEncoderLayer, encoder_layer_trace
from vitspec.testing.families import MODELS, nearest_gap, off_kinks
from vitspec.testing.precision import PRECISIONS, rounded
from vitspec.testing.vectors.layers import MASK, build_layers
from vitspec.typing import Array

Category = Literal["basic", "edge", "adversarial", "ill-formed"]
Shapes = Mapping[str, tuple[int, ...]]

CATEGORIES: dict[Category, str] = {
    "basic": "ordinary shapes, in which nothing is square, alike or zero",
    "edge": "the ends of what is well-formed",
    "adversarial": "numbers that make a deviation large where ordinary ones hide it",
    "ill-formed": "configurations that must be rejected",
}
"""What the cases of a category are for."""

KINK_MARGIN = 32 * PRECISIONS["bfloat16"].u
"""How far the input of every ReLU is from 0. Beyond a kink the derivative is another one, so
rounding must not carry an input across it in any precision: this is 32 roundings of bfloat16."""

ALL = tuple(PRECISIONS)
WITHOUT_FLOAT16 = tuple(name for name in ALL if name != "float16")
AT_LEAST_FLOAT32 = ("float64", "float32", "tf32")


@dataclass(frozen=True)
class Plan:
    """One case that is planned: everything but its truth.

    Attributes:
        category: one of `CATEGORIES`.
        name: the rest of its id.
        description: what it is for, in a sentence.
        dtypes: the precisions in which it is graded.
        scales: factors (powers of two) of the inputs whose names match a glob.
        judges: "function", or "accuracy" where the right function computed in an unstable way is
            what departs.
    """

    category: Category
    name: str
    description: str
    dtypes: tuple[str, ...] = field(default=ALL, kw_only=True)
    scales: Mapping[str, float] = field(default_factory=dict, kw_only=True)
    judges: Literal["function", "accuracy"] = field(default="function", kw_only=True)

    @property
    def id(self) -> str:
        """The name of its folder."""
        return f"{self.category}-{self.name}"

    def draw(self, name: str, shape: tuple[int, ...]) -> Array:
        """The numbers of one input: as hashed, times the scale that is planned for it."""
        scale = math.prod(s for glob, s in self.scales.items() if fnmatch.fnmatchcase(name, glob))
        return scale * _draw(f"{self.id}/{name}", name, shape)


@dataclass(frozen=True)
class ModelPlan(Plan):
    """A whole model on a batch of images."""

    spec: str
    config: ViTConfig
    image: tuple[int, int, int]
    batch: int = 2

    def inputs(self) -> dict[str, Array]:
        """Images, cotangent and parameters by name, float64."""
        C, H, W = self.image
        size = {"in_channels": C, "height": H, "width": W}
        cls = MODELS[self.spec].has_cls_token
        shapes = parameter_shapes(self.config, C, H, W, cls=cls)
        flat = {name: self.draw(name, shape) for name, shape in shapes.items()}
        images = self.draw("images", (self.batch, C, H, W))
        model = MODELS[self.spec].from_flat(self.config, flat, **size)
        biases = clear_of_kinks(model.encoder.layers, [model.embed(image) for image in images])
        flat |= {f"encoder.layers.{i}.ffn.b1": b1 for i, b1 in enumerate(biases)}
        cotangent = self.draw("cotangent", (self.batch, self.config.num_classes))
        return {"images": images, "cotangent": cotangent} | flat


@dataclass(frozen=True)
class LayerPlan(Plan):
    """One layer, without a batch."""

    layer: str
    shapes: Shapes
    out: tuple[int, ...]
    settings: Mapping[str, int] = field(default_factory=dict)
    values: Mapping[str, Callable[[Array], Array]] = field(default_factory=dict)
    """What stands for the hashed numbers of some arguments."""

    def inputs(self) -> dict[str, Array]:
        """The layer's arguments and `d_out` by name, float64."""
        drawn = {name: self.draw(name, shape) for name, shape in self.shapes.items()}
        drawn |= {name: change(drawn[name]) for name, change in self.values.items()}
        if self.layer == "feed_forward":
            hidden = drawn["x"] @ drawn["w1"] + drawn["b1"]
            drawn["b1"] = clear_bias(drawn["b1"], hidden)
        elif self.layer in ("encoder_layer", "encoder"):
            biases = clear_of_kinks(build_layers(self.layer, drawn, self.settings), [drawn["x"]])
            names = [name for name in drawn if name.endswith("ffn.b1")]
            drawn |= dict(zip(names, biases, strict=True))
        return drawn | {"d_out": self.draw("d_out", self.out)}


@dataclass(frozen=True)
class IllFormedPlan(Plan):
    """A configuration and an image's size that an implementation must reject."""

    spec: str
    config: Mapping[str, Any]
    image: tuple[Any, Any, Any]
    violations: tuple[str, ...]


# ---- numbers -----------------------------------------------------------------------------------


def _draw(seed: str, name: str, shape: tuple[int, ...]) -> Array:
    """Numbers of eight significant bits; none is zero.

    Odd multiples of 1/256 between -1 and 1, times a power of two: about sqrt(3 / fan-in) for
    weights, so that they keep the size of what they multiply; 2 for images; 1/4 for biases; for
    gammas 1 plus half of it.
    """
    count = math.prod(shape)
    hashed = np.frombuffer(hashlib.shake_256(seed.encode()).digest(count), np.uint8)
    bytes_ = hashed.reshape(shape).astype(np.float64)
    last = name.rsplit(".", 1)[-1]
    if last.endswith("gamma"):
        return 1 + (2 * np.floor(bytes_ / 4) - 63) / 128
    values = (2 * bytes_ - 255) / 256
    if last in ("kernel", "weights"):  # stored (out, in, ...)
        return values * _near_power_of_two(math.prod(shape[1:]))
    if last in ("wq", "wk", "wv", "wo", "w1", "w2"):  # stored (in, out)
        return values * _near_power_of_two(shape[0])
    return values * {"images": 2, "bias": 0.25, "b1": 0.25, "b2": 0.25}.get(last, 1)


def _near_power_of_two(fan_in: int) -> float:
    return 2.0 ** round(math.log2(math.sqrt(3 / max(fan_in, 1))))


def clear_of_kinks(layers: tuple[TransformerEncoderLayer, ...], rows: list[Array]) -> list[Array]:
    """Biases b1, one for each layer, with which no ReLU's input is near 0 at these sequences."""

    def traces(_: int, layer: Any, rows: Sequence[Array]) -> list[Any]:
        return [encoder_layer_trace(layer, x) for x in rows]

    return [layer.ffn.b1 for layer in off_kinks(layers, rows, traces, clear_bias)]


def clear_bias(b1: Array, hidden: Array) -> Array:
    """The bias of a hidden layer moved by little, so that the ReLU's inputs clear `KINK_MARGIN`."""
    for margin in KINK_MARGIN * np.array([1.02, 1.05, 1.1, 1.2]):  # the bias is rounded, so: more
        moved = rounded(b1 - nearest_gap(hidden, float(margin)), PRECISIONS["bfloat16"])
        cleared = moved.astype(np.float64)
        if np.abs(hidden - b1 + cleared).min(initial=np.inf) >= KINK_MARGIN:
            return cleared
    raise AssertionError("no bias keeps the ReLU's inputs away from 0; plan fewer rows")


def _away_from_zero(z: Array) -> Array:
    """The same with magnitudes below a quarter raised by a quarter: clear of the ReLU's kink."""
    return np.where(np.abs(z) < 0.25, z + np.copysign(0.25, z), z)


def _causal(mask: Array) -> Array:
    return np.tri(*mask.shape)


def _row_blocked(mask: Array) -> Array:
    """Some keys blocked; the second query may attend to none."""
    allowed = (mask > -0.25).astype(np.float64)
    allowed[1] = 0
    allowed[0, 0], allowed[2:, 1] = 1, 1  # no other row is blocked altogether
    return allowed


def _near_1020(x: Array) -> Array:
    """1016 or 1020: the exponential overflows in every precision, the softmax is ordinary."""
    return np.where(x > 0, 1020.0, 1016.0)


def _offset_256(x: Array) -> Array:
    """256, 258, 260 or 262."""
    return 256 + 2 * np.floor(2 * x + 2)


def _constant_rows(x: Array) -> Array:
    """The first and the third row have one value throughout."""
    x = x.copy()
    x[[0, 2]] = x[[0, 2], :1]
    return x


# ---- shapes ------------------------------------------------------------------------------------


def _vit(
    patch: tuple[int, int],
    stride: int,
    padding: int,
    D: int,
    F: int,
    heads: int,
    layers: int,
    K: int,
) -> ViTConfig:
    return ViTConfig(*patch, stride, padding, D, F, heads, layers, K)


def _mha_shapes(n: int, D: int, I: int) -> dict[str, tuple[int, ...]]:  # noqa: E741
    return {"x": (n, D), "wq": (D, I), "wk": (D, I), "wv": (D, I), "wo": (I, D)}


def _ffn_shapes(n: int, D: int, F: int) -> dict[str, tuple[int, ...]]:
    return {"x": (n, D), "w1": (D, F), "w2": (F, D), "b1": (F,), "b2": (D,)}


def _layer_norm_shapes(n: int, D: int) -> dict[str, tuple[int, ...]]:
    return {"x": (n, D), "gamma": (D,), "beta": (D,)}


def _encoder_shapes(n: int, D: int, F: int, heads: int, layers: int) -> dict[str, tuple[int, ...]]:
    config = ViTConfig(embed_dim=D, hidden_dim=F, head_count=heads, num_layers=layers)
    shapes = parameter_shapes(config, 1, 1, 1, cls=False)
    prefix = "encoder." if layers > 1 else "encoder.layers.0."
    named = {n.removeprefix(prefix): s for n, s in shapes.items() if n.startswith("encoder.")}
    return {"x": (n, D)} | named


def _conv(
    name: str, description: str, x: tuple[int, int, int], kernel: tuple[int, int, int],
    stride: int, padding: int,
) -> LayerPlan:  # fmt: skip
    (C, H, W), (D, ph, pw) = x, kernel
    grid = [sliding_window_out_dim(n, k, stride, padding) for n, k in ((H, ph), (W, pw))]
    return LayerPlan(
        "basic", name, description, "conv2d",
        {"x": x, "kernel": (D, C, ph, pw), "bias": (D,)}, (D, *grid),
        {"stride": stride, "padding": padding},
    )  # fmt: skip


def _ill_formed(
    name: str, description: str, violations: str, spec: str = "vit",
    image: tuple[Any, Any, Any] = (3, 8, 8), **wrong: Any,
) -> IllFormedPlan:  # fmt: skip
    config = {**asdict(_vit((4, 4), 4, 0, 8, 12, 2, 1, 5)), **wrong}
    return IllFormedPlan(
        "ill-formed", name, description, spec, config, image, tuple(violations.split())
    )


# ---- the cases ---------------------------------------------------------------------------------

# Of the embedding: with it the variance of the first normalisation is about its epsilon.
_TINY = {"patch_embed.*": 2.0**-9, "pos_enc.pos": 2.0**-9, "cls_token": 2.0**-9}

_MODELS = (
    ModelPlan(
        "basic", "vit", "mean pooling, one layer, square patches side by side",
        "vit", _vit((4, 4), 4, 0, 8, 12, 2, 1, 5), (3, 8, 12),
    ),
    ModelPlan(
        "basic", "cls", "CLS token, one layer, square patches side by side",
        "vit-cls", _vit((4, 4), 4, 0, 8, 12, 2, 1, 5), (3, 8, 12),
    ),
    ModelPlan(
        "basic", "vit-nothing-square", "two layers; image, patch and grid are not square; padding",
        "vit", _vit((3, 2), 2, 1, 12, 10, 3, 2, 4), (2, 5, 6),
    ),
    ModelPlan(
        "basic", "cls-nothing-square", "two layers; image, patch and grid are not square; padding",
        "vit-cls", _vit((2, 3), 2, 1, 12, 10, 3, 2, 4), (2, 6, 5),
    ),
    ModelPlan(
        "basic", "vit-pixels-left-over", "the stride exceeds the patch and leaves a remainder, so "
        "some pixels are in no patch: their gradient is exactly 0",
        "vit", _vit((2, 3), 4, 0, 9, 8, 3, 1, 6), (3, 8, 13),
    ),
    ModelPlan(
        "basic", "cls-overlap", "the stride is below the patch: windows overlap, and the image's "
        "gradient adds up",
        "vit-cls", _vit((3, 4), 1, 1, 6, 9, 2, 1, 3), (1, 4, 5), 1,
    ),
    ModelPlan(
        "basic", "vit-heads-not-dividing", "three heads do not divide the width 8: they are 2 wide "
        "each, and attention is 6 wide",
        "vit", _vit((2, 2), 2, 0, 8, 11, 3, 2, 5), (3, 4, 6),
    ),
    ModelPlan(
        "basic", "cls-three-layers", "three layers, four heads that do not divide the width 10, "
        "three images",
        "vit-cls", _vit((3, 3), 3, 0, 10, 7, 4, 3, 3), (2, 6, 7), 3,
    ),
    ModelPlan(
        "edge", "vit-one-token", "one token: attention is the identity on the values, so the "
        "gradients of wq and wk are exactly 0",
        "vit", _vit((4, 3), 4, 0, 6, 8, 2, 1, 3), (2, 4, 3),
    ),
    ModelPlan(
        "edge", "cls-one-patch", "one patch below the CLS token",
        "vit-cls", _vit((4, 3), 4, 0, 6, 8, 2, 1, 3), (2, 4, 3),
    ),
    ModelPlan(
        "edge", "cls-no-patch", "the image is smaller than the patch: the CLS token is alone, and "
        "the gradients of image, kernel and patch bias are exactly 0",
        "vit-cls", _vit((4, 4), 4, 0, 6, 8, 2, 1, 3), (2, 3, 5),
    ),
    ModelPlan(
        "edge", "cls-stride-zero", "stride 0 is well-formed and gives no patches",
        "vit-cls", _vit((2, 2), 0, 0, 5, 6, 1, 1, 3), (1, 4, 4),
    ),
    ModelPlan(
        "edge", "vit-heads-of-width-one", "as many heads as features: each is one wide",
        "vit", _vit((2, 2), 2, 0, 5, 6, 5, 1, 3), (2, 4, 6),
    ),
    ModelPlan(
        "edge", "vit-more-heads-than-width", "five heads share a width of 3: they are 0 wide, the "
        "attention's weights are empty and its output is exactly 0",
        "vit", _vit((2, 2), 2, 0, 3, 6, 5, 1, 4), (2, 4, 6),
    ),
    ModelPlan(
        "edge", "vit-width-one", "one feature: a normalisation returns beta, and every gradient "
        "before the last one is exactly 0",
        "vit", _vit((2, 2), 2, 0, 1, 3, 1, 1, 2), (2, 4, 6),
    ),
    ModelPlan(
        "edge", "vit-one-class-one-hidden", "one logit, one hidden feature, one channel",
        "vit", _vit((2, 3), 2, 0, 6, 1, 2, 1, 1), (1, 6, 5),
    ),
    ModelPlan(
        "edge", "vit-no-layers", "no encoder layer: pooled patches",
        "vit", _vit((2, 3), 2, 0, 7, 4, 2, 0, 3), (2, 4, 7),
    ),
    ModelPlan(
        "edge", "cls-no-layers", "no encoder layer: nothing reaches the logits but the CLS token "
        "and its position",
        "vit-cls", _vit((2, 3), 2, 0, 7, 4, 2, 0, 3), (2, 4, 7),
    ),
    ModelPlan(
        "edge", "vit-windows-in-padding", "the padding is as large as the patch: some windows see "
        "no pixel, and their token is the bias",
        "vit", _vit((2, 2), 2, 2, 6, 7, 2, 1, 3), (2, 3, 4), 1,
    ),
    ModelPlan(
        "edge", "cls-pixels-as-patches", "patches of one pixel, one image",
        "vit-cls", _vit((1, 1), 1, 0, 6, 8, 3, 1, 4), (3, 3, 4), 1,
    ),
    ModelPlan(
        "adversarial", "vit-small-variance", "the first normalisation's variance is about its "
        "epsilon, so that another epsilon shows in every precision",
        "vit", _vit((2, 3), 2, 0, 8, 9, 2, 1, 4), (2, 4, 7), scales=_TINY, dtypes=WITHOUT_FLOAT16,
    ),
    ModelPlan(
        "adversarial", "cls-small-variance", "the same with a CLS token and two layers",
        "vit-cls", _vit((2, 3), 2, 0, 6, 9, 3, 2, 4), (2, 4, 5), scales=_TINY,
        dtypes=WITHOUT_FLOAT16,
    ),
)  # fmt: skip

_LAYERS = (
    LayerPlan(
        "basic", "linear", "the head", "linear",
        {"x": (9,), "weights": (5, 9), "bias": (5,)}, (5,),
    ),
    LayerPlan(
        "basic", "relu", "inputs on both sides of 0, none near it", "relu",
        {"z": (6, 7)}, (6, 7), values={"z": _away_from_zero},
    ),
    LayerPlan("basic", "softmax", "ordinary rows", "softmax", {"x": (5, 7)}, (5, 7)),
    LayerPlan(
        "adversarial", "softmax-overflow", "every exponential overflows, unless the row's largest "
        "entry is subtracted first", "softmax",
        {"x": (5, 7)}, (5, 7), values={"x": _near_1020}, judges="accuracy",
    ),
    LayerPlan(
        "basic", "layer-norm", "ordinary rows", "layer_norm", _layer_norm_shapes(5, 12), (5, 12)
    ),
    LayerPlan(
        "adversarial", "layer-norm-small-variance", "the variance is about epsilon, so that "
        "another epsilon shows in every precision; gammas are large, so that a gradient without "
        "them does too", "layer_norm", _layer_norm_shapes(5, 12), (5, 12),
        scales={"x": 2.0**-9, "gamma": 4}, dtypes=WITHOUT_FLOAT16,
    ),
    LayerPlan(
        "adversarial", "layer-norm-two-features", "a variance that divides by 1 instead of 2 is "
        "twice as large", "layer_norm", _layer_norm_shapes(6, 2), (6, 2),
    ),
    LayerPlan(
        "adversarial", "layer-norm-offset", "rows far from 0: E[x^2] - E[x]^2 is the same variance "
        "over the real numbers, but cancels", "layer_norm",
        _layer_norm_shapes(5, 12), (5, 12), values={"x": _offset_256}, judges="accuracy",
        dtypes=AT_LEAST_FLOAT32,
    ),
    LayerPlan(
        "edge", "layer-norm-constant-row", "two rows are constant: their output is beta, and the "
        "gradient is 1000 times what comes in", "layer_norm",
        _layer_norm_shapes(4, 8), (4, 8), values={"x": _constant_rows}, dtypes=WITHOUT_FLOAT16,
    ),
    LayerPlan(
        "basic", "attention", "three heads, fewer queries than keys, values wider than keys",
        "attention", {"q": (3, 4, 5), "k": (3, 6, 5), "v": (3, 6, 7)}, (3, 4, 7),
    ),
    LayerPlan(
        "basic", "attention-causal", "each query sees itself and the past", "attention",
        {"q": (2, 5, 4), "k": (2, 5, 4), "v": (2, 5, 4), MASK: (5, 5)}, (2, 5, 4),
        values={MASK: _causal},
    ),
    LayerPlan(
        "adversarial", "attention-blocked", "one query may attend to nothing, its output and "
        "gradient are exactly 0; elsewhere scores are large", "attention",
        {"q": (2, 5, 4), "k": (2, 6, 4), "v": (2, 6, 4), MASK: (5, 6)}, (2, 5, 4),
        values={MASK: _row_blocked}, scales={"q": 8},
    ),
    LayerPlan(
        "adversarial", "attention-many-heads", "twelve heads and large scores: every other scale "
        "moves most of the weight", "attention",
        {"q": (12, 4, 9), "k": (12, 6, 9), "v": (12, 6, 2)}, (12, 4, 2), scales={"q": 2},
    ),
    LayerPlan(
        "basic", "multi-head-attention", "three heads of width 2 in a model of width 8",
        "multi_head_attention", _mha_shapes(5, 8, 6), (5, 8), {"head_count": 3},
    ),
    LayerPlan(
        "basic", "multi-head-attention-masked", "every head has the same mask",
        "multi_head_attention", _mha_shapes(5, 6, 6) | {MASK: (5, 5)}, (5, 6), {"head_count": 2},
        values={MASK: _causal},
    ),
    LayerPlan(
        "basic", "feed-forward", "wider inside", "feed_forward", _ffn_shapes(5, 6, 11), (5, 6)
    ),
    _conv("conv2d", "overlapping windows, padding, nothing square", (2, 5, 6), (4, 3, 2), 2, 1),
    _conv("conv2d-left-over", "steps beyond the window, a remainder", (3, 7, 9), (4, 2, 3), 4, 0),
    LayerPlan(
        "basic", "positional-encoding", "an addition: the gradient goes to both terms",
        "positional_encoding", {"x": (5, 6), "pos": (5, 6)}, (5, 6),
    ),
    LayerPlan("basic", "mean-pool", "seven rows", "mean_pool", {"encoded": (7, 6)}, (6,)),
    LayerPlan(
        "basic", "encoder-layer", "one layer, two heads", "encoder_layer",
        _encoder_shapes(5, 8, 10, 2, 1), (5, 8), {"head_count": 2},
    ),
    LayerPlan(
        "basic", "encoder", "two layers, three heads that do not divide the width", "encoder",
        _encoder_shapes(4, 10, 7, 3, 2), (4, 10), {"head_count": 3, "num_layers": 2},
    ),
)  # fmt: skip

_ILL_FORMED = (
    _ill_formed("patch-height-zero", "patches without rows", "patchH_ne0", patch_h=0),
    _ill_formed("patch-width-zero", "patches without columns", "patchW_ne0", patch_w=0),
    _ill_formed("embed-dim-zero", "tokens without features", "embedDim_pos", embed_dim=0),
    _ill_formed("hidden-dim-zero", "no hidden features", "hiddenDim_pos", hidden_dim=0),
    _ill_formed("no-heads", "no attention heads", "headCount_pos", head_count=0),
    _ill_formed("no-classes", "no logits", "numClasses_ne0", num_classes=0),
    _ill_formed("no-channels", "an image without channels", "h_inC", image=(0, 8, 8)),
    _ill_formed("no-token", "mean pooling, but no patch fits", "h_tok", image=(3, 3, 8)),
    _ill_formed("stride-zero", "mean pooling, but stride 0 gives no patches", "h_tok", stride=0),
    _ill_formed("negative", "a negative number", "nat", padding=-1),
    _ill_formed("fraction", "a number that is not an integer", "nat", "vit-cls", embed_dim=7.5),
    _ill_formed("too-large", "a size beyond 2^31 - 1", "nat", "vit-cls", num_layers=2**31),
    _ill_formed(
        "several", "many rules broken at once: all are to be named",
        "patchH_ne0 embedDim_pos headCount_pos h_inC", "vit-cls", (0, 8, 8),
        patch_h=0, embed_dim=0, head_count=0,
    ),
)  # fmt: skip

PLAN: tuple[ModelPlan | LayerPlan | IllFormedPlan, ...] = (*_MODELS, *_LAYERS, *_ILL_FORMED)
"""Every case, in the order in which they are shown."""
