"""A run does not depend on how many processes and devices make it, nor on their number changing."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from support import distributed_run
from support.compare import assert_close, assert_flat_close
from vitfast.sharding import NoSharding, ViTSharding, make_mesh
from vitfast.training.run_checkpoints import RunCheckpoints
from vitfast.training.run_checkpoints.leaves import named_leaves
from vitfast.training.run_checkpoints.seal import read_seal

TOLERANCE = 1e-12

SECONDS = 300
"""After which the processes hang; they need some ten, on a machine with nothing else to do."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def float64():
    """And programs that compile sooner."""
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.enable_x64(True):
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def alone(folder, float64):
    """The run as one device makes it: its result, and its losses."""
    result = distributed_run.train(folder / "alone", NoSharding())
    assert result.steps == 6
    return named_arrays(result.model), losses(folder / "alone"), result.test_loss


def named_arrays(state):
    return {name: np.asarray(array) for name, array in named_leaves(state).items()}


@pytest.fixture(scope="module")
def together(folder, alone):
    """The figures of each of two processes of four devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    try:
        for rank in range(2):
            words = [rank, 2, port, 4, folder]
            with (folder / f"{rank}.log").open("w") as log:
                command = [sys.executable, distributed_run.__file__, *map(str, words)]
                environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
                processes.append(
                    subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
                )
        codes = wait(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    logs = "\n".join((folder / f"{rank}.log").read_text()[-3000:] for rank in range(2))
    assert codes == [0, 0], logs
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def wait(processes):
    """Their exit codes; when one fails, the others would wait for it in vain, and get None."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        codes = [process.poll() for process in processes]
        if any(codes) or None not in codes:
            return codes
        time.sleep(0.1)
    return [process.poll() for process in processes]


def losses(run):
    """The loss of each step, as the run has recorded it."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["train_loss"] for line in lines if "train_loss" in line]


def test_two_processes_train_as_one(folder, alone, together):
    """Losses and weights, with the images of each batch shared out between them."""
    weights, of_steps, test_loss = alone
    assert len(of_steps) == 6
    assert_close(losses(folder / "together"), of_steps, TOLERANCE, "losses")
    for figures in together:
        assert figures["devices"] == [4, 8]
        assert_close(figures["test_loss"], test_loss, TOLERANCE, "test loss")
        assert figures["trained"].keys() == weights.keys()
        for name, part, truth in parts(figures["trained"], weights):
            assert_close(part, truth, TOLERANCE, name)


def parts(figures, whole):
    """What a process has of each array, and the same of the truth."""
    for name, those in figures.items():
        for cuts, values in those:
            yield name, np.asarray(values), whole[name][tuple(slice(*cut) for cut in cuts)]


def test_two_processes_read_what_one_wrote(folder, together):
    """Bit for bit, each its part, however it is cut."""
    checkpoints = RunCheckpoints(folder / "alone" / "checkpoints")
    described = read_seal(checkpoints.folder / "6")["arrays"]
    like = {name: jax.ShapeDtypeStruct(shape, np.dtype(dtype))
            for name, (dtype, shape) in described.items()}  # fmt: skip
    written = named_arrays(checkpoints.restore(like)[0])
    for figures in together:
        assert figures["read"].keys() == written.keys()
        for name, part, truth in parts(figures["read"], written):
            assert np.array_equal(part, truth), name


@pytest.mark.parametrize("devices", [4, 1])
@pytest.mark.usefixtures("together", "float64")
def test_eight_devices_checkpoint_continues(folder, tmp_path, alone, devices):
    """On four, and on one without a mesh: the same losses and weights as if nothing had changed."""
    run = shutil.copytree(folder / "together", tmp_path / "run")
    if devices == 1:
        result = distributed_run.train(run, NoSharding(), resume_from=3)
    else:
        with jax.set_mesh(make_mesh(fsdp=devices, devices=jax.devices()[:devices])):
            result = distributed_run.train(run, ViTSharding(), resume_from=3)
            assert len(result.model.cls_token.get_value().sharding.device_set) == devices
    assert losses(run)[:3] == losses(folder / "together")[:3]
    assert_close(losses(run), alone[1], TOLERANCE, "losses")
    assert_flat_close(named_arrays(result.model), alone[0], TOLERANCE)
