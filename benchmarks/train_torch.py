"""Time to the same accuracy: vitfast and PyTorch train the same model on the same images.

    python benchmarks/train_torch.py digits [--json FILE]
    python benchmarks/train_torch.py fashion-mnist --minutes 15 [--json FILE]

Both begin with the same weights (a checkpoint that both load), see the same batches, which are
prepared before the clock starts, and take the recipe's AdamW, schedule, clipping and label
smoothing, in float32. PyTorch's side is transformers' ViTForImageClassification with its fastest
attention (sdpa) and torch.optim's fused AdamW; --compile adds it under torch.compile.

Each has a process of its own, which stays, and as many threads. At any time one of them runs and
the others are stopped; they take turns, a quarter of an epoch each, in changing order, so that what
the machine does besides hits all alike. What counts is training, the first step with its
compilation included; evaluations, after every epoch, do not. CPU time is that of all threads of the
process. The losses of the first steps are compared, to show that it is the same training.

Needs PyTorch, transformers, and the extra `train`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from training_sides import SIDES, work

COMPARED = 20
"""Losses of first steps that are compared."""

VISITS = 4
"""Parts of an epoch in which the processes take turns."""


class Row:
    """One side: its process, and what it has come to."""

    def __init__(self, name, *settings):
        context = get_context("spawn")
        self.name, self.failed, self.reached = name, "", None
        self.wall = self.cpu = self.others = self.first_wall = self.first_cpu = 0.0
        self.done, self.losses, self.evaluations = 0, [], []
        self.connection, theirs = context.Pipe()
        arguments = (theirs, name, *settings)
        self.process = context.Process(target=work, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        with self.running():
            self.answer()

    @contextmanager
    def running(self):
        """Let the process run, and stop it again; one that has ended is left for `answer`."""
        try:
            self.signal(signal.SIGCONT)
            yield
        finally:
            self.signal(signal.SIGSTOP)

    def signal(self, number):
        """Send it, if there is anybody."""
        if self.process.is_alive():
            os.kill(self.process.pid, number)

    def answer(self):
        """What the process says; None if it has failed."""
        try:
            found = self.connection.recv()
        except EOFError:
            found = RuntimeError("its process has ended")
        if isinstance(found, Exception):
            self.failed = str(found).strip().splitlines()[0]
            return None
        return found

    def train(self, count):
        """So many steps, which count."""
        with self.running():
            busy = machine_busy()
            self.connection.send(count)
            found = self.answer()
            busy = machine_busy() - busy
        if found is not None:
            wall, cpu, losses = found
            if not self.done:  # the first visit is of one step
                self.first_wall, self.first_cpu = wall, cpu
            self.others += max(0.0, busy - cpu)
            self.wall, self.cpu, self.done = self.wall + wall, self.cpu + cpu, self.done + count
            self.losses += losses

    def evaluate(self, target, per_epoch):
        """The accuracy now, and whether it is that which was wanted."""
        with self.running():
            self.connection.send(None)
            found = self.answer()
        if found is not None:
            now = {"epoch": round(self.done / per_epoch, 1), "wall": self.wall, "cpu": self.cpu,
                   "accuracy": found}  # fmt: skip
            self.evaluations.append(now)
            if found >= target:
                self.reached = now
            say = "{epoch}, {accuracy:.2%}, {wall:.1f} s of training ({cpu:.1f} s of CPU)"
            print(f"{self.name}: epoch", say.format(**now), file=sys.stderr, flush=True)

    def end(self):
        """End the process, which ends when nobody asks anything more."""
        self.connection.close()
        self.signal(signal.SIGCONT)
        self.process.join(20)
        self.process.kill()
        self.process.join()

    def cells(self, batch_size):
        """Its figures, for the table."""
        if self.failed:
            return [f"failed: {self.failed}", *[""] * 7]
        images, at = (self.done - 1) * batch_size, self.reached
        walls, cpus = self.wall - self.first_wall, self.cpu - self.first_cpu
        if at is None:
            best = max((one["accuracy"] for one in self.evaluations), default=0.0)
            at = {"epoch": f"not in {self.done} steps", "wall": self.wall, "cpu": self.cpu,
                  "accuracy": best}  # fmt: skip
        return [f"{images / max(walls, 1e-9):,.0f}", f"{images / max(cpus, 1e-9):,.0f}",
                f"{self.first_wall:.1f}", f"{self.first_cpu:.1f}", str(at["epoch"]),
                f"{at['wall']:.1f}", f"{at['cpu']:.1f}", f"{at['accuracy']:.2%}"]  # fmt: skip


def machine_busy():
    """Seconds that the machine's cores have worked, where the system says so."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            user, nice, system, _, _, irq, softirq, *_ = map(int, file.readline().split()[1:])
    except OSError:
        return 0.0
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def prepare(source, recipe, seed, folder):
    """Write the initial model and its image processor, and count the training images."""
    from vitfast.data import dataset_processor, load_dataset
    from vitfast.training.starting import fresh

    dataset = load_dataset(source)
    model = fresh(recipe.model, seed=seed, position_scale=recipe.position_scale)
    model.save_pretrained(folder / "model")
    dataset_processor(recipe.model, dataset).save_pretrained(folder / "model")
    return len(dataset.train)


