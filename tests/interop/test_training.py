"""PyTorch as an oracle of training: the losses of the first 50 steps, on real digits, in float64.

The other side is transformers' ViTForImageClassification, trained by torch.optim, from weights that
reach us through a checkpoint. The order of the images, the optimiser, its schedule, which weights
decay, clipping, label smoothing and accumulation are the same. What that takes:

    AdamW       torch: p <- (1 - rate decay) p, then p <- p - rate m' / (sqrt(v') + eps);
                optax: p <- p - rate (m' / (sqrt(v') + eps) + decay p), the same but for rounding.
                m' = m / (1 - beta1^t), v' = v / (1 - beta2^t), t from 1; eps = 1e-8 outside of the
                root. Defaults of the decay differ: 1e-2 in torch, 1e-4 in optax.
    SGD         torch: b <- momentum b + (gradient + decay p), b = 0 at first, p <- p - rate b:
                decay is added before the momentum; the rate of now multiplies all of b.
    schedule    the rate of update s, from 0, is schedule(s): that of LambdaLR, stepped after each.
                optax's linear ones divide int32 by int, which is float32 also where JAX has
                float64: `make_schedule` hands them the step as a float.
    clipping    optax: g c / norm if norm >= c. torch.nn.utils.clip_grad_norm_ divides by
                norm + 1e-6, so its steps are shorter by a factor of 1 - 1e-6 / norm.
    smoothing   (1 - e) of the label + e / K of every class in both, not e / (K - 1).
    decay       torch has groups of parameters, optax a mask: matrices decay, the patches' kernel
                also; biases, normalisations, positions and tokens do not.

A bias of keys has no gradient: what both sides make of it is rounding, 1e-19, which AdamW's eps
keeps from being an update. So it stays unless the type is float32.
"""

import math
from dataclasses import replace
from itertools import islice

import jax
import numpy as np
import pytest

from support.compare import relative_error
from vitfast import VisionTransformer
from vitfast.data import dataset_processor, load_dataset, train_batches
from vitfast.training import fit
from vitfast.training.config import TrainConfig
from vitfast.training.optimizers import make_optimizer, make_schedule
from vitfast.training.state import new_state
from vitfast.training.steps import make_update
from vitspec.testing.adapters.peers.torchvision_operators import declare_missing_operators
from vitspec.vision_transformer_config import VisionTransformerConfig

torch = pytest.importorskip("torch")
declare_missing_operators()  # transformers imports torchvision where there is one
transformers = pytest.importorskip("transformers", minversion="5.0")
pytest.importorskip("sklearn")

TOLERANCE = 1e-9
STEPS = 50
EACH = {"steps": STEPS, "batch_size": 32, "evaluate_every": 0}
CONFIGS = {
    "AdamW, cosine, warm-up, decay": TrainConfig(
        learning_rate=1e-2, schedule="cosine", warmup_steps=5, weight_decay=0.2, beta2=0.95, **EACH
    ),
    "SGD, momentum, linear, decay, clipping": TrainConfig(
        optimizer="sgd", learning_rate=0.1, momentum=0.9, schedule="linear", weight_decay=1e-2,
        clip_norm=0.5, **EACH
    ),
    "AdamW, smoothing, accumulation, clipping": TrainConfig(
        learning_rate=5e-3, label_smoothing=0.1, accumulation=4, clip_norm=1.0, **EACH
    ),
}  # fmt: skip
ADAMW, SGD, PARTS = CONFIGS


@pytest.fixture(scope="module")
def digits():
    """The data set, and the processor of the model's size."""
    dataset = load_dataset("digits")
    size = VisionTransformerConfig(image_h=8, image_w=8, in_channels=1, patch_h=4, patch_w=2)
    return dataset, dataset_processor(size, dataset)


@pytest.fixture(scope="module")
def batches(digits):
    """The first fifty batches that `fit` makes of them, into the second epoch."""
    dataset, processor = digits
    options = {"batch_size": 32, "seed": 0, "process_index": 0, "process_count": 1, "threads": 0}
    with train_batches(dataset.train, processor, **options) as found:
        return [
            (images.astype(np.float64), labels.astype(np.int64))
            for images, labels in islice(found, STEPS)
        ]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small ViT as transformers draws it, in float64, on disk."""
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        image_size=[8, 8], patch_size=[4, 2], num_channels=1, hidden_size=24, num_hidden_layers=2,
        num_attention_heads=3, intermediate_size=40, num_labels=10, attn_implementation="sdpa",
        initializer_range=0.2,  # 0.02 is for wide ones
    )  # fmt: skip
    transformers.ViTForImageClassification(config).double().save_pretrained(folder)
    return folder


# ---- PyTorch's side ------------------------------------------------------------------------------


def rate_at(config):
    """The learning rate over its peak, by step."""

    def rate(step):
        if step < config.warmup_steps:
            return (step + 1) / (config.warmup_steps + 1)
        part = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
        return {"constant": 1, "linear": 1 - part, "cosine": (1 + math.cos(math.pi * part)) / 2}[
            config.schedule
        ]

    return rate


def optimizer_of(model, config, epsilon=1e-8, decays=None):
    """torch.optim's, with one group of parameters that decay and one of those that do not."""
    decays = decays or (
        lambda name, p: p.ndim > 1 and "position" not in name and "token" not in name
    )
    groups = [
        {
            "params": [p for n, p in model.named_parameters() if decays(n, p) == which],
            "weight_decay": config.weight_decay if which else 0.0,
        }
        for which in (True, False)
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, config.learning_rate, momentum=config.momentum)
    return torch.optim.AdamW(groups, config.learning_rate, (config.beta1, config.beta2), epsilon)


