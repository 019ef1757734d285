"""What a training step will need on a mesh of any size, planned from shapes: nothing is allocated.

    job = Job(SIZES["vit-22b"], batch=4096, fsdp=32, model=8, remat=True)
    footprint(job)      bytes that each device holds
    collectives(job)    what the devices send one another
    operations(job)     products and passes over memory, with their FLOPs and bytes
    predict(job, DEVICES["h200"])   a step's time, by ceilings

`tests/fast/test_plan.py` holds each of these to what JAX and XLA say of a small model of the same
structure; `vitfast plan --compiled` does so for any other.
"""

from vitfast.plan.devices import DEVICES, Device
from vitfast.plan.job import SIZES, Job
from vitfast.plan.memory import Footprint, footprint
from vitfast.plan.network import Collective, collectives
from vitfast.plan.prediction import Prediction, predict
from vitfast.plan.search import NoMesh, best_mesh
from vitfast.plan.work import Operation, model_flops, operations

__all__ = [
    "DEVICES",
    "SIZES",
    "Collective",
    "Device",
    "Footprint",
    "Job",
    "NoMesh",
    "Operation",
    "Prediction",
    "best_mesh",
    "collectives",
    "footprint",
    "model_flops",
    "operations",
    "predict",
]
