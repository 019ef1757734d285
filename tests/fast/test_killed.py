"""A run that is killed, whenever it is, and resumed comes to what it would have come to anyway."""

import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from support import killed_run
from vitfast.training.run_checkpoints import RunCheckpoints
from vitfast.training.run_checkpoints.seal import read_seal

SECONDS = 300
"""After which the runs hang; they need some twelve, on a machine with nothing else to do."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder with both runs, and how each process ended."""
    folder = tmp_path_factory.mktemp("runs")
    done = subprocess.run(
        [sys.executable, killed_run.__file__, str(folder)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads((folder / "deaths.json").read_text())


def last_checkpoint(run):
    """The arrays of the last checkpoint by name, and the progress that is in it."""
    checkpoints = RunCheckpoints(run / "checkpoints")
    (step,) = checkpoints.steps()
    arrays = read_seal(checkpoints.folder / str(step))["arrays"]
    like = {
        name: jax.ShapeDtypeStruct(shape, np.dtype(dtype))
        for name, (dtype, shape) in arrays.items()
    }
    return checkpoints.restore(like)


def metrics(run):
    """The lines of the metrics, but for how fast it went."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


def test_each_was_killed_and_the_last_was_not(runs):
    """Otherwise the others would say nothing."""
    assert runs[1] == dict.fromkeys(killed_run.MOMENTS, -signal.SIGKILL) | {
        "resumed": 0,
        "undisturbed": 0,
    }


def test_the_same_weights_and_optimiser(runs):
    """Bit for bit, with what else a later step depends on."""
    (killed, killed_progress), (undisturbed, progress) = (
        last_checkpoint(runs[0] / name) for name in ("killed", "undisturbed")
    )
    assert killed["step"] == killed_run.TRAINING.steps
    assert {"model.head.weights", "opt_state.0.0.trace.head.weights", "key"} <= killed.keys()
    assert killed.keys() == undisturbed.keys()
    for name, array in undisturbed.items():
        assert np.array_equal(killed[name], array), name
        assert name in ("step", "key") or np.abs(array).max() > 0, name
    assert killed_progress == progress


def test_the_same_metrics(runs):
    """Each line once, with the same figures."""
    killed, undisturbed = (metrics(runs[0] / name) for name in ("killed", "undisturbed"))
    assert [line["step"] for line in killed if "train_loss" in line] == [*range(1, 13)]
    assert killed == undisturbed


def test_nothing_is_left_over(runs):
    """Of saves and removals that were cut off in the middle."""
    left, wanted = ({path.name for path in (runs[0] / name / "checkpoints").iterdir()}
                    for name in ("killed", "undisturbed"))  # fmt: skip
    assert left == wanted == {"12"}