def clip(parameters, longest):
    """Without what clip_grad_norm_ adds to the norm."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    if norm > longest:
        for p in parameters:
            p.grad.mul_(longest / norm)


def losses_of_torch(folder, batches, config, clip=clip, **habits):
    """The loss of every batch before its update."""
    model = transformers.ViTForImageClassification.from_pretrained(folder, dtype=torch.float64)
    model.train()  # all rates of dropout are 0
    parameters = list(model.parameters())
    assert all(p.dtype == torch.float64 for p in parameters)
    optimizer = optimizer_of(model, config, **habits)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate_at(config))
    losses = []
    for images, labels in batches:
        optimizer.zero_grad()
        total = 0.0
        for rows in np.split(np.arange(len(labels)), config.accumulation):
            logits = model(torch.tensor(images[rows]).permute(0, 3, 1, 2)).logits
            loss = torch.nn.functional.cross_entropy(
                logits, torch.tensor(labels[rows]), label_smoothing=config.label_smoothing
            )
            (loss / config.accumulation).backward()
            total += loss.item() / config.accumulation
        if config.clip_norm is not None:
            clip(parameters, config.clip_norm)
        optimizer.step()
        schedule.step()
        losses.append(total)
    return np.array(losses)


# ---- our side ------------------------------------------------------------------------------------


def losses_of_ours(folder, batches, config):
    """The same, by the update that `fit` repeats."""
    with jax.enable_x64(True):
        model = VisionTransformer.from_pretrained(folder)
        assert model.param_dtype == np.float64
        schedule = make_schedule(config, STEPS)
        optimizer = make_optimizer(config, schedule)
        update = make_update(
            optimizer, config.to_objective(), accumulation=config.accumulation, schedule=schedule
        )
        state, losses = new_state(model, optimizer, config.seed), []
        for batch in batches:
            state, figures = update(state, batch)
            losses.append(float(figures["loss"]))
    return np.array(losses)


def losses_of_fit(folder, digits, config):
    """The same, by `fit` itself, which makes the batches anew."""
    losses = []
    with jax.enable_x64(True):
        model = VisionTransformer.from_pretrained(folder)
        dataset, processor = digits
        fit(
            model, dataset, config, processor=processor, quiet=True,
            on_step=lambda step, values: losses.append(values["loss"]),
        )  # fmt: skip
    return np.array(losses)


@pytest.fixture(scope="module")
def ours(checkpoint, batches, digits):
    """Our losses, computed once for each configuration."""
    found = {}

    def losses(name):
        if name not in found and name == ADAMW:
            found[name] = losses_of_fit(checkpoint, digits, CONFIGS[name])
        elif name not in found:
            found[name] = losses_of_ours(checkpoint, batches, CONFIGS[name])
        return found[name]

    return losses


def departure(a, b):
    """The largest relative difference of two losses of the same step."""
    assert a.shape == b.shape == (STEPS,)
    return max(relative_error(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_fifty_steps_have_the_losses_of_pytorch(name, checkpoint, batches, ours):
    theirs = losses_of_torch(checkpoint, batches, CONFIGS[name])
    assert theirs[-5:].mean() < 0.5 * theirs[0]  # it learns
    assert departure(ours(name), theirs) <= TOLERANCE


HABITS = {
    "everything decays": (ADAMW, {}, {"decays": lambda name, p: True}),
    "no decay": (ADAMW, {"weight_decay": 0.0}, {}),
    "epsilon of 1e-7": (ADAMW, {}, {"epsilon": 1e-7}),
    "torch's default beta2": (ADAMW, {"beta2": 0.999}, {}),
    "warm-up from 0 to the peak in one step less": (ADAMW, {"warmup_steps": 4}, {}),
    "clip_grad_norm_": (SGD, {}, {"clip": torch.nn.utils.clip_grad_norm_}),
    "no momentum": (SGD, {"momentum": 0.0}, {}),
    "labels as they are": (PARTS, {"label_smoothing": 0.0}, {}),
}


@pytest.mark.parametrize("habit", HABITS)
def test_another_habit_is_seen(habit, checkpoint, batches, ours):
    """Each of these departs by more than a hundred times the tolerance."""
    name, fields, options = HABITS[habit]
    theirs = losses_of_torch(checkpoint, batches, replace(CONFIGS[name], **fields), **options)
    assert departure(ours(name), theirs) > 100 * TOLERANCE
