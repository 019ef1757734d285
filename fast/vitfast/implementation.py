"""vitfast as an implementation that `vitspec check` can test: of each function, and in variants.

The protocol is NumPy in, NumPy out: images (B, C, H, W), parameters by flat name, cotangents
(B, K). It is the one that third parties follow, and vitfast has no other way in.

The functions are `vit`, `vit_cls` and `vision_transformer`, of whose outputs these are the logits.

Variants are named by what they choose, in this order, each part optional:

    vit[_cls] | vision_transformer
        _bfloat16 | _float16  _plain | _xla | _xla_chunked | _triton | _mosaic | ...
        _loop  _remat  _autodiff

    vitspec check vitfast.implementation:vit_cls_bfloat16_xla_chunked_remat

Without a low precision, everything is computed in the scalar type of the arrays, float32 or
float64. Programs are compiled once for each configuration, shape and scalar type: `jax.jit` keeps
them, since a model is a pytree whose static part is its configuration. A check runs hundreds of
tiny configurations, each a new program, so for them what counts is the time to compile: see
`QUICK`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Float

import vitspec
from vitfast.attention import PlainAttention
from vitfast.convert import Flat, fill, scalar_type, to_flat
from vitfast.tokamax_attention import KNOWN_IMPLEMENTATIONS, make_tokamax_attention
from vitfast.vision_transformer import VisionTransformer
from vitfast.vit import ViT
from vitspec.config import ViTConfig
from vitspec.errors import InvalidArray
from vitspec.vision_transformer_config import VisionTransformerConfig

QUICK: dict[str, Any] = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}
"""XLA's options that shorten compilation on the CPU, at the price of slower programs."""

QUICK_UP_TO = 1_000_000
"""The number of parameters and pixels up to which compiling costs more than running."""

VARIANT = re.compile(
    r"(?P<function>vit_cls|vit|vision_transformer)(?:_(?P<dtype>bfloat16|float16))?"
    rf"(?:_(?P<attention>plain|{'|'.join(KNOWN_IMPLEMENTATIONS)}))?"
    r"(?P<loop>_loop)?(?P<remat>_remat)?(?P<autodiff>_autodiff)?"
)
"""The names of variants."""

Config = ViTConfig | VisionTransformerConfig
Function = Literal["vit", "vit-cls", "vision-transformer"]


class VitFast:
    """`ViT` or `VisionTransformer` behind the protocol of an implementation.

    Attributes:
        name, version: what the report calls it.
        spec: which function it claims to be.
        dtype: what it can compute in; a single low precision is its type of activations.
        options: what the models are built with.
    """

    version = vitspec.__version__

    def __init__(
        self,
        name: str,
        spec: Function,
        dtype: str | tuple[str, ...] = ("float32", "float64"),
        **options: Any,
    ) -> None:
        self.name, self.spec, self.dtype, self.options = name, spec, dtype, options

    def supports(self, config: Config) -> str | None:
        """None, or why there are no logits, which a `VisionTransformer` may do without."""
        if self.spec != "vision-transformer" or config.num_classes > 0:
            return None
        return "the model has no classifier (num_classes is 0)"

    def supports_size(self, config: Config, height: int, width: int) -> str | None:
        """None: a `VisionTransformer` interpolates its positions for any size."""
        return None

    def forward(
        self, config: Config, params: Mapping[str, Any], images: Float[np.ndarray, "B C H W"]
    ) -> Float[np.ndarray, "B K"]:
        """The logits of each image."""
        with jax.enable_x64(images.dtype == np.float64):
            model = self._model(config, params, images)
            quick = is_quick(model, images)
            program = compiled(logits_and_vjp if quick else just_logits, quick)
            # Whoever checks a small model wants its gradients too: their program serves for both.
            zeros = [np.zeros((len(images), config.num_classes), images.dtype)] if quick else []
            logits = program(model, _channels_last(images), *zeros)
            return self._numpy(logits[0] if quick else logits, images)

    def vjp(
        self,
        config: Config,
        params: Mapping[str, Any],
        images: Float[np.ndarray, "B C H W"],
        cotangent: Float[np.ndarray, "B K"],
    ) -> tuple[Flat, Float[np.ndarray, "B C H W"]]:
        """The cotangents of the parameters, summed over the batch, and of the images."""
        with jax.enable_x64(images.dtype == np.float64):
            model = self._model(config, params, images)
            expected = (images.shape[0], config.num_classes)
            if cotangent.shape != expected or cotangent.dtype != images.dtype:
                raise InvalidArray(
                    f"cotangent: expected shape {expected} of {images.dtype}, like the logits, "
                    f"got {cotangent.shape} of {cotangent.dtype}"
                )
            program = compiled(logits_and_vjp, is_quick(model, images))
            _, (d_model, d_images) = program(model, _channels_last(images), cotangent)
            return to_flat(d_model), self._numpy(d_images, images).transpose(0, 3, 1, 2)

    def _model(
        self, config: Any, params: Mapping[str, Any], images: np.ndarray
    ) -> ViT | VisionTransformer:
        if images.ndim != 4:
            raise InvalidArray(
                f"images: expected (batch, channels, height, width), got shape {images.shape}"
            )
        options = self.options | {
            "param_dtype": scalar_type(params),
            "dtype": self.dtype if isinstance(self.dtype, str) else None,
            "rngs": None,
        }
        if self.spec == "vision-transformer":
            return fill(VisionTransformer(config, **options), params)
        _, in_channels, height, width = images.shape
        size = {"in_channels": in_channels, "height": height, "width": width}
        pool: Any = "cls" if self.spec == "vit-cls" else "mean"
        return fill(ViT(config, **size, pool=pool, **options), params)

    def _numpy(self, x: jax.Array, images: np.ndarray) -> np.ndarray:
        """An output in the arrays' type, which holds every number of a lower precision."""
        return np.asarray(x).astype(images.dtype, copy=False)


