"""What makes a Vision Transformer slow under XLA on a CPU: one ingredient changed at a time.

    python benchmarks/xla_cpu.py [--size base] [--batch 8] [--repetitions 5] [--dump FOLDER]

Prints Markdown tables for docs/performance.md: the attention written in four ways, derivatives by
hand and by JAX, and what it costs to allocate anew what the last step freed. Repetitions are
interleaved, the fastest counts. With --dump, the compiled programs are written to a folder.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vitfast import PlainAttention, ViT, cross_entropy, make_tokamax_attention
from vitfast.allocator import keep_freed_memory
from vitspec import ViTConfig

WIDTHS = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}


def timed(tasks, repetitions):
    """For each task, seconds of wall time and of the system's time, and page faults."""
    best = dict.fromkeys(tasks, (float("inf"), 0.0, 0))
    for task in tasks.values():
        jax.block_until_ready(task())
    for _ in range(repetitions):
        for name, task in tasks.items():
            before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
            jax.block_until_ready(task())
            wall, after = (
                time.perf_counter() - start,
                resource.getrusage(resource.RUSAGE_SELF),
            )
            found = (wall, after.ru_stime - before.ru_stime, after.ru_minflt - before.ru_minflt)
            best[name] = min(best[name], found)
    return best


def attention(args):
    """The same attention, forward and with its gradient, as different programs."""
    width, heads = WIDTHS[args.size]
    shape = (args.batch, 196, heads, width // heads)
    rng = np.random.default_rng(0)
    rows = [jnp.asarray(rng.standard_normal(shape, np.float32)) for _ in range(4)]

    def einsum(q, k, v):
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(shape[-1])
        return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)

    forms = {
        "textbook einsum": einsum,
        "jax.nn.dot_product_attention": jax.nn.dot_product_attention,
        "Tokamax xla": make_tokamax_attention("xla"),
        "Tokamax xla_chunked": make_tokamax_attention("xla_chunked"),
        "plain, JAX's derivative": PlainAttention(custom_vjp=False),
        "plain, by hand": PlainAttention(),
    }
    tasks = {}
    for name, form in forms.items():
        forward = jax.jit(form).lower(*rows[:3]).compile()
        gradient = jax.jit(lambda q, k, v, d, form=form: jax.vjp(form, q, k, v)[1](d))
        gradient = gradient.lower(*rows).compile()
        dump(args, f"attention, {name}, forward", forward)
        dump(args, f"attention, {name}, gradient", gradient)
        tasks[name, "forward"] = lambda forward=forward: forward(*rows[:3])
        tasks[name, "gradient"] = lambda gradient=gradient: gradient(*rows)
    found = timed(tasks, 4 * args.repetitions)
    print(f"\nOne attention, {shape}, float32, ms:\n")
    print("| form | forward | forward + gradient |\n| --- | ---: | ---: |")
    for name in forms:
        times = (found[name, kind][0] * 1e3 for kind in ("forward", "gradient"))
        print(f"| {name} | " + " | ".join(f"{t:.1f}" for t in times) + " |")


def model_gradient(args, **options):
    """The value and gradient of the cross entropy, of parameters and images, and its program."""
    width, heads = WIDTHS[args.size]
    config = ViTConfig(
        patch_h=16, patch_w=16, stride=16, embed_dim=width, hidden_dim=4 * width, head_count=heads
    )
    model = ViT(config, in_channels=3, height=224, width=224, rngs=nnx.Rngs(0), **options)
    images = jnp.asarray(
        np.random.default_rng(0).standard_normal((args.batch, 224, 224, 3), np.float32)
    )
    labels = jnp.zeros(args.batch, int)

    def loss(model, images):
        return cross_entropy(model(images), labels)

    start = time.perf_counter()
    program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(model, images).compile()
    return (lambda: program(model, images)), program, time.perf_counter() - start


def derivatives(args):
    """Whole models that differ in who wrote the derivatives, and in their loop over the layers."""
    variants = {
        "by hand, straight line": {"scan_layers": False},
        "by hand, scan": {},
        "by hand, scan, gradient checkpointing": {"use_gradient_checkpointing": True},
        "JAX's, straight line": {"scan_layers": False, "custom_vjp": False},
        "JAX's, scan": {"custom_vjp": False},
    }
    tasks, programs, compile_seconds = {}, {}, {}
    for name, options in variants.items():
        tasks[name], programs[name], compile_seconds[name] = model_gradient(args, **options)
        dump(args, f"model, {name}", programs[name])
    found = timed(tasks, args.repetitions)
    print(f"\nValue and gradient, post-norm ViT-{args.size}, batch {args.batch}, float32:\n")
    print("| derivatives | ms | temporary MB | compile s |\n| --- | ---: | ---: | ---: |")
    for name in variants:
        temporary = programs[name].memory_analysis().temp_size_in_bytes / 1e6
        row = f"{found[name][0] * 1e3:.0f} | {temporary:.0f} | {compile_seconds[name]:.1f}"
        print(f"| {name} | {row} |")


def one_process(args):
    """The gradient in this process: wall ms, system's ms, page faults."""
    if args.keep and not keep_freed_memory():
        print("(no effect on this system)")
    task, _, _ = model_gradient(args, scan_layers=False)
    wall, system, faults = timed({"": task}, args.repetitions)[""]
    print(f"{wall * 1e3:.0f} | {system * 1e3:.0f} | {faults}")


def allocation(args):
    """The same program, in processes that return freed memory to the system and that keep it."""
    print(f"\nValue and gradient by hand, ViT-{args.size}, batch {args.batch}, freed memory:\n")
    print("| freed memory | ms | of which the system's CPU ms | page faults |")
    print("| --- | ---: | ---: | ---: |")
    for name, flags in (("returned", []), ("kept (`keep_freed_memory`)", ["--keep"])):
        command = [sys.executable, __file__, "--part", "one_process", *flags]
        command += ["--size", args.size, "--batch", args.batch, "--repetitions", args.repetitions]
        row = subprocess.run(map(str, command), check=True, capture_output=True, text=True).stdout
        print(f"| {name} | {row.strip()} |")


def dump(args, name, program):
    """Write a compiled program to the folder that was asked for."""
    if args.dump:
        args.dump.mkdir(parents=True, exist_ok=True)
        (args.dump / f"{name.replace(' ', '_').replace(',', '')}.txt").write_text(program.as_text())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=WIDTHS, default="base")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--dump", type=Path)
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--part", choices=["one_process"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part == "one_process":
        one_process(arguments)
    else:
        print(f"jax {jax.__version__}, {os.cpu_count()} cores")
        attention(arguments)
        allocation(arguments)
        keep_freed_memory()
        derivatives(arguments)
