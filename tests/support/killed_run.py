"""A run of training that is killed at given moments and resumed, until it is done.

    python killed_run.py FOLDER

makes the run in FOLDER/killed, killed once at each of `MOMENTS`, and the same in
FOLDER/undisturbed, and writes FOLDER/deaths.json: of each process its moment, and the signal that
ended it. The processes are copies of this one, which has imported all that takes long, but used no
device.
"""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import jax
import orbax.checkpoint  # noqa: F401 - once for all copies

from support import noise_run

TRAINING = replace(noise_run.TRAINING, steps=12, batch_size=8, keep=1)

MOMENTS = {
    "a checkpoint is being written": [("os.mkdir", "checkpoints/6.orbax-checkpoint-tmp/state")],
    "an old one is being removed": [("shutil.rmtree", "checkpoints/6"), ("os.rmdir", "")],
    "between checkpoints": [("step", "11")],
}
"""What happens until then: calls to the system whose arguments have the text in them, or a step."""


def run(folder, moment):
    """The run, which is killed at the moment, if there is one."""
    left = list(moment)

    def happens(name, *arguments):
        if left and name == left[0][0] and any(left[0][1] in str(one) for one in arguments):
            left.pop(0)
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(lambda name, arguments: happens(name, *arguments))
    noise_run.train(folder, "float32", TRAINING, on_step=lambda step, _: happens("step", step))


def in_a_copy(folder, moment):
    """Run in a copy of this process; the signal that killed it, or 0."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        run(folder, moment)
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def main(folder):
    """Both runs."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_disable_most_optimizations", True)  # compiles sooner
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    deaths = {}
    for name, moment in MOMENTS.items():
        deaths[name] = in_a_copy(folder / "killed", moment)
    deaths["resumed"] = in_a_copy(folder / "killed", [])
    deaths["undisturbed"] = in_a_copy(folder / "undisturbed", [])
    (folder / "deaths.json").write_text(json.dumps(deaths))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
