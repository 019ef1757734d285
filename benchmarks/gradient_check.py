"""What a checked step costs: its time against that of a step, for models of several sizes.

    python benchmarks/gradient_check.py [--model NAME] [--batch N] [--every N] [--first]

For each model, freshly initialised, on random images: the processor time of the step's program
(loss and gradients of a batch, compiled before), that of a check of one image of it (the second
one: the first compiles), what the check spends it on, and its share of the training time if every
N-th step is checked. "images" is what the specification takes, in gradients of one image by the
step: with a batch of B, a check takes as long as 1 + images / B steps. Processor time adds up what
all threads take: with OMP_NUM_THREADS=1 and OPENBLAS_NUM_THREADS=1 the specification has one.

--first prints, instead, which entries of the catalogue the first check of a training run of the
small model catches, in float32, right after initialisation. It needs the extra `train`.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from flax import nnx

from vitfast import VisionTransformer, to_flat
from vitfast.training.gradient_check import GradientCheck
from vitfast.training.gradient_check.checking import steps
from vitfast.training.gradient_check.examples import examples_of
from vitfast.training.gradient_check.reference import Exact, Reference
from vitfast.training.objectives import Classification
from vitspec.presets import preset
from vitspec.testing.catalogue import Deviation
from vitspec.testing.diagnosis.search import Candidate, mistaken
from vitspec.testing.families import FAMILIES
from vitspec.testing.precision import PRECISIONS
from vitspec.vision_transformer_config import VisionTransformerConfig

SMALL = VisionTransformerConfig(
    image_h=28, image_w=28, in_channels=1, patch_h=4, patch_w=4, embed_dim=64, hidden_dim=128,
    head_count=4, num_layers=4, num_classes=10, layer_norm_eps=1e-6,
)  # fmt: skip

MODELS: dict[str, tuple[VisionTransformerConfig, int]] = {
    "small (28 x 28)": (SMALL, 128),
    "d2l": (preset("d2l"), 128),
    "ViT-Ti/16": (preset("deit-tiny"), 32),
    "ViT-B/16": (VisionTransformerConfig(), 8),
}
"""By name: the configuration, and the batch."""


def batch_of(config: VisionTransformerConfig, size: int) -> tuple[Any, Any]:
    """Random images and labels."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((size, config.image_h, config.image_w, config.in_channels))
    return images.astype(np.float32), rng.integers(0, config.num_classes, size, np.int32)


def cost(name: str, config: VisionTransformerConfig, size: int, every: int) -> None:
    """Print a model's row."""
    model, batch, key = VisionTransformer(config, rngs=nnx.Rngs(0)), batch_of(config, size), None
    if any(vars(config.dropout).values()):
        key = jax.random.key(0)
    program = jax.jit(lambda model, batch, key: steps.loss_and_gradients(model, batch, key))
    seconds = {}
    for what in ("compile", "step"):
        start = time.process_time()
        jax.block_until_ready(program(model, batch, key))
        seconds[what] = time.process_time() - start
    check = GradientCheck(config, Classification())
    for what in ("first", "check"):
        start = time.process_time()
        report = check.check(0, model, batch, key)
        seconds[what] = time.process_time() - start
    whole = sum(report.parts.values())
    part = {what: report.parts[what] / whole for what in report.parts}
    step, one = seconds["step"], seconds["check"]
    share = one / (one + every * step)
    images = one * (1 - part["step"]) / (step / size)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(model)) / 1e6
    print(
        f"| {name} | {parameters:.1f} M | {size} | {step:.3g} | {one:.3g} | {part['step']:.0%} | "
        f"{part['truth']:.0%} | {part['price']:.0%} | {images:.0f} | {report.grades[0].ratio:.2f} "
        f"| {share:.1%} |",
        flush=True,
    )


def first_check() -> None:
    """Print what the first check of a run does not see, and what it sees after one update."""
    config = replace(SMALL, dropout=preset("d2l").dropout)
    model, batch = VisionTransformer(config, rngs=nnx.Rngs(0)), batch_of(config, 8)
    examples = examples_of(model, batch, jax.random.key(0), Classification(), (0, 4))
    precision, rng = PRECISIONS["float32"], np.random.default_rng(0)
    flat = to_flat(model)
    fresh = Reference(config, flat, examples, Classification(), precision, rng)
    # As AdamW's first update does, at its usual learning rate.
    moved = {n: (p - 1e-3 * np.sign(fresh.truth[n])).astype(p.dtype) for n, p in flat.items()}
    later = Reference(config, moved, examples, Classification(), precision, rng)
    mistakes = FAMILIES["vision-transformer"].mistakes()
    missed = [one for one in mistakes if not all(caught(fresh, one))]
    print(f"caught right after initialisation: {len(mistakes) - len(missed)}")
    for one in missed:
        at_once, then = caught(fresh, one), caught(later, one)
        print(f"{one.name}: at once {at_once}, after one update {then}", flush=True)


def caught(reference: Reference, one: Deviation) -> list[bool]:
    """Whether a mistake is seen: with derivatives by hand, and with its own, if there are any."""
    verdicts, own = [], one.differentiated()
    for kind in [one] if own is None else [one, own]:
        planting = lambda kind=kind: mistaken(Candidate((kind,)))  # noqa: E731
        _, found = reference.gradients(Exact(), planting)
        verdicts.append(not reference.grades(found)[0].conforms)
    return verdicts


def main() -> None:
    """Print what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, action="append", help="all by default")
    parser.add_argument("--batch", type=int, help="images in a step, if not the model's")
    parser.add_argument("--every", type=int, default=100, help="how often a step is checked")
    parser.add_argument("--first", action="store_true", help="what the first check catches")
    given = parser.parse_args()
    if given.first:
        first_check()
        return
    print(
        "| model | parameters | batch | step, s | check, s | of it: step | truth | price | images "
        f"| worst / bound | share, every {given.every} |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in given.model or MODELS:
        config, size = MODELS[name]
        cost(name, config, given.batch or size, given.every)


if __name__ == "__main__":
    main()
