"""What training minimises: an `Objective`, plain data, and the losses of a model's images.

    classification            cross entropy with label smoothing e
    masked-image-modelling    mean absolute error of the pixels of masked patches, which the model
                              sees a learned token in place of

Both are `vitspec.layers.losses` on each image; a batch's loss is the mean of its images'. As many
patches are masked in each image, max(1, round(ratio T)) of its T, all choices equally likely.

Source: Szegedy et al., 1512.00567 (label smoothing); Hugging Face's `ViTForMaskedImageModeling`
(which divides by the masked pixels of the batch: as many masked in each image, it is the same but
for the 1e-5 in the denominator), after Xie et al., 2111.09886 (SimMIM).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from vitfast.sharding import NoSharding, ShardingSpec, on_mesh, reshape
from vitfast.vision_transformer import VisionTransformer
from vitspec.vision_transformer_config import VisionTransformerConfig

OBJECTIVES = ("classification", "masked-image-modelling")


@dataclass(frozen=True)
class Classification:
    """Cross entropy with the images' classes.

    Attributes:
        label_smoothing: the part e of a label that all classes share.
    """

    label_smoothing: float = 0.0
    name: ClassVar[str] = "classification"

    def losses(self, model: Any, batch: Any, key: Any) -> jax.Array:
        """The loss of each image, (b,), in float32 at least.

        Args:
            model: of either family.
            batch: images (b, H, W, C) and labels (b,).
            key: where dropout draws from; None is no dropout.
        """
        images, labels = batch
        logits = logits_of(model, jnp.asarray(images, model.param_dtype), key)
        return smoothed_cross_entropy(logits, labels, self.label_smoothing)

    def problems(self, config: Any) -> list[str]:
        """Why a model of this configuration cannot be trained so."""
        fits = config.num_classes > 0
        return [] if fits else ["classification needs a classifier: num_classes is 0"]


@dataclass(frozen=True)
class MaskedImageModelling:
    """The mean absolute error of the pixels of masked patches.

    Attributes:
        mask_ratio: the part of an image's patches that is masked.
    """

    mask_ratio: float = 0.5
    name: ClassVar[str] = "masked-image-modelling"

    def losses(self, model: Any, batch: Any, key: Any) -> jax.Array:
        """The loss of each image, (b,), in float32 at least; labels are not read.

        Args:
            model: with a mask token and a decoder.
            batch: images (b, H, W, C) and labels (b,).
            key: where masks and dropout draw from.
        """
        of_masks, of_dropout = self.split(key)
        return self.losses_of(model, batch[0], of_masks, of_dropout)

    def losses_of(self, model: Any, images: Any, of_masks: Any, of_dropout: Any) -> jax.Array:
        """The same with a key for each; no dropout if its key is None."""
        pixels = jnp.asarray(images, model.param_dtype)
        masked = self.masked_patches(model.config, len(pixels), of_masks, model.sharding)
        outputs = model(pixels, masked_patches=masked, rngs=of_dropout)
        return masked_error(pixels, outputs.reconstruction, masked, model.config)

    def split(self, key: Any) -> tuple[Any, Any]:
        """The keys of the masks and of dropout."""
        of_masks, of_dropout = jax.random.split(key)
        return of_masks, of_dropout

    def masked_patches(
        self,
        config: VisionTransformerConfig,
        count: int,
        of_masks: Any,
        sharding: ShardingSpec | None = None,
    ) -> jax.Array:
        """Masks (count, T), true where a patch is masked: as many in each image.

        They do not depend on the mesh.
        """
        T = math.prod(config.grid)
        where: dict[str, Any] = {}
        if on_mesh():
            where = {"out_sharding": (sharding or NoSharding()).images}
        scores = jax.random.uniform(of_masks, (count, T), jnp.float32, **where)
        ranks = jnp.argsort(jnp.argsort(scores, axis=1), axis=1)
        return ranks < self.masked_count(T)

    def masked_count(self, patches: int) -> int:
        """How many of an image's patches are masked."""
        return max(1, round(self.mask_ratio * patches))

    def problems(self, config: Any) -> list[str]:
        """Why a model of this configuration cannot be trained so."""
        if not isinstance(config, VisionTransformerConfig):
            return ["masked-image-modelling needs a VisionTransformerConfig"]
        problems = []
        if not config.mask_token:
            problems.append("masked-image-modelling needs a mask token: set mask_token=true")
        if not config.decoder_stride == config.patch_h == config.patch_w:
            problems.append(
                "masked-image-modelling needs a decoder of whole square patches: decoder_stride is "
                f"{config.decoder_stride}, patches are {config.patch_h} x {config.patch_w}"
            )
        return problems


Objective = Classification | MaskedImageModelling


def logits_of(model: Any, images: Any, key: Any = None) -> jax.Array:
    """The logits of a model of either family.

    Args:
        model: a classifier.
        images: as it takes them.
        key: where dropout draws from, in a `VisionTransformer`; None is no dropout.

    Raises:
        ValueError: the model has no classifier.
    """
    if not isinstance(model, VisionTransformer):
        return model(images)
    logits = model(images, rngs=key).logits
    if logits is None:
        raise ValueError("model: expected a classifier, got one without (num_classes is 0)")
    return logits


def smoothed_cross_entropy(logits: jax.Array, labels: Any, smoothing: float) -> jax.Array:
    """-sum_k t_k log softmax(logits)_k of each image, t = (1 - e) [k = label] + e / K."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    of_label = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if not smoothing:
        return of_label
    of_all = -jax.nn.log_softmax(logits).mean(axis=-1)
    return (1 - smoothing) * of_label + smoothing * of_all


def masked_error(
    pixels: jax.Array, reconstruction: Any, masked: jax.Array, config: VisionTransformerConfig
) -> jax.Array:
    """sum |x - r| m / (sum m + 1e-5) / C of each image, in float32 at least.

    Args:
        pixels: x, (b, H, W, C); those that fill no patch are not read.
        reconstruction: r, (b, g_h S, g_w S, C).
        masked: (b, T) the patches whose pixels m counts.
        config: has the grid, and S = decoder_stride.
    """
    (g_h, g_w), S, C = config.grid, config.decoder_stride, config.in_channels
    b = len(pixels)
    dtype = jnp.promote_types(pixels.dtype, jnp.float32)
    wanted = pixels[:, : g_h * S, : g_w * S].astype(dtype)
    error = jnp.abs(reconstruction.astype(dtype) - wanted)
    of_patches = reshape(error, b, g_h, S, g_w, S, C).sum(axis=(2, 4, 5))
    counted = jnp.where(masked, reshape(of_patches, b, g_h * g_w), 0)
    return counted.sum(axis=1) / (masked.sum(axis=1) * (S * S) + 1e-5) / C
