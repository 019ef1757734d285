"""vitfast's own rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitfast import convert
from vitfast.bench import pre_norm
from vitfast.bench.cases import TRAIN_STEP, Case, Flat
from vitfast.bench.peers.jax_model import JaxModel, peak, temp_bytes


def vitfast_model(case: Case, device: str, *, scan_layers: bool) -> Any:
    """vitfast's `ViT`, or its operations put together as a pre-norm model."""
    if case.family == "pre-norm":
        params = pre_norm.by_layer(case.config, case.parameters(), stacked=scan_layers)
        call = partial(pre_norm.pre_norm_vit, case.config)
        return JaxModel(case, call, params, pre_norm.to_flat, channels_last=True)
    channels, height, width = case.image_shape
    model = convert.from_flat(
        case.config,
        case.parameters(),
        in_channels=channels,
        height=height,
        width=width,
        scan_layers=scan_layers,
        dtype=jnp.dtype(case.dtype),
    )
    if TRAIN_STEP in case.passes:
        return VitfastTraining(case, model)
    return JaxModel(
        case, lambda model, images: model(images), model, convert.to_flat, channels_last=True
    )


class VitfastTraining:
    """Steps of AdamW in bfloat16 with float32 parameters: `vitfast.training`."""

    def __init__(self, case: Case, model: Any) -> None:
        import optax

        from vitfast.training import make_train_step

        optimizer = optax.adamw(1e-3)
        images, labels = case.inputs()
        self._images = jnp.asarray(images.transpose(0, 2, 3, 1), jnp.dtype(case.dtype))
        self._labels = jnp.asarray(labels)
        self._step = make_train_step(optimizer)
        self._state = model, optimizer.init(model)
        self.passes: dict[str, Callable[[], Any]] = {TRAIN_STEP: self._run}

    def _run(self) -> Any:
        *state, loss = self._step(*self._state, self._images, self._labels)
        self._state = tuple(state)  # the old one was donated
        return jax.block_until_ready((self._state, loss))[1]

    def memory(self) -> dict[str, int]:
        """Bytes, as in `JaxModel`."""
        lowered = self._step.lower(*self._state, self._images, self._labels)
        return {f"{TRAIN_STEP}_temp": temp_bytes(lowered)} | peak()

    def results(self) -> Flat:
        """The loss before a step."""
        return {"loss": np.asarray(self._run())}
