"""Several processes, each with some of the devices, train as one process does with all of them."""

import json
import os
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from support import training_run
from support.compare import assert_close, assert_flat_close
from support.meshes import LAYOUTS
from vitfast.sharding import NoSharding

TOLERANCE = 1e-12

SECONDS = 300
"""After which the processes hang; they need some fifteen, on a machine with nothing else to do."""


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The figures of each of two processes of four devices."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    try:
        for rank in range(2):
            words = [rank, 2, port, 4, folder / f"{rank}.json"]
            with (folder / f"{rank}.log").open("w") as log:
                command = [sys.executable, training_run.__file__, *map(str, words)]
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


@pytest.fixture(scope="module")
def alone():
    """The figures of one device."""
    with jax.enable_x64(True):
        return training_run.train(NoSharding(), *training_run.whole_batch())


@pytest.mark.parametrize("name", training_run.LAYOUT_NAMES)
def test_two_processes_train_as_one(together, alone, name):
    """Losses, the last step's gradients and the parameters after it: those of one process with as
    many devices, and those of one device."""
    layout = LAYOUTS[name]
    with jax.enable_x64(True), layout.set():
        devices = training_run.train(layout.sharding, *training_run.whole_batch())
    assert alone["losses"][-1] < alone["losses"][0]
    for figures in together:
        assert figures["devices"] == [4, 8]
    for found in (devices, *(figures[name] for figures in together)):
        assert_close(found["losses"], alone["losses"], TOLERANCE, "losses")
        for key in ("gradients", "parameters"):
            values = {name: np.asarray(array) for name, array in found[key].items()}
            assert_flat_close(values, alone[key], TOLERANCE)
