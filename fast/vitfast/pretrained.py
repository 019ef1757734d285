"""Models from checkpoints and back: `VisionTransformer.from_pretrained` and `save_pretrained`.

Parameters are read one after the other, rounded if the model has another type, and put where they
lie on the mesh that is set: no process holds a second copy of the model.
"""

from __future__ import annotations

import os
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
from flax import nnx

from vitfast.checkpoints import Labels, load_checkpoint, save_checkpoint
from vitfast.convert import load, to_flat
from vitfast.vision_transformer import VisionTransformer
from vitspec.models.vision_transformer_parameters import head_shapes
from vitspec.vision_transformer_config import VisionTransformerConfig

HEADS = {"head": "num_classes", "pooler": "pooler_dim", "decoder": "decoder_stride"}
"""Each head's field of the configuration, which is 0 where there is none."""


def from_pretrained(
    path_or_name: str | os.PathLike[str],
    use_pytorch: bool = False,
    *,
    config: VisionTransformerConfig | None = None,
    revision: str | None = None,
    param_dtype: Any = None,
    rngs: nnx.Rngs | None = None,
    **options: Any,
) -> VisionTransformer:
    """The model of a checkpoint.

    Args:
        path_or_name: a folder as Hugging Face writes it, or a model's name on the hub.
        use_pytorch: read `pytorch_model.bin` (needs PyTorch), weights only.
        config: another configuration than the checkpoint's. Heads that it lacks are left out;
            those that it has and the checkpoint has not, or in another size, are drawn.
        revision: of the model on the hub.
        param_dtype: type of the parameters; None is that of the files.
        rngs: where new heads are drawn from.
        options: what else `VisionTransformer` takes: dtype, sharding, attention_fn,
            use_gradient_checkpointing, scan_layers, custom_vjp.

    Raises:
        CheckpointError: the files are missing, damaged or refused; InvalidTensors: tensors do not
            fit, and every fault is listed.
        ValueError: `config` has a new head, and there are no `rngs`.
        MeshDoesNotDivide: a parameter does not divide over the mesh.
    """
    checkpoint = load_checkpoint(
        path_or_name, use_pytorch, revision=revision, allow_nonfinite=config is not None
    )
    new: list[str] = []
    if config is not None:
        new = new_heads(config, checkpoint.config)
        if new and rngs is None:
            raise ValueError(
                f"{path_or_name} has no {' and no '.join(new)} of the size in `config`; pass "
                "rngs=nnx.Rngs(0) to draw fresh parameters"
            )
        without: dict[str, Any] = {HEADS[name]: 0 for name in new}
        old = replace(config, **without)
        checkpoint = load_checkpoint(path_or_name, use_pytorch, old, revision=revision)
    flat: Mapping[str, Any] = checkpoint.flat
    if param_dtype is None:
        param_dtype = checkpoint.flat.dtype("patch_embed.bias")
    config = config or checkpoint.config
    if new and rngs is not None:
        flat = ChainMap(_fresh(config, new, param_dtype, rngs), flat)  # type: ignore[arg-type]
    return load(VisionTransformer(config, param_dtype=param_dtype, rngs=None, **options), flat)


def new_heads(wanted: VisionTransformerConfig, stored: VisionTransformerConfig) -> list[str]:
    """The heads that are wanted and not stored in this size."""
    have = head_shapes(stored)
    return [name for name, shape in head_shapes(wanted).items() if have.get(name) != shape]


def _fresh(
    config: VisionTransformerConfig, heads: Sequence[str], param_dtype: Any, rngs: nnx.Rngs
) -> dict[str, Any]:
    """Drawn parameters of these heads, by flat name."""
    without_blocks = replace(config, num_layers=0)
    drawn = to_flat(VisionTransformer(without_blocks, param_dtype=param_dtype, rngs=rngs))
    return {name: leaf for name, leaf in drawn.items() if name.split(".")[0] in heads}


def save_pretrained(
    model: VisionTransformer,
    folder: str | os.PathLike[str],
    *,
    labels: Labels | Sequence[str] | None = None,
    max_shard_size: int | None = None,
) -> None:
    """Write a model so that transformers loads it without a missing or unexpected key.

    With several processes, all must call this; the first one writes.

    Args:
        model: what to write.
        folder: where to; an earlier checkpoint in it is replaced, or nothing is changed.
        labels: the names of the classes.
        max_shard_size: bytes of the largest file of weights; None makes one file.

    Raises:
        CheckpointError: transformers has no such model, or the folder cannot be written.
    """
    flat = to_flat(model)
    if jax.process_index() == 0:
        save_checkpoint(folder, model.config, flat, labels, max_shard_size=max_shard_size)
