"""The model with which a run begins: a fresh one, or a checkpoint's, for the data at hand."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vitfast.convert import from_flat, to_flat
from vitfast.vision_transformer import VisionTransformer
from vitspec.layers.position_interpolation import interpolate_positions
from vitspec.vision_transformer_config import VisionTransformerConfig

Size = tuple[int, int]
"""Height and width."""


def adapted(
    config: VisionTransformerConfig,
    *,
    classes: int,
    channels: int | None = None,
    image_size: Size | None = None,
    masked: bool = False,
) -> VisionTransformerConfig:
    """A configuration for a data set and an objective.

    Args:
        config: of a preset, or a checkpoint.
        classes: of the data set.
        channels: of its images; None leaves the configuration's.
        image_size: to which images are resized; None leaves the configuration's.
        masked: whether it is for masked image modelling, which needs a mask token and a decoder,
            and no classifier; a classifier in turn loses them.
    """
    changes: dict[str, Any] = {"pooler_dim": 0}
    if masked:
        changes |= {"num_classes": 0, "mask_token": True, "decoder_stride": config.patch_h}
    else:
        changes |= {"num_classes": classes}
        if config.decoder_stride:
            changes |= {"decoder_stride": 0, "mask_token": False}
        if config.layer_scale and config.cls_token and not config.num_classes:
            # What Hugging Face's classifier of a DINOv2 reads: the model can then be exported.
            changes |= {"pool": "cls_mean"}
        elif config.pool == "none":
            changes |= {"pool": "cls" if config.cls_token else "mean"}
    if channels is not None:
        changes["in_channels"] = channels
    if image_size is not None:
        changes |= {"image_h": image_size[0], "image_w": image_size[1]}
    return replace(config, **changes)


def fresh(
    config: VisionTransformerConfig, *, seed: int = 0, position_scale: float = 0.02, **options: Any
) -> VisionTransformer:
    """A model with drawn parameters.

    Args:
        config: the architecture.
        seed: of what is drawn.
        position_scale: standard deviation of the initial positions.
        options: what else `VisionTransformer` takes: dtype, sharding, ...
    """
    model = VisionTransformer(config, rngs=nnx.Rngs(seed), **options)
    model.pos_enc.pos[...] = model.pos_enc.pos[...] * (position_scale / 0.02)
    return model


def from_checkpoint(
    path: str | os.PathLike[str],
    *,
    classes: int,
    image_size: Size | None = None,
    masked: bool = False,
    seed: int = 0,
    param_dtype: Any = jnp.float32,
    **options: Any,
) -> VisionTransformer:
    """The model of a checkpoint with a new head, at another resolution.

    Its positions are interpolated once, as `vitspec.layers.position_interpolation` says; then they
    are parameters like any others.

    Args:
        path: a folder as Hugging Face writes it, or a model's name on the hub.
        classes: of the data set; a head for as many is drawn, unless the checkpoint has one.
        image_size: to which images are resized; None is the checkpoint's.
        masked: as of `adapted`.
        seed: of what is drawn.
        param_dtype: type of the parameters.
        options: what else `VisionTransformer` takes: dtype, sharding, ...

    Raises:
        CheckpointError: the checkpoint cannot be read.
        NotWellFormed: there is no such model, as of images smaller than a patch.
    """
    from vitfast.checkpoints import load_checkpoint
    from vitfast.pretrained import from_pretrained

    stored = load_checkpoint(path, allow_nonfinite=True).config
    there = adapted(stored, classes=classes, masked=masked)
    wanted = adapted(there, classes=classes, image_size=image_size, masked=masked)
    wanted.check_well_formed()
    model = from_pretrained(
        path, config=there, rngs=nnx.Rngs(seed), param_dtype=param_dtype, **options
    )
    if wanted == there:
        return model
    flat = to_flat(model)
    flat["pos_enc.pos"] = positions_at(flat["pos_enc.pos"], there, wanted.grid)
    return from_flat(wanted, flat, **options)


def positions_at(
    pos: np.ndarray, config: VisionTransformerConfig, grid: tuple[int, int]
) -> np.ndarray:
    """A table of positions for another grid of patches; the CLS token's is left as it is."""
    if grid == config.grid:
        return pos
    rows = int(config.cls_token)
    table = pos[rows:].astype(np.promote_types(pos.dtype, np.float32))
    interpolated = interpolate_positions(table, config.grid, grid)
    return np.concatenate([pos[:rows], interpolated.astype(pos.dtype)])


def processor_of_checkpoint(path: str | os.PathLike[str], config: VisionTransformerConfig) -> Any:
    """A checkpoint's own image processor, at the configuration's size; None if it has none."""
    from vitfast.checkpoints import load_checkpoint
    from vitfast.images import ImageProcessor

    folder = load_checkpoint(path, allow_nonfinite=True).folder
    if not (folder / "preprocessor_config.json").exists():
        return None
    return replace(
        ImageProcessor.from_pretrained(folder),
        do_resize=True,
        size={"height": config.image_h, "width": config.image_w},
        do_center_crop=False,
        crop_size=None,
    )
