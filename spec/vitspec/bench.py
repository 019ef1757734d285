"""How fast the specification is, against this machine's own matrix product.

The ceiling is the time that `np.matmul` takes for the products of a pass alone, on the same shapes,
in the same run, repetition by repetition in turn. Useful work is 2 m n k operations for each
(m, k) x (k, n) product of the forward, and twice that for the backward, which multiplies each
cotangent by both operands. What the backward computes again does not count as useful.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np

from vitspec.config import ViTConfig, vit_base_patch16_config
from vitspec.geometry import patch_count
from vitspec.layers.activation import relu, softmax
from vitspec.layers.gelu import ACTIVATIONS
from vitspec.layers.normalization import layer_norm
from vitspec.models.vision_transformer import VisionTransformer
from vitspec.models.vit import ViTSpec
from vitspec.typing import Array
from vitspec.vision_transformer_config import VisionTransformerConfig

Shape = tuple[int, ...]
Config = ViTConfig | VisionTransformerConfig

FAMILIES: dict[str, Config] = {
    "vit": vit_base_patch16_config,
    "vision-transformer": VisionTransformerConfig(),
}
"""ViT-Base/16 of the Lean mirror, and of the practical family."""


@dataclass(frozen=True)
class Pass:
    """One pass: useful work and times, each of the fastest repetition, in seconds.

    `kernel_seconds` is the part of `seconds` that the operating system took (of all threads), which
    is the first touch of fresh memory: the backward returns as much of it as the model has.
    """

    name: str
    gflop: float
    seconds: float
    kernel_seconds: float
    ceiling_seconds: float

    @property
    def fraction(self) -> float:
        """Useful work per second, as a fraction of the ceiling's."""
        return self.ceiling_seconds / self.seconds


@dataclass(frozen=True)
class Timing:
    """One precision: its passes, where the forward's time goes (seconds), and the peak memory."""

    dtype: str
    passes: tuple[Pass, ...]
    parts: dict[str, float]
    peak_bytes: int


def products(
    config: ViTConfig, channels: int, height: int, width: int
) -> list[tuple[Shape, Shape]]:
    """The operands' shapes of every matrix product of `ViTSpec.forward`, in order."""
    T, D = patch_count(config, height, width), config.embed_dim
    window = channels * config.patch_h * config.patch_w
    ends = [((D, window), (window, T)), ((config.num_classes, D), (D, 1))]
    return [ends[0], *_layer(config, T, config.inner_dim) * config.num_layers, ends[1]]


def practical_products(config: VisionTransformerConfig) -> list[tuple[Shape, Shape]]:
    """The same of `VisionTransformer.forward`."""
    c, n = config, config.token_count
    window = c.in_channels * c.patch_h * c.patch_w
    first = ((n - c.cls_token, window), (window, c.embed_dim))
    last = ((c.num_classes, c.pooled_dim), (c.pooled_dim, 1))
    return [first, *_layer(c, n, c.embed_dim) * c.num_layers, last]


def _layer(config: Config, n: int, inner_dim: int) -> list[tuple[Shape, Shape]]:
    D, F, H, d = config.embed_dim, config.hidden_dim, config.head_count, config.head_dim
    return [
        *[((n, D), (D, inner_dim))] * 3,
        ((H, n, d), (H, d, n)),
        ((H, n, n), (H, n, d)),
        ((n, inner_dim), (inner_dim, D)),
        ((n, D), (D, F)),
        ((n, F), (F, D)),
    ]


def adjoint_products(forward: list[tuple[Shape, Shape]]) -> list[tuple[Shape, Shape]]:
    """For each A B of the forward, the products d_C B^T and A^T d_C of its backward."""
    result: list[tuple[Shape, Shape]] = []
    for (*batch, m, k), (*_, n) in forward:
        result += [((*batch, m, n), (*batch, n, k)), ((*batch, k, m), (*batch, m, n))]
    return result


def flops(shapes: list[tuple[Shape, Shape]]) -> int:
    """2 m n k for each product."""
    return sum(2 * int(np.prod(a)) * b[-1] for a, b in shapes)


