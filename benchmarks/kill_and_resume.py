"""A run of `vitfast train` that is killed again and again comes to the undisturbed run's bits.

    python benchmarks/kill_and_resume.py [--kills 20] [--seed 0]

needs `pip install vitspec[train]` and, on two cores, some five minutes. It trains a small model on
scikit-learn's digits twice: once undisturbed, and once killed with SIGKILL and started again with
the same command until it is done. The moments are drawn from the seed: in turn when a checkpoint is
being written (its unfinished folder is there), after some steps, and, every fifth time, while the
process starts up. Then weights, optimiser, random key, data order, metrics and export are compared,
bit for bit. Exit codes: 0 the same; 1 a difference, or a process that did not go on; 3 the run was
done before it had been killed so often.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

UNFINISHED = "*.orbax-checkpoint-tmp*"

TRAIN = [
    *("train", "--data", "digits", "--preset", "digits,num_layers=2", "--batch-size", "64"),
    *("--checkpoint-every", "4", "--evaluate-every", "30", "--log-every", "1", "--keep", "2"),
    "--quiet",
]


def main():
    """Both runs, a table, and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return compare(Path(folder), wanted.kills, random.Random(wanted.seed))


def compare(folder, kills, rng):
    """Make both runs in a folder; the exit code."""
    undisturbed, killed = folder / "undisturbed", folder / "killed"
    steps = 5 * kills + 40
    began = time.monotonic()
    start(undisturbed, folder, steps).communicate()
    seconds = time.monotonic() - began
    print(f"undisturbed: {steps} steps, {seconds:.1f} s\n", flush=True)
    print("| kill | when | step reached | checkpoints | unfinished |")
    print("| ---: | --- | ---: | --- | --- |")
    saves = 0
    for number in range(1, kills + 1):
        before = left(killed)[1]
        process = start(killed, folder, steps)
        when = kill_sometime(process, killed, number, rng)
        error = process.communicate()[1]
        if process.returncode != -signal.SIGKILL:
            print(f"\nprocess {number} ended with {process.returncode} {when}\n{error[-2000:]}")
            return 3 if process.returncode == 0 else 1
        whole, unfinished = left(killed)
        saves += bool(unfinished.items() - before.items())
        print(
            f"| {number} | {when} | {steps_done(killed)} | {' '.join(map(str, whole))} | "
            f"{' '.join(unfinished.keys() if unfinished != before else ())} |",
            flush=True,
        )
    process = start(killed, folder, steps)
    error = process.communicate()[1]
    if process.returncode:
        print(f"\nthe last process ended with {process.returncode}\n{error[-2000:]}")
        return 1
    print(f"\nkilled {kills} times, {saves} of them in a save; resumed, and done")
    found = differences(undisturbed, killed, steps)
    print("differences: " + ("; ".join(found) or "none, bit for bit"))
    return 1 if found else 0


def start(run, folder, steps):
    """A process that begins the run, or goes on with it."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),  # so that it starts sooner
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    main = "import sys; from vitfast.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", main, *TRAIN, "--steps", str(steps)]
    return subprocess.Popen(
        [*command, "--run-directory", str(run)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_sometime(process, run, number, rng):
    """Kill it at a moment of its kind, unless it is done before; says when."""
    stale = left(run)[1]
    if number % 5 == 0:
        seconds = rng.uniform(0, 4)
        wait(process, lambda: False, seconds)
        when = f"{seconds:.1f} s after its start"
    elif number % 2:
        delay = rng.uniform(0, 0.05)
        wait(process, lambda: left(run)[1].items() - stale.items())
        when = f"{1000 * delay:.0f} ms into a save"
        time.sleep(delay)
    else:
        first, more = steps_done(run), rng.randrange(1, 9)
        wait(process, lambda: steps_done(run) >= first + more)
        time.sleep(rng.uniform(0, 0.05))
        when = f"after {more} more steps"
    process.kill()
    return when


def wait(process, happened, seconds=600.0):
    """Until it has happened, or the time is over, or the process."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end and not happened():
        time.sleep(0.002)


def left(run):
    """The steps of checkpoints that are whole; of those that are not, name and last change."""
    folder = run / "checkpoints"
    whole = sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())
    unfinished = {}
    for path in folder.glob(UNFINISHED):
        with suppress(FileNotFoundError):  # it has just got its name
            unfinished[path.name] = path.stat().st_mtime_ns
    return whole, unfinished


def steps_done(run):
    """The last step whose metrics are written."""
    records = metrics(run)
    return records[-1]["step"] if records else 0


def metrics(run):
    """The records of a run, but for its speed; a line that is being written is left out."""
    path = run / "metrics.jsonl"
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:
            break
        records.append({k: v for k, v in record.items() if k != "images_per_second"})
    return records


def differences(one, other, steps):
    """What two runs that are done do not have in common."""
    found = []
    (arrays, progress), (others, other_progress) = (last_checkpoint(run) for run in (one, other))
    if arrays.keys() != others.keys() or int(others["step"]) != steps:
        found.append("the arrays that are saved")
    else:
        found += [
            name for name, array in arrays.items() if array.tobytes() != others[name].tobytes()
        ]
    if progress != other_progress:
        found.append("progress")
    if metrics(one) != metrics(other):
        found.append("metrics.jsonl")
    for name in sorted(path.name for path in (one / "export").iterdir()):
        if (one / "export" / name).read_bytes() != (other / "export" / name).read_bytes():
            found.append(f"export/{name}")
    return found


def last_checkpoint(run):
    """Its arrays by name, and its progress."""
    import jax
    import numpy as np

    from vitfast.training.run_checkpoints import RunCheckpoints

    checkpoints = RunCheckpoints(run / "checkpoints")
    contents = checkpoints.folder / str(checkpoints.steps()[-1]) / "contents.json"
    described = json.loads(contents.read_text())["arrays"].items()
    like = {
        name: jax.ShapeDtypeStruct(shape, np.dtype(dtype)) for name, (dtype, shape) in described
    }
    arrays, progress = checkpoints.restore(like)
    return {name: np.asarray(array) for name, array in arrays.items()}, progress


if __name__ == "__main__":
    sys.exit(main())