def race(rows, target, per_epoch, steps, seconds):
    """Take turns until all have reached the target, or have trained for so long."""
    for row in rows:
        row.train(1)
    turn = 0
    while left := [row for row in rows if not row.failed and row.reached is None
                   and row.wall < seconds and row.done < steps]:  # fmt: skip
        turn += 1
        for row in left if turn % 2 else reversed(left):
            part = min(math.ceil(per_epoch / VISITS), per_epoch - row.done % per_epoch)
            row.train(min(part, steps - row.done))
            over = row.done == steps or row.wall >= seconds
            if not row.failed and (over or row.done % per_epoch == 0):
                row.evaluate(target, per_epoch)


def report(rows, args, batch_size, versions):
    """The table, in Markdown."""
    print(
        f"\n{args.dataset}, batches of {batch_size}, float32, {args.threads} threads; {versions}\n"
    )
    columns = ("", "images/s", "images/CPU s", "first step: s", "CPU s",
               f"epochs to {args.target:.1%}", "s", "CPU s", "accuracy")  # fmt: skip
    print(f"| {' | '.join(columns)} |\n| ---{' | ---:' * 8} |")
    for row in rows:
        print(f"| {row.name} | {' | '.join(row.cells(batch_size))} |")
    running = [row for row in rows if not row.failed]
    if running:
        first = np.array([row.losses[:COMPARED] for row in running])
        apart = np.abs(first / first[0] - 1).max()
        print(f"\nThe losses of the first {first.shape[1]} steps agree to {apart:.0e}.")
    for row in running:
        share = row.others / max(row.wall * (os.cpu_count() or 1), 1e-9)
        print(f"Others took {share:.0%} of the machine while {row.name} trained.")


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", choices=["digits", "fashion-mnist"])
    parser.add_argument("--data", help="the data set's directory, if it is elsewhere than usual")
    parser.add_argument("--target", type=float, help="accuracy; 0.97 of digits, 0.9 of the other")
    parser.add_argument("--epochs", type=float, help="of the schedule; the recipe's by default")
    parser.add_argument("--minutes", type=float, default=10.0, help="of training, of each at most")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="also under torch.compile")
    parser.add_argument("--json", type=Path, help="write the figures and curves to this file")
    args = parser.parse_args()
    args.target = args.target or {"digits": 0.97, "fashion-mnist": 0.9}[args.dataset]
    return args


def main():
    """Run the comparison."""
    args = arguments()
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(args.threads))
    # Before any library reads it, here and in the processes.
    os.environ |= threads | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    from vitfast.data import Augmentation
    from vitfast.training.config import TrainConfig
    from vitfast.training.recipes import RECIPES, default_recipe

    recipe, source = RECIPES[default_recipe(args.dataset)], args.data or args.dataset
    given = {} if args.epochs is None else {"epochs": args.epochs}
    augmentation = Augmentation(**recipe.augmentation)
    config = TrainConfig(**{**recipe.training, **given, "augmentation": augmentation})
    assert (config.optimizer, config.schedule, config.accumulation) == ("adamw", "cosine", 1)
    affinity = getattr(os, "sched_getaffinity", lambda pid: ())
    cores = sorted(affinity(0))[: args.threads]
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        count = prepare(source, recipe, config.seed, folder)
        per_epoch = math.ceil(count / config.batch_size)
        steps = config.total_steps(count)
        try:
            for name in SIDES:
                if args.compile or name != "torch.compile":
                    rows.append(Row(name, source, folder, config, steps, cores))
            race(rows, args.target, per_epoch, steps, 60 * args.minutes)
        finally:
            for row in rows:
                row.end()
    packages = ("jax", "optax", "torch", "transformers")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    report(rows, args, config.batch_size, versions)
    if args.json:
        kept = ("name", "failed", "first_wall", "first_cpu", "done", "wall", "cpu", "others",
                "reached", "evaluations", "losses")  # fmt: skip
        found = {
            "dataset": args.dataset, "target": args.target, "threads": args.threads, "steps": steps,
            "model": asdict(recipe.model), "config": config.to_dict(), "versions": versions,
            "rows": [{name: getattr(row, name) for name in kept} for row in rows],
        }  # fmt: skip
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
