"""How small an error in a gradient each tool sees, and what it costs, on one and the same ViT.

    python benchmarks/sensitivity.py [--json FILE] [--markdown FILE]

One encoder block with its patches, positions and head, parameters and image drawn at random. The
gradient of one weight (`encoder.layers.0.ffn.w1`) is bent: either a single entry (the one of median
size) or the whole tensor is multiplied by 1 + e. The smallest e that a tool objects to, with its
own default tolerances, is found by bisection; before that it must accept the right gradient.

- PyTorch's `torch.autograd.gradcheck`, float64, in its slow and its fast mode: the model made of
  PyTorch's modules.
- JAX's `jax.test_util.check_grads`, reverse mode, float64 and float32: the model in plain JAX.
- vitspec: one trial of `vitspec check` (forward and all gradients) on both of these; and by the
  rule of version 0.5 (`rule_of_0_5.py`).

It needs the extras `fast` and `interop`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rule_of_0_5 import conformed, prices_of_0_5

from vitspec import ViTConfig
from vitspec.testing.adapters.peers import jax_vit, torch_vit_training
from vitspec.testing.adapters.peers.plain_jax import plain_jax_vit
from vitspec.testing.adapters.peers.torch_modules import torch_encoder_vit
from vitspec.testing.families import Case
from vitspec.testing.implementations import Subject
from vitspec.testing.report import write_atomically, write_json
from vitspec.testing.results import environment
from vitspec.testing.settings import Settings
from vitspec.testing.suites.suite import against_the_truth
from vitspec.testing.trial import Trial, case_trial

CONFIG = ViTConfig(
    patch_h=4, patch_w=4, stride=4, padding=0,
    embed_dim=24, hidden_dim=48, head_count=3, num_layers=1, num_classes=10,
)  # fmt: skip
CASE = Case("vit", CONFIG, in_channels=3, height=8, width=12, seed=0, batch=2)
BENT = "encoder.layers.0.ffn.w1"
LOWEST = 1e-18
"""The smallest error that is tried."""
STEPS = 10
"""Bisections within the power of ten where a tool begins to object: to 0.2 %."""

Bend = Callable[[Any], Any]
"""A gradient of `BENT`, as NumPy's (D, F) array -> the bent one."""
Tool = Callable[[Bend], bool]
"""Whether the tool accepts the gradients."""


@dataclass(frozen=True)
class Row:
    """One tool: the smallest relative errors that it sees (None: not even 1), and its time."""

    tool: str
    dtype: str
    entry: float | None
    tensor: float | None
    seconds: float


def bend_entry(error: float) -> Bend:
    """Multiply the entry of median size by 1 + error."""

    def bend(gradient: Any) -> Any:
        bent = np.array(gradient, order="C")  # so that reshape is a view
        index = np.argsort(np.abs(bent), axis=None)[bent.size // 2]
        bent.reshape(-1)[index] *= 1 + error
        return bent

    return bend


def bend_tensor(error: float) -> Bend:
    """Multiply all entries by 1 + error."""
    return lambda gradient: np.asarray(gradient) * np.asarray(1 + error, gradient.dtype)


def smallest_seen(tool: Tool, make: Callable[[float], Bend]) -> float | None:
    """The smallest error that the tool objects to, going down from 1 and then by bisection."""
    seen = None
    error = 1.0
    while error >= LOWEST and not tool(make(error)):
        seen, error = error, error / 10
    if seen is None or error < LOWEST:
        return seen
    accepted = error
    for _ in range(STEPS):
        middle = (accepted * seen) ** 0.5
        accepted, seen = (middle, seen) if tool(make(middle)) else (accepted, middle)
    return seen


def measure(name: str, dtype: str, tool: Tool) -> Row:
    """One tool's row; its time is that of one call that accepts, after a first one."""
    right: Bend = lambda gradient: np.asarray(gradient)  # noqa: E731
    if not tool(right):
        raise SystemExit(f"{name} ({dtype}) rejects the right gradient")
    start = time.perf_counter()
    tool(right)
    seconds = time.perf_counter() - start
    print(f"{name} ({dtype}): {seconds:.2f} s a call", flush=True)
    entry, tensor = smallest_seen(tool, bend_entry), smallest_seen(tool, bend_tensor)
    return Row(name, dtype, entry, tensor, seconds)


# ---- the tools -----------------------------------------------------------------------------------


def torch_gradcheck(fast: bool) -> Tool:
    """`torch.autograd.gradcheck` over all parameters and the images."""
    import torch

    torch.set_num_threads(1)  # a model this small gains nothing from more

    module = torch_encoder_vit(CONFIG, *CASE.image_shape, cls=False).double()
    names = [name for name, _ in module.named_parameters()]
    values = [p.detach().clone() for p in module.parameters()]
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(v.shape, generator=generator, dtype=v.dtype) * 0.3 for v in values]
    theirs = next(name for name in names if name.endswith("linear1.weight"))

    def accepts(bend: Bend) -> bool:
        class Bent(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, weight: Any) -> Any:
                return weight.clone()

            @staticmethod
            def backward(ctx: Any, gradient: Any) -> Any:
                return torch.from_numpy(bend(gradient.detach().numpy()))

        def model_of(images: Any, *parameters: Any) -> Any:
            named = dict(zip(names, parameters, strict=True))
            named[theirs] = Bent.apply(named[theirs])
            return torch.func.functional_call(module, named, (images,))

        images = torch.tensor(CASE.images(), requires_grad=True)
        leaves = [v.clone().requires_grad_() for v in values]
        return torch.autograd.gradcheck(
            model_of, (images, *leaves), fast_mode=fast, raise_exception=False
        )

    return accepts


