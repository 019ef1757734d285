"""A checkpoint, read from a folder or the Hugging Face hub."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vitfast.checkpoints.config import Description, read_architecture, read_config
from vitfast.checkpoints.config_writing import natural_architecture
from vitfast.checkpoints.errors import CheckpointError, quoted
from vitfast.checkpoints.folder import Folder
from vitfast.checkpoints.hub import fetch, is_hub_name
from vitfast.checkpoints.labels import Labels, read_labels
from vitfast.checkpoints.matching import Parameters, match
from vitfast.checkpoints.stored import StoredTensor
from vitfast.checkpoints.strict_json import read_object
from vitfast.checkpoints.weights import read_weights
from vitspec.vision_transformer_config import VisionTransformerConfig


@dataclass(frozen=True)
class Checkpoint:
    """A model as its files have it.

    Attributes:
        config: the architecture.
        flat: the parameters by flat name, read when they are asked for.
        labels: the names of the classes, if the files have any.
        architecture: the class of transformers that this model is.
        folder: where the files are.
        left_out: the stored names of the heads that the files have and `config` does not.
    """

    config: VisionTransformerConfig
    flat: Parameters
    labels: Labels | None
    architecture: str
    folder: Path
    left_out: tuple[str, ...]


def load_checkpoint(
    path_or_name: str | os.PathLike[str],
    use_pytorch: bool = False,
    config: VisionTransformerConfig | None = None,
    *,
    revision: str | None = None,
    allow_nonfinite: bool = False,
) -> Checkpoint:
    """Open a checkpoint of a pretrained ViT and check all of it; nothing of it stays in memory.

    With `config`, the files must have every parameter of that configuration, instead of the one
    in config.json, which may then be missing. Heads (classifier, pooler, decoder, mask token) that
    only the files have are left out; heads that only `config` has are missing, and so an error.

    Args:
        path_or_name: a folder; if there is none of this name, a model on the Hugging Face hub.
        use_pytorch: read `pytorch_model.bin` (needs PyTorch) in place of `model.safetensors`.
        config: the configuration to load, if it is another one than the files'.
        revision: of the model on the hub: a branch, a tag, a commit.
        allow_nonfinite: take weights that are NaN or infinite; this skips one reading of all.

    Raises:
        CheckpointError: there is no such checkpoint, or its files are damaged or refused.
        InvalidTensors: the tensors do not fit the configuration; every fault is listed.
        NotWellFormed: `config` breaks a rule.
    """
    if config is not None:
        config.check_well_formed()
    folder = _folder(path_or_name, use_pytorch, revision)
    stored = read_weights(folder, use_pytorch)
    found = _description(folder, stored, config)
    flat, left_out = match(
        found.config,
        found.architecture,
        stored,
        where=str(folder.path),
        leave_out=config is not None,
        allow_nonfinite=allow_nonfinite,
    )
    architecture = natural_architecture(found.config) if left_out else found.architecture
    return Checkpoint(found.config, flat, found.labels, architecture.name, folder.path, left_out)


def _folder(
    path_or_name: str | os.PathLike[str], use_pytorch: bool, revision: str | None
) -> Folder:
    is_name = isinstance(path_or_name, str) and is_hub_name(path_or_name)
    if is_name and not os.path.lexists(path_or_name):
        return Folder.at(fetch(str(path_or_name), use_pytorch, revision))
    if revision is not None:
        raise CheckpointError(
            quoted(os.fspath(path_or_name)), ["a folder has no revisions; leave out revision="]
        )
    return Folder.at(path_or_name)


def _description(
    folder: Folder, stored: dict[str, StoredTensor], config: VisionTransformerConfig | None
) -> Description:
    """What config.json says, or what is said instead of it."""
    if config is None:
        file = folder.file("config.json")
        return read_config(read_object(file), stored, file.shown)
    if not folder.has("config.json"):
        return Description(natural_architecture(config), config, None)
    file = folder.file("config.json")
    given, problems = read_object(file), list[str]()
    architecture = read_architecture(given, stored, file.shown)
    labels = read_labels(given, problems)
    if labels is not None and config.num_classes not in (0, len(labels.names)):
        problems.append(
            f"id2label: {len(labels.names)} classes, and config has {config.num_classes}"
        )
    if problems:
        raise CheckpointError(file.shown, problems)
    return Description(architecture, config, labels)