def measure(dtype: str, repetitions: int, config: Config = vit_base_patch16_config) -> Timing:
    """Time one precision at 3 x 224 x 224, in this process, which should be fresh."""
    rng = np.random.default_rng(0)
    model: ViTSpec | VisionTransformer
    if isinstance(config, VisionTransformerConfig):
        model = VisionTransformer.init(config, rng=rng, dtype=dtype)
        forward_shapes, n = practical_products(config), config.token_count
    else:
        size = {"in_channels": 3, "height": 224, "width": 224}
        model = ViTSpec.init(config, **size, rng=rng, dtype=dtype)
        forward_shapes, n = products(config, 3, 224, 224), patch_count(config, 224, 224)
    image = rng.standard_normal((3, 224, 224)).astype(dtype)
    d_logits = rng.standard_normal(config.num_classes).astype(dtype)
    model.backward(image, d_logits)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    backward_shapes = adjoint_products(forward_shapes)
    measured = _interleaved(
        {
            "forward": lambda: model.forward(image),
            "forward ceiling": _runner(forward_shapes, dtype),
            "backward": lambda: model.backward(image, d_logits),
            "backward ceiling": _runner(backward_shapes, dtype),
            **_parts(config, n, dtype),
        },
        repetitions,
    )
    times = {name: seconds for name, (seconds, _) in measured.items()}
    passes = tuple(
        Pass(name, flops(shapes) / 1e9, *measured[name], times[f"{name} ceiling"])
        for name, shapes in (("forward", forward_shapes), ("backward", backward_shapes))
    )
    parts = {"matrix products": times["forward ceiling"]}
    parts |= {name: seconds for name, seconds in times.items() if "ward" not in name}
    parts["the rest"] = times["forward"] - sum(parts.values())
    return Timing(dtype, passes, parts, peak * (1 if sys.platform == "darwin" else 1024))


def measure_in_fresh_process(dtype: str, repetitions: int, family: str = "vit") -> Timing:
    """`measure` in a process of its own, so that its peak memory is that of one precision."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, dtype, repetitions, FAMILIES[family]).result()


def _interleaved(
    tasks: dict[str, Callable[[], object]], repetitions: int
) -> dict[str, tuple[float, float]]:
    """Wall and kernel seconds of each task's fastest run; they take turns, so noise hits all."""
    best = dict.fromkeys(tasks, (float("inf"), 0.0))
    for _ in range(repetitions):
        for name, task in tasks.items():
            kernel = resource.getrusage(resource.RUSAGE_SELF).ru_stime
            start = time.perf_counter()
            task()
            wall = time.perf_counter() - start
            kernel = resource.getrusage(resource.RUSAGE_SELF).ru_stime - kernel
            best[name] = min(best[name], (wall, kernel))
    return best


def _runner(shapes: list[tuple[Shape, Shape]], dtype: str) -> Callable[[], None]:
    """A function that computes these products, each on operands of its own, as a model's are."""
    rng = np.random.default_rng(0)
    operands = [tuple(rng.standard_normal(s, np.float32).astype(dtype) for s in p) for p in shapes]

    def run() -> None:
        for a, b in operands:
            np.matmul(a, b)

    return run


def _parts(config: Config, n: int, dtype: str) -> dict[str, Callable[[], None]]:
    """What else the forward does, at its shapes and as often."""
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((config.head_count, n, n)).astype(dtype)
    tokens = rng.standard_normal((n, config.embed_dim)).astype(dtype)
    hidden = rng.standard_normal((n, config.hidden_dim)).astype(dtype)
    gamma, beta = tokens[0], tokens[1]
    practical = isinstance(config, VisionTransformerConfig)
    name, activation = _activation(config)

    def repeat(times: int, f: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(times):
                f()

        return run

    L = config.num_layers
    return {
        "softmax": repeat(L, lambda: softmax(scores)),
        "layer normalisation": repeat(2 * L + practical, lambda: layer_norm(tokens, gamma, beta)),
        name: repeat(L, lambda: activation(hidden)),
    }


def _activation(config: Config) -> tuple[str, Callable[[Array], Array]]:
    if isinstance(config, VisionTransformerConfig):
        return config.activation, ACTIVATIONS[config.activation].function
    return "ReLU", relu
