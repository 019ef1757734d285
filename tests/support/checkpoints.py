"""Small checkpoints of every class, and folders with faults."""

import json
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from vitfast.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from vitspec.models.vision_transformer_parameters import random_parameters
from vitspec.vision_transformer_config import VisionTransformerConfig

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}

_VIT = VisionTransformerConfig(
    image_h=12, image_w=9, in_channels=2, patch_h=4, patch_w=3, embed_dim=8, hidden_dim=12,
    head_count=2, num_layers=2, num_classes=0,
)  # fmt: skip
_DINOV2 = replace(_VIT, hidden_dim=24, layer_scale=True, mask_token=True, layer_norm_eps=1e-6)

CONFIGS = {
    "ViTModel": replace(_VIT, pooler_dim=5),
    "ViTForImageClassification": replace(_VIT, num_classes=3, qkv_bias=False),
    "ViTForMaskedImageModeling": replace(_VIT, mask_token=True, decoder_stride=2),
    "Dinov2Model": _DINOV2,
    "Dinov2ForImageClassification": replace(_DINOV2, num_classes=3, pool="cls_mean"),
}
"""One small configuration of each class, in which nothing is square and no two sizes are equal."""


def parameters(config, dtype="float32", seed=0):
    """Random parameters by flat name."""
    return random_parameters(config, np.random.default_rng(seed), DTYPES[dtype])


def bits(array):
    """The bytes of an array, so that NaN equals NaN and -0 does not equal 0."""
    return array.dtype.name, array.shape, np.ascontiguousarray(array).tobytes()


def assert_same_bits(values, truths):
    """Require the same names and, for each array, the same type, shape and bits."""
    assert list(values) == list(truths)
    for name, truth in truths.items():
        assert bits(values[name]) == bits(truth), name


def snapshot(folder):
    """Every file below a folder with its bytes, and every folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def edit_json(path, change):
    """Change the object in a JSON file, in place."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def split_safetensors(content):
    """The header as an object, and the data."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join_safetensors(header, data):
    """A file of this header, an object or its text, and this data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def write_tensors(path, tensors):
    """A safetensors file of NumPy arrays of any type that the library knows."""
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(a) for name, a in tensors.items()}, path)


def saved_classifier(folder):
    """A folder with a small classification model, and its parameters."""
    config = CONFIGS["ViTForImageClassification"]
    flat = parameters(config)
    save_checkpoint(folder, config, flat, labels=["cat", "dog", "crane"])
    return folder, flat


def other_model():
    """The configuration of that model, and other parameters."""
    config = CONFIGS["ViTForImageClassification"]
    return config, parameters(config, seed=9)


def sharded(folder):
    """A small classification model in several files; its parameters."""
    config, flat = other_model()
    save_checkpoint(folder, config, flat, max_shard_size=900)
    return flat


def refusal(folder, **options):
    """What loading this folder says."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder, **options)
    assert "Traceback" not in str(caught.value)
    return str(caught.value)
