"""Checkpoints of pretrained ViTs: Hugging Face's folders, read and written without PyTorch.

    checkpoint = load_checkpoint("path/to/folder")             # or a name on the hub
    checkpoint.config                                          # a VisionTransformerConfig
    checkpoint.flat["encoder.layers.0.mha.wq"]                 # read when it is asked for
    save_checkpoint("copy", checkpoint.config, checkpoint.flat, checkpoint.labels)

Classes: ViTModel, ViTForImageClassification, ViTForMaskedImageModeling, Dinov2Model and
Dinov2ForImageClassification. No bit of a weight changes on the way in or out.
"""

from vitfast.checkpoints.errors import CheckpointError, InvalidTensors
from vitfast.checkpoints.labels import Labels
from vitfast.checkpoints.load import Checkpoint, load_checkpoint
from vitfast.checkpoints.matching import Parameters
from vitfast.checkpoints.names import ARCHITECTURES
from vitfast.checkpoints.save import save_checkpoint

__all__ = [
    "ARCHITECTURES",
    "Checkpoint",
    "CheckpointError",
    "InvalidTensors",
    "Labels",
    "Parameters",
    "load_checkpoint",
    "save_checkpoint",
]
