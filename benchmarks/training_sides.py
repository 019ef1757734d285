"""The two sides of `train_torch.py`, each in a process of its own: the same training.

A side has `train`, which takes batches (images (B, H, W, C) float32, labels (B,) int64) and gives
their losses, and `classify`, which gives the classes that it takes images for.
"""

from __future__ import annotations

import math
import os
import signal
import time

import numpy as np


class Vitfast:
    """`vitfast.training.make_update`, which `fit` repeats."""

    def __init__(self, folder, config, steps):
        import jax

        from vitfast import VisionTransformer
        from vitfast.training.optimizers import make_optimizer, make_schedule
        from vitfast.training.state import new_state
        from vitfast.training.steps import make_update

        schedule = make_schedule(config, steps)
        optimizer = make_optimizer(config, schedule)
        self.update = make_update(optimizer, config.to_objective(), schedule=schedule)
        model = VisionTransformer.from_pretrained(folder / "model")
        self.state = new_state(model, optimizer, config.seed)
        self.predict = jax.jit(lambda model, images: model(images).logits.argmax(axis=-1))

    def train(self, batches):
        """A step with each batch."""
        losses = []
        for batch in batches:
            self.state, figures = self.update(self.state, batch)
            losses.append(figures["loss"])
        return [float(loss) for loss in losses]

    def classify(self, images):
        """The class with the largest logit."""
        return np.asarray(self.predict(self.state.model, images))


class Transformers:
    """transformers' model and torch.optim."""

    compiled = False

    def __init__(self, folder, config, steps):
        import torch

        from vitspec.testing.adapters.peers.torchvision_operators import declare_missing_operators

        declare_missing_operators()
        from transformers import ViTForImageClassification

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        self.torch, self.config = torch, config
        load = ViTForImageClassification.from_pretrained
        self.model = load(folder / "model", attn_implementation="sdpa").train()
        self.call = torch.compile(self.model) if self.compiled else self.model
        rests, decays = [], []
        for name, p in self.model.named_parameters():
            matrix = p.ndim > 1 and "position" not in name and "token" not in name
            (decays if matrix else rests).append(p)
        self.optimizer = torch.optim.AdamW(
            [{"params": rests, "weight_decay": 0.0}, {"params": decays}],
            config.learning_rate,
            (config.beta1, config.beta2),
            weight_decay=config.weight_decay,
            fused=True,
        )
        W, rest = config.warmup_steps, steps - config.warmup_steps

        def rate(step):
            if step < W:
                return (step + 1) / (W + 1)
            return (1 + math.cos(math.pi * min((step - W) / rest, 1))) / 2

        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, rate)

    def train(self, batches):
        """A step with each batch."""
        torch, c, losses = self.torch, self.config, []
        for images, labels in batches:
            self.optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(
                self.call(self.pixels(images)).logits,
                torch.from_numpy(labels),
                label_smoothing=c.label_smoothing,
            )
            loss.backward()
            if c.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), c.clip_norm)
            self.optimizer.step()
            self.schedule.step()
            losses.append(loss.detach())
        return [loss.item() for loss in losses]

    def classify(self, images):
        """The class with the largest logit."""
        self.model.eval()
        with self.torch.inference_mode():
            found = self.model(self.pixels(images)).logits.argmax(-1).numpy()
        self.model.train()
        return found

    def pixels(self, images):
        """Channels first."""
        return self.torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


class Compiled(Transformers):
    """The same under torch.compile."""

    compiled = True


SIDES = {"vitfast": Vitfast, "PyTorch (transformers)": Transformers, "torch.compile": Compiled}


def work(connection, side, source, folder, config, steps, cores):
    """Answer the parent until it closes the connection; an exception is an answer too.

    To a number, the seconds of wall and CPU time of so many steps and their losses; to None, the
    accuracy on the test images. Batches are prepared before the clock starts.
    """
    if cores:
        os.sched_setaffinity(0, cores)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's business
    try:
        from vitfast.allocator import keep_freed_memory

        keep_freed_memory()  # as `vitfast train` does
        batches, test = images_of(source, folder, config)
        trainer = SIDES[side](folder, config, steps)
        connection.send("ready")
        while True:
            if (count := connection.recv()) is None:
                connection.send(accuracy(trainer, test))
                continue
            next_ones = [next(batches) for _ in range(count)]
            next_ones = [(images, labels.astype(np.int64)) for images, labels in next_ones]
            wall, cpu = time.perf_counter(), time.process_time()
            losses = trainer.train(next_ones)
            connection.send((time.perf_counter() - wall, time.process_time() - cpu, losses))
    except EOFError:
        pass
    except Exception as error:
        connection.send(RuntimeError(f"{type(error).__name__}: {error}"))


def images_of(source, folder, config):
    """The batches of training, as `fit` has them, and those of the test images."""
    from vitfast.data import evaluation_batches, load_dataset, train_batches
    from vitfast.images import ImageProcessor

    dataset, processor = load_dataset(source), ImageProcessor.from_pretrained(folder / "model")
    options = {"process_index": 0, "process_count": 1}
    batches = train_batches(
        dataset.train, processor, batch_size=config.batch_size, seed=config.seed,
        augmentation=config.augmentation, threads=0, **options,
    )  # fmt: skip
    return batches, list(evaluation_batches(dataset.test, processor, batch_size=500, **options))


def accuracy(trainer, batches):
    """The part of the images that are classified right."""
    right = sum(
        weights @ (trainer.classify(images) == labels) for images, labels, weights in batches
    )
    return float(right / sum(weights.sum() for *_, weights in batches))
