"""Who is nearest to the truth on a real checkpoint: the graph, transformers, vitfast, vitspec.

The truth is the specification in float64; all others compute in float32. The checkpoint is the one
that `extract.py` wrote, the picture is real, and the sizes are four: that of the graph, half of it,
one that is not square, and the one for which the positions were learned.

    python -m pip install -e ".[fast]" onnx onnxruntime transformers
    python examples/real_checkpoint/compare.py DIRECTORY
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from extract import graph_path  # beside this file

from vitspec import Conditions, VisionTransformer
from vitspec.testing.photograph import PHOTOGRAPH

SIZES = ((224, 224), (112, 112), (280, 196), (518, 518))
LAYERS = 12
STAGES = ("embedded", *(f"block {i + 1}" for i in range(LAYERS)), "last hidden state")
NODES = (
    "/backbone/embeddings/Add_output_0",
    *(f"/backbone/encoder/layer.{i}/Add_1_output_0" for i in range(LAYERS)),
    "/backbone/layernorm/Add_1_output_0",
)
"""The outputs of the graph's nodes at these stages."""

Stages = dict[str, np.ndarray]
"""By stage, (n, D)."""


def pixels(height: int, width: int) -> np.ndarray:
    """The photograph as the model takes it: (height, width, 3), float32."""
    from vitfast.images import ImageProcessor

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    process = ImageProcessor(size=(height, width), image_mean=mean, image_std=std)
    return process(PHOTOGRAPH)[0]


def specification(flat: Stages, config: object, image: np.ndarray, dtype: str) -> Stages:
    """By vitspec, in a scalar type."""
    params = {name: np.asarray(leaf).astype(dtype) for name, leaf in flat.items()}
    model = VisionTransformer.from_flat(config, params)
    first = image.transpose(2, 0, 1).astype(dtype)
    trace = model.trace(first, Conditions(interpolate_positions=True))
    return dict(zip(STAGES, (*trace.hidden_states, trace.last_hidden_state), strict=True))


def graph(image: np.ndarray) -> Stages:
    """By onnxruntime, which runs the graph that the weights come from."""
    import onnx
    import onnxruntime

    model = onnx.load(str(graph_path()))
    for axis, name in ((2, "height"), (3, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    del model.graph.output[:]
    for node in NODES:
        kind = onnx.TensorProto.FLOAT
        model.graph.output.append(onnx.helper.make_tensor_value_info(node, kind, None))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = session.run(list(NODES), {"input_image": image.transpose(2, 0, 1)[None]})
    return dict(zip(STAGES, (array[0] for array in found), strict=True))


def transformers(directory: Path, image: np.ndarray) -> Stages:
    """By Hugging Face's Dinov2Model."""
    import torch
    from transformers import Dinov2Model

    model = Dinov2Model.from_pretrained(directory, attn_implementation="eager").eval()
    with torch.no_grad():
        found = model(
            torch.from_numpy(image.transpose(2, 0, 1)[None].copy()), output_hidden_states=True
        )
    states = [*found.hidden_states, found.last_hidden_state]
    return dict(zip(STAGES, (state[0].numpy() for state in states), strict=True))


def vitfast(directory: Path, image: np.ndarray) -> Stages:
    """By vitfast."""
    from vitfast import VisionTransformer as FastVisionTransformer

    model = FastVisionTransformer.from_pretrained(directory)
    outputs, taps = model.forward_with_taps(image[None], interpolate_positions=True)
    states = [*np.asarray(taps.hidden_states)[:, 0], np.asarray(outputs.last_hidden_state)[0]]
    return dict(zip(STAGES, states, strict=True))


def distance(value: np.ndarray, truth: np.ndarray) -> float:
    """The largest error over the largest entry of the truth."""
    return float(np.abs(value - truth).max() / np.abs(truth).max())


def everyone(directory: Path, height: int, width: int) -> tuple[Stages, dict[str, Stages]]:
    """The truth, and what each computes, at a size."""
    from vitfast.checkpoints import load_checkpoint

    checkpoint, image = load_checkpoint(directory), pixels(height, width)
    truth = specification(checkpoint.flat, checkpoint.config, image, "float64")
    return truth, {
        "onnxruntime": graph(image),
        "transformers": transformers(directory, image),
        "vitfast": vitfast(directory, image),
        "vitspec": specification(checkpoint.flat, checkpoint.config, image, "float32"),
    }


def main(directory: Path) -> None:
    """Print a table for each size."""
    for height, width in SIZES:
        truth, found = everyone(directory, height, width)
        print(f"\n{height} x {width}, {len(truth['embedded'])} tokens\n")
        print("| stage | largest entry | " + " | ".join(found) + " |")
        print("| --- | ---: |" + " ---: |" * len(found))
        for stage in STAGES:
            errors = (f"{distance(one[stage], truth[stage]):.1e}" for one in found.values())
            print(f"| {stage} | {np.abs(truth[stage]).max():.3g} | " + " | ".join(errors) + " |")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
