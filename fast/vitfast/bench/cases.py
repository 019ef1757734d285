"""What is measured: sizes, the two families of functions, their parameters and their work.

Peers differ in architecture, and times compare only between implementations of one function:

- "post-norm": the specification's `ViTSpec`: post-norm, ReLU, no biases in the attention, the mean
  of the tokens.
- "pre-norm": what pretrained ViTs compute: pre-norm, GELU, biases everywhere, a CLS token, a last
  layer norm, epsilon 1e-12.

Useful work is 2 m n k operations for each (m, k) x (k, n) product of the forward, and twice that
more for the gradients, which multiply each cotangent by both factors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vitspec.bench import adjoint_products
from vitspec.config import ViTConfig
from vitspec.geometry import patch_count
from vitspec.models.parameters import parameter_shapes

Family = Literal["post-norm", "pre-norm"]
FAMILIES: tuple[Family, ...] = ("post-norm", "pre-norm")
PRE_NORM_EPSILON = 1e-12

FORWARD, GRADIENT, TRAIN_STEP, SQUARE = "forward", "gradient", "train_step", "square"
"""The passes. The gradient is of the cross entropy, by all parameters and by the images."""

_TOY = {"patch_h": 8, "patch_w": 8, "stride": 8, "num_classes": 10}
SIZES: dict[str, ViTConfig] = {
    "toy": ViTConfig(embed_dim=32, hidden_dim=48, head_count=2, num_layers=2, **_TOY),
    "tiny": ViTConfig(embed_dim=192, hidden_dim=768, head_count=3),
    "small": ViTConfig(embed_dim=384, hidden_dim=1536, head_count=6),
    "base": ViTConfig(),
    "large": ViTConfig(embed_dim=1024, hidden_dim=4096, head_count=16, num_layers=24),
}
"""The published sizes, on patches of 16 pixels; "toy" is for trying out the command."""

Flat = dict[str, np.ndarray]
Product = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Case:
    """One table: a function, its size, and how it is called."""

    family: Family
    size: str
    batch: int
    dtype: str = "float32"
    passes: tuple[str, ...] = (FORWARD, GRADIENT)

    @property
    def config(self) -> ViTConfig:
        """The architecture."""
        return SIZES[self.size]

    @property
    def cls(self) -> bool:
        """Whether there is a CLS token."""
        return self.family == "pre-norm"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return (3, 32, 32) if self.size == "toy" else (3, 224, 224)

    @property
    def param_dtype(self) -> str:
        """The type of the parameters; in training they have more bits than the computation."""
        return "float32" if TRAIN_STEP in self.passes else self.dtype

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The parameters' names, the specification's where it has them, and shapes."""
        shapes = dict(parameter_shapes(self.config, *self.image_shape, cls=self.cls))
        if self.family == "pre-norm":
            D, I = self.config.embed_dim, self.config.inner_dim  # noqa: E741
            for i in range(self.config.num_layers):
                prefix = f"encoder.layers.{i}.mha."
                shapes |= {f"{prefix}b{letter}": (I,) for letter in "qkv"} | {f"{prefix}bo": (D,)}
            shapes |= {"final_norm_gamma": (D,), "final_norm_beta": (D,)}
        return shapes

    def parameters(self, seed: int = 0) -> Flat:
        """Random parameters that keep the size of what goes through them.

        NumPy has no bfloat16: that is float32 here, and converted by whoever takes it.
        """
        rng = np.random.default_rng(seed)
        return {name: self._draw(rng, name, shape) for name, shape in self.shapes().items()}

    def inputs(self, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Images (batch, channels, height, width) and labels (batch,)."""
        rng = np.random.default_rng(seed)
        images = self._normal(rng, (self.batch, *self.image_shape))
        return images, rng.integers(0, self.config.num_classes, self.batch)

    def _draw(self, rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 1 or name == "pos_enc.pos":
            scale = 0.02
        elif name in ("patch_embed.kernel", "head.weights"):
            scale = 1 / math.sqrt(math.prod(shape[1:]))  # stored (out, in)
        else:
            scale = 1 / math.sqrt(shape[0])
        values = self._normal(rng, shape)
        values *= scale
        if name.endswith("gamma"):
            values += 1
        return values

    def _normal(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        values = rng.standard_normal(shape, np.float32)  # the same numbers in every type
        return values.astype(np.float64) if self.dtype == "float64" else values

    def products(self, name: str) -> list[Product]:
        """The operands' shapes of every matrix product that a pass needs, in order."""
        forward = _forward_products(self)
        return forward if name == FORWARD else forward + adjoint_products(forward)

    def work(self, name: str) -> int:
        """The operations of a pass that are useful; what is computed again is not."""
        return sum(2 * math.prod(a) * b[-1] for a, b in self.products(name))

    @property
    def title(self) -> str:
        """What the tables call it."""
        return f"{self.family} {self.size}, batch {self.batch}, {self.dtype}"

    def to_json(self) -> dict[str, Any]:
        """What identifies the case."""
        return {
            "family": self.family, "size": self.size, "batch": self.batch, "dtype": self.dtype,
        }  # fmt: skip


def _forward_products(case: Case) -> list[Product]:
    c, B = case.config, case.batch
    channels, height, width = case.image_shape
    D, I, F, H, d = c.embed_dim, c.inner_dim, c.hidden_dim, c.head_count, c.head_dim  # noqa: E741
    T = patch_count(c, height, width)
    n, window = T + case.cls, channels * c.patch_h * c.patch_w
    layer: list[Product] = [
        *[((B * n, D), (D, I))] * 3,
        ((B, H, n, d), (B, H, d, n)),
        ((B, H, n, n), (B, H, n, d)),
        ((B * n, I), (I, D)),
        ((B * n, D), (D, F)),
        ((B * n, F), (F, D)),
    ]
    ends: list[Product] = [((B * T, window), (window, D)), ((B, D), (D, c.num_classes))]
    return [ends[0], *layer * c.num_layers, ends[1]]
