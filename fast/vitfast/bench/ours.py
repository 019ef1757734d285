"""vitfast's own rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitfast import convert
from vitfast.bench.cases import PRE_NORM_EPSILON, TRAIN_STEP, Case, Flat
from vitfast.bench.peers.jax_model import JaxModel, peak, temp_bytes
from vitspec.vision_transformer_config import VisionTransformerConfig


def vitfast_model(case: Case, device: str, *, scan_layers: bool) -> Any:
    """vitfast's `ViT` or, pre-norm, its `VisionTransformer`."""
    options: dict[str, Any] = {"scan_layers": scan_layers, "dtype": jnp.dtype(case.dtype)}
    if case.family == "pre-norm":
        model: Any = convert.from_flat(pre_norm_config(case), case.parameters(), **options)
    else:
        channels, height, width = case.image_shape
        options |= {"in_channels": channels, "height": height, "width": width}
        model = convert.from_flat(case.config, case.parameters(), **options)
    if TRAIN_STEP in case.passes:
        return VitfastTraining(case, model)

    def logits(model: Any, images: jax.Array) -> Any:
        outputs = model(images)
        return outputs.logits if case.family == "pre-norm" else outputs

    return JaxModel(case, logits, model, convert.to_flat, channels_last=True)


def pre_norm_config(case: Case) -> VisionTransformerConfig:
    """The same sizes in the practical family, whose defaults are what the table says."""
    c, (channels, height, width) = case.config, case.image_shape
    return VisionTransformerConfig(
        image_h=height, image_w=width, in_channels=channels, patch_h=c.patch_h, patch_w=c.patch_w,
        embed_dim=c.embed_dim, hidden_dim=c.hidden_dim, head_count=c.head_count,
        num_layers=c.num_layers, num_classes=c.num_classes, layer_norm_eps=PRE_NORM_EPSILON,
    )  # fmt: skip


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
