"""A row that runs on JAX: two programs, which take the parameters as a flat list.

To hand over a module instead costs every call the time to take it apart, about 5 microseconds for
each parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitfast.bench.cases import FORWARD, GRADIENT, Case, Flat


class JaxModel:
    """A function of a pytree of parameters and images, compiled, on JAX's default device.

    Args:
        case: what is measured.
        call: (parameters, images) -> logits.
        params: its parameters; they are converted to the type of the case.
        to_flat: gradients, a pytree like `params`, by our names.
        channels_last: whether it takes images (B, H, W, C).
    """

    def __init__(
        self,
        case: Case,
        call: Callable[[Any, Any], Any],
        params: Any,
        to_flat: Callable[[Any], Mapping[str, Any]],
        *,
        channels_last: bool,
    ) -> None:
        leaves, structure = jax.tree.flatten(params)
        images, labels = case.inputs()
        self._to_flat, self._channels_last, self._structure = to_flat, channels_last, structure
        images = images.transpose(0, 2, 3, 1) if channels_last else images
        dtype = jnp.dtype(case.dtype)
        self._inputs = [jnp.asarray(leaf, dtype) for leaf in leaves], jnp.asarray(images, dtype)
        self._labels = jnp.asarray(labels)

        def forward(leaves: Any, images: Any) -> Any:
            return call(jax.tree.unflatten(structure, leaves), images)

        def loss(leaves: Any, images: Any, labels: Any) -> Any:
            return cross_entropy(forward(leaves, images), labels)

        self._forward = jax.jit(forward)
        self._gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        self.passes: dict[str, Callable[[], Any]] = {
            FORWARD: lambda: jax.block_until_ready(self._forward(*self._inputs)),
            GRADIENT: lambda: jax.block_until_ready(self._gradient(*self._inputs, self._labels)),
        }

    def lowered(self, name: str) -> Any:
        """The program of a pass, as handed to the compiler."""
        if name == FORWARD:
            return self._forward.lower(*self._inputs)
        return self._gradient.lower(*self._inputs, self._labels)

    def memory(self) -> dict[str, int]:
        """Bytes: what the compiled programs need beside inputs and outputs, the device's peak."""
        return {f"{name}_temp": temp_bytes(self.lowered(name)) for name in self.passes} | peak()

    def results(self) -> Flat:
        """Logits, loss and all gradients, by our names, in NumPy."""
        loss, (d_leaves, d_images) = self.passes[GRADIENT]()
        d_images = d_images.transpose(0, 3, 1, 2) if self._channels_last else d_images
        gradients = self._to_flat(jax.tree.unflatten(self._structure, d_leaves))
        found = {"logits": self.passes[FORWARD](), "loss": loss, "images": d_images, **gradients}
        return {name: np.asarray(array) for name, array in found.items()}


def cross_entropy(logits: Any, labels: Any) -> Any:
    """The mean over the batch, in float32 at least."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    log_probabilities = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_probabilities, labels[:, None], axis=1).mean()


def temp_bytes(lowered: Any) -> int:
    """What a program needs beside its inputs and outputs; nothing runs."""
    analysis = lowered.compile().memory_analysis()
    return 0 if analysis is None else int(analysis.temp_size_in_bytes)


def peak() -> dict[str, int]:
    """The device's own count of this process's peak; CPUs have none."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" not in statistics:
        return {}
    return {"device_peak": int(statistics["peak_bytes_in_use"])}
