"""A few steps of training on the mesh that is set; as a script, one process of several.

    python training_run.py RANK PROCESSES PORT DEVICES FILE

joins the others at the port, with so many devices of its own, and writes its figures to the file:
gloo, through which the processes speak, prints on the standard output.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import optax

from support.meshes import LAYOUTS, model_of, point
from vitfast import to_flat
from vitfast.implementation import quick_options
from vitfast.sharding import shard_images
from vitfast.training import make_train_step

STEPS = 3

LAYOUT_NAMES = ("FSDP 1x8", "tensor parallel 1x8")
"""Every weight is spread over all processes; in the second, all processes have the same images."""


def train(sharding, images, labels):
    """Losses of some steps of SGD, the last gradients and the parameters after, by flat name.

    With several processes, the images and labels are this process's.
    """
    optimizer = optax.sgd(0.1, momentum=0.0)  # whose state is the last step's gradients
    model = model_of("cls", sharding)
    state = optimizer.init(model)
    batch = [shard_images(array, sharding) for array in (images, labels)]
    step = make_train_step(optimizer).lower(model, state, *batch).compile(quick_options())
    losses = []
    for _ in range(STEPS):
        model, state, loss = step(model, state, *batch)
        losses.append(float(loss))
    return {
        "losses": losses,
        "gradients": to_flat(state[0].trace),
        "parameters": to_flat(model),
    }


def whole_batch():
    """All images, and labels for them."""
    images = point("cls").images.transpose(0, 2, 3, 1)
    return images, np.arange(len(images)) % point("cls").config.num_classes


def own_batch(sharding):
    """What this process has of them: what its devices need."""
    if not sharding.fsdp_axis:
        return whole_batch()
    return [np.split(a, jax.process_count())[jax.process_index()] for a in whole_batch()]


def main(rank, processes, port, devices, file):
    """Take part, and write what came out."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_enable_x64", True)
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, rank)
    figures = {"devices": [jax.local_device_count(), jax.device_count()]}
    for name in LAYOUT_NAMES:
        layout = LAYOUTS[name]
        with layout.set():
            figures[name] = train(layout.sharding, *own_batch(layout.sharding))
    # As decimals that read back to the same number.
    Path(file).write_text(json.dumps(figures, default=np.ndarray.tolist))
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:5]), sys.argv[5])
