"""The trained model as Hugging Face stores it: what `vitfast classify` and transformers read.

Two things of a configuration matter to training, or to the names of parameters, and not to what the
trained model computes. A model that Hugging Face has not, but for these, is written as one it has:

    dropout                                     none
    no bias after the attention's last product  one of zeros
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from vitfast.checkpoints import CheckpointError, save_checkpoint
from vitfast.checkpoints.config_writing import natural_architecture, write_config
from vitfast.convert import LAYERS, to_flat
from vitfast.vision_transformer import VisionTransformer
from vitspec.vision_transformer_config import DropoutRates, VisionTransformerConfig


def export_config(config: Any) -> VisionTransformerConfig:
    """The configuration that is written for a model of this one.

    Raises:
        CheckpointError: Hugging Face has no model that computes the same.
    """
    if not isinstance(config, VisionTransformerConfig):
        raise CheckpointError("export", ["Hugging Face's transformers has no such model as a ViT"])
    try:
        _require_written(config)
    except CheckpointError:
        plain = replace(config, dropout=DropoutRates(), output_bias=True)
        _require_written(plain)
        return plain
    return config


def _require_written(config: VisionTransformerConfig) -> None:
    write_config(config, natural_architecture(config), None, dtype="float32")


def export_problem(model: Any) -> str | None:
    """Why a model cannot be written as Hugging Face's, or None."""
    try:
        export_config(model.config)
    except CheckpointError as error:
        return str(error)
    return None


def export(model: VisionTransformer, folder: Any, labels: Any, processor: Any) -> None:
    """Write a model, the names of its classes and its image processor.

    With several processes, all must call this; the first one writes.
    """
    import jax

    config, flat = export_config(model.config), to_flat(model)
    if config.output_bias and not model.config.output_bias:
        zeros = np.zeros(config.embed_dim, model.param_dtype)
        flat |= {f"{LAYERS}{i}.mha.bo": zeros for i in range(config.num_layers)}
    if jax.process_index() == 0:
        save_checkpoint(folder, config, flat, labels)
        processor.save_pretrained(folder)
