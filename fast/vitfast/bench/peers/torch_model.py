"""A row that runs on PyTorch.

Forward: evaluation mode, no gradients recorded, where `nn.TransformerEncoder` runs a fused kernel.
Gradient and training: training mode; no module has dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from vitfast.bench.cases import FORWARD, GRADIENT, TRAIN_STEP, Case, Flat
from vitfast.bench.layouts import to_our_gradients
from vitspec.testing.adapters.frameworks import framework

torch = framework("torch")


class TorchModel:
    """A module on a device, with the case's parameters and inputs.

    Args:
        case: what is measured.
        device: "cpu" or "gpu".
        module: maps images (B, C, H, W) to logits.
        to_theirs: our parameters by the module's names.
        compiled: whether to run it under `torch.compile`.
    """

    def __init__(
        self,
        case: Case,
        device: str,
        module: Any,
        to_theirs: Callable[[Flat], Mapping[str, Any]],
        *,
        compiled: bool = False,
    ) -> None:
        if device == "gpu" and not torch.cuda.is_available():
            raise RuntimeError("this PyTorch sees no GPU, and vitfast runs on one")
        torch.backends.cudnn.allow_tf32 = False  # of products it is so by default
        self._case, self._to_theirs = case, to_theirs
        self._device = "cuda" if device == "gpu" else "cpu"
        training = TRAIN_STEP in case.passes
        dtype = getattr(torch, case.param_dtype)
        module.to(self._device, dtype)  # before the parameters come, else it would round them
        state = {n: torch.tensor(a) for n, a in to_theirs(case.parameters()).items()}
        module.load_state_dict(state, strict=True)
        self._names, self._params = zip(*module.named_parameters(), strict=True)
        images, labels = case.inputs()
        self._images = torch.from_numpy(images).to(self._device, dtype).requires_grad_(not training)
        self._labels = torch.from_numpy(labels).to(self._device)
        self._module = torch.compile(module) if compiled else module
        if training:
            self._optimizer = torch.optim.AdamW(self._params, 1e-3, weight_decay=1e-4, fused=True)
        passes = {FORWARD: self._forward, GRADIENT: self._gradient, TRAIN_STEP: self._train_step}
        self.passes: dict[str, Callable[[], Any]] = {
            name: partial(self._finished, passes[name]) for name in case.passes
        }

    def _finished(self, run: Callable[[], Any]) -> Any:
        result = run()
        if self._device == "cuda":
            torch.cuda.synchronize()
        return result

    def _forward(self) -> Any:
        self._set_training(False)
        with torch.inference_mode():
            return self._module(self._images)

    def _gradient(self) -> Any:
        self._set_training(True)
        loss = cross_entropy(self._module(self._images), self._labels)
        return loss.detach(), torch.autograd.grad(loss, [self._images, *self._params])

    def _train_step(self) -> Any:
        self._set_training(True)
        with torch.autocast(self._device, torch.bfloat16):
            loss = cross_entropy(self._module(self._images), self._labels)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _set_training(self, training: bool) -> None:
        if self._module.training != training:
            self._module.train(training)

    def memory(self) -> dict[str, int]:
        """Bytes: the device's peak, on a GPU."""
        if self._device == "cpu":
            return {}
        return {"device_peak": int(torch.cuda.max_memory_allocated())}

    def results(self) -> Flat:
        """Logits, loss and all gradients, by our names, in NumPy."""
        if TRAIN_STEP in self.passes:
            return {"loss": array(self.passes[TRAIN_STEP]())}
        loss, (d_images, *d_params) = self.passes[GRADIENT]()
        theirs = {n: array(d) for n, d in zip(self._names, d_params, strict=True)}
        ours = to_our_gradients(self._to_theirs, self._case.shapes(), theirs)
        found = {"logits": self.passes[FORWARD](), "loss": loss, "images": d_images}
        return {name: array(value) for name, value in found.items()} | ours


def cross_entropy(logits: Any, labels: Any) -> Any:
    """The mean over the batch, in float32 at least."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    return torch.nn.functional.cross_entropy(logits.to(wide), labels)


def array(value: Any) -> np.ndarray:
    """The values of a tensor in NumPy, which has no bfloat16."""
    value = value.detach().cpu()
    return (value.float() if value.dtype.itemsize < 4 else value).numpy()