vit = VitFast("vitfast", "vit")
vit_cls = VitFast("vitfast-cls", "vit-cls")
vision_transformer = VitFast("vitfast-vision-transformer", "vision-transformer")


@functools.cache
def variant(name: str) -> VitFast:
    """The variant of this name (see the module's docstring).

    Raises:
        ValueError: the name is not one of a variant.
    """
    match = VARIANT.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not a variant of vitfast: expected {VARIANT.pattern}")
    part = match.groupdict()
    options: dict[str, Any] = {
        "scan_layers": part["loop"] is None,
        "use_gradient_checkpointing": part["remat"] is not None,
        "custom_vjp": part["autodiff"] is None,
    }
    if part["attention"] == "plain":
        options["attention_fn"] = PlainAttention(options["custom_vjp"])
    elif part["attention"] is not None:
        options["attention_fn"] = make_tokamax_attention(part["attention"])
    function: Any = part["function"]
    own = name.removeprefix("vit") if function != "vision_transformer" else f"_{name}"
    return VitFast(
        f"vitfast{own}".replace("_", "-"),
        function.replace("_", "-"),
        part["dtype"] or ("float32", "float64"),
        **options,
    )


def __getattr__(name: str) -> VitFast:
    if VARIANT.fullmatch(name):
        return variant(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def just_logits(model: ViT | VisionTransformer, images: Any) -> Any:
    """The logits of images (B, H, W, C), with interpolated positions for another size."""
    if not isinstance(model, VisionTransformer):
        return model(images)
    own = model.config.image_h, model.config.image_w
    return model(images, interpolate_positions=images.shape[1:3] != own).logits


def logits_and_vjp(model: ViT | VisionTransformer, images: Any, cotangent: Any) -> Any:
    """The logits, and the cotangents (d_model, d_images) by automatic differentiation."""
    logits, pullback = jax.vjp(just_logits, model, images)
    return logits, pullback(cotangent.astype(logits.dtype))


def is_quick(model: ViT | VisionTransformer, images: np.ndarray) -> bool:
    """Whether to spare the compiler rather than the program."""
    size = images.size + sum(leaf.size for leaf in jax.tree.leaves(model))
    return size <= QUICK_UP_TO and jax.default_backend() == "cpu"


@functools.cache
def compiled(function: Callable[..., Any], quick: bool) -> Callable[..., Any]:
    """The function under `jax.jit`, which compiles it anew for each model and shape."""
    return jax.jit(function, compiler_options=quick_options() if quick else None)


@functools.cache
def quick_options() -> dict[str, Any]:
    """Those of the options `QUICK` that the installed XLA knows; they come and go."""
    return {name: value for name, value in QUICK.items() if _is_known(name, value)}


def _is_known(name: str, value: Any) -> bool:
    try:
        jax.jit(lambda x: x, compiler_options={name: value})(np.float32(0))
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _channels_last(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 2, 3, 1)
