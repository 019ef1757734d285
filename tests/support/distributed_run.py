"""The run of `noise_run` in float64; as a script, one process of several that make it together.

    python distributed_run.py RANK PROCESSES PORT DEVICES FOLDER

joins the others at the port, with so many devices of its own, makes the run in FOLDER/together, and
reads the checkpoint of a run in FOLDER/alone, as one process wrote it, onto all devices.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from support import noise_run
from vitfast.sharding import ViTSharding, make_mesh
from vitfast.training.run_checkpoints import RunCheckpoints
from vitfast.training.run_checkpoints.leaves import named_leaves
from vitfast.training.run_checkpoints.seal import read_seal


def train(folder, sharding, **options):
    """The run on the mesh that is set, or what is left of it."""
    return noise_run.train(folder, "float64", sharding=sharding, **options)


def read(checkpoints):
    """The arrays in the last checkpoint of a run, each cut over the mesh that is set."""
    mesh = jax.sharding.get_mesh()
    found = RunCheckpoints(checkpoints)
    like = {}
    for name, (dtype, shape) in read_seal(checkpoints / str(found.steps()[-1]))["arrays"].items():
        cut = [n % mesh.size == 0 for n in shape]
        spec = PartitionSpec(
            *("fsdp" if c and not any(cut[:i]) else None for i, c in enumerate(cut))
        )
        like[name] = jax.ShapeDtypeStruct(
            shape, np.dtype(dtype), sharding=NamedSharding(mesh, spec)
        )
    return found.restore(like)[0]


def parts(arrays):
    """What this process has of each: where in it, and what."""
    return {
        name: [
            ([[cut.start, cut.stop] for cut in shard.index], np.asarray(shard.data))
            for shard in array.addressable_shards
        ]
        for name, array in arrays.items()
    }


def main(rank, processes, port, devices, folder):
    """Take part, and write down what this process has of the model, and of what it read."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)  # compiles sooner
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, rank)
    with jax.set_mesh(make_mesh(fsdp=-1)):
        result = train(folder / "together", ViTSharding())
        figures = {
            "devices": [jax.local_device_count(), jax.device_count()],
            "trained": parts(named_leaves(result.model)),
            "read": parts(read(folder / "alone" / "checkpoints")),
            "test_loss": result.test_loss,
        }
    # As decimals that read back to the same number.
    text = json.dumps(figures, default=np.ndarray.tolist)
    (folder / f"{rank}.json").write_text(text)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:5]), Path(sys.argv[5]))