def jax_check_grads(dtype: str) -> Tool:
    """`jax.test_util.check_grads` in reverse mode over all parameters and the images."""
    import jax
    import jax.test_util

    flat = {n: a.astype(dtype) for n, a in CASE.model().to_flat().items()}
    images = CASE.images().astype(dtype)

    def accepts(bend: Bend) -> bool:
        @jax.custom_vjp
        def bent(weight: Any) -> Any:
            return weight

        def backward(_: Any, gradient: Any) -> Any:
            shape = jax.ShapeDtypeStruct(gradient.shape, gradient.dtype)
            return (jax.pure_callback(lambda g: bend(np.asarray(g)), shape, gradient),)

        bent.defvjp(lambda weight: (weight, None), backward)

        def model_of(params: Any, images: Any) -> Any:
            bent_params = params | {BENT: bent(params[BENT])}
            return plain_jax_vit(CONFIG, bent_params, images, cls=False)["logits"]

        with jax.enable_x64(dtype == "float64"):
            try:
                jax.test_util.check_grads(model_of, (flat, images), order=1, modes=["rev"])
            except AssertionError:
                return False
        return True

    return accepts


def bent_trial(implementation: Any, dtype: str, bend: Bend) -> Trial:
    """The trial of an implementation whose gradient of `BENT` is bent."""

    class Bent:
        name, version, spec = "bent", "0", "vit"

        def forward(self, *arguments: Any) -> Any:
            return implementation.forward(*arguments)

        def vjp(self, *arguments: Any) -> Any:
            d_params, d_images = implementation.vjp(*arguments)
            return dict(d_params) | {BENT: bend(np.asarray(d_params[BENT]))}, d_images

    Bent.dtype = dtype  # type: ignore[attr-defined]
    return case_trial(Subject(Bent(), dtype), CASE)


def vitspec_trial(implementation: Any, dtype: str) -> Tool:
    """The forward and every gradient of one case of `vitspec check`, truth and noise included."""

    def accepts(bend: Bend) -> bool:
        results = against_the_truth(bent_trial(implementation, dtype, bend), Settings())
        return all(result.status == "passed" for result in results)

    return accepts


def rule_of_0_5(implementation: Any, dtype: str) -> Tool:
    """The same by the rule of version 0.5."""

    def accepts(bend: Bend) -> bool:
        trial = bent_trial(implementation, dtype, bend)
        return conformed(trial, prices_of_0_5(trial, CASE.seed))

    return accepts


def rows() -> list[Row]:
    """Every tool, one after the other."""
    return [
        measure("torch gradcheck, slow", "float64", torch_gradcheck(fast=False)),
        measure("torch gradcheck, fast", "float64", torch_gradcheck(fast=True)),
        measure("jax check_grads", "float64", jax_check_grads("float64")),
        measure("jax check_grads", "float32", jax_check_grads("float32")),
        measure("vitspec, of PyTorch", "float64", vitspec_trial(torch_vit_training, "float64")),
        measure("vitspec, of PyTorch", "float32", vitspec_trial(torch_vit_training, "float32")),
        measure("vitspec 0.5, of PyTorch", "float32", rule_of_0_5(torch_vit_training, "float32")),
        measure("vitspec, of JAX", "float64", vitspec_trial(jax_vit, "float64")),
        measure("vitspec, of JAX", "float32", vitspec_trial(jax_vit, "float32")),
    ]


# ---- showing -------------------------------------------------------------------------------------


def cells(row: Row, slow: Row) -> list[str]:
    """A row as text; times also as a fraction of slow gradcheck's."""
    seen = [f"{e:.1e}" if e is not None else "none" for e in (row.entry, row.tensor)]
    return [row.tool, row.dtype, *seen, f"{row.seconds:.2f}", f"{row.seconds / slow.seconds:.3f}"]


HEADINGS = ("tool", "precision", "one entry", "whole tensor", "seconds", "of slow gradcheck's")


def markdown(all_rows: list[Row]) -> str:
    """The table as Markdown."""
    lines = [HEADINGS, ["---", "---", *["---:"] * 4], *(cells(r, all_rows[0]) for r in all_rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main() -> None:
    """Measure, print, and write the files that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    all_rows = rows()
    from rich.console import Console
    from rich.table import Table

    table = Table(title="the smallest relative error seen in the gradient of one weight")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "tool" else "right")
    for row in all_rows:
        table.add_row(*cells(row, all_rows[0]))
    Console().print(table)
    if arguments.json:
        data = {"schema": "vitspec-sensitivity/1", "environment": environment()}
        write_json(arguments.json, data | {"rows": [asdict(row) for row in all_rows]})
    if arguments.markdown:
        write_atomically(arguments.markdown, markdown(all_rows))


if __name__ == "__main__":
    main()
