"""Implementations made of PyTorch modules and functions; autograd takes the derivatives.

`forward` runs under `torch.no_grad()`, `vjp` with autograd, both in the module's mode: evaluation,
or training if asked for. The two may run different kernels. In evaluation mode without gradients
`torch.nn.TransformerEncoder`, for one, runs a fused kernel of its own, and it is that kernel's
logits that are graded; in training mode it is the layers that autograd differentiates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Unpack

from vitspec.testing.adapters.adapter import Adapter, Identity, Model, Result, split_output
from vitspec.testing.adapters.bound_map import BoundMap
from vitspec.testing.adapters.frameworks import framework
from vitspec.testing.adapters.name_maps import NameMap
from vitspec.typing import Array


class TorchOptions(Identity, total=False):
    """The keywords of `from_torch` and `from_torch_function`: those of `Identity`, and this.

    Attributes:
        device: where it runs, if not on the CPU. There, `dtype` may be tf32: float32 with
            `allow_tf32`, on a GPU only.
    """

    device: str


def from_torch(
    build: Callable[[Any, int, int, int], Any],
    name_map: NameMap | None = None,
    *,
    training: bool = False,
    taps: Mapping[str, str] | None = None,
    **options: Unpack[TorchOptions],
) -> TorchAdapter:
    """An implementation made of a PyTorch module.

    Args:
        build: called with (config, in_channels, height, width), once for each combination; returns
            a `torch.nn.Module` whose `forward(images)` gives the logits (B, K) of images
            (B, C, H, W), or a mapping with `logits` and taps.
        name_map: the names of `module.named_parameters()`; None if they are the specification's.
        training: whether in training mode. Dropout must then have the rate 0.
        taps: intermediate values to report too: {our name for the value: the submodule that returns
            it}, both with `{i}` for the number of a layer.
        **options: `name`, `version`, `spec`; and, where they differ from what is usual, `dtype`,
            `supports`, `closest`, `supports_size` (see `Identity`), `device` (see `TorchOptions`).
    """
    return TorchAdapter(
        lambda config, *size: _module_model(build(config, *size), training, config, taps or {}),
        name_map,
        **options,
    )


def from_torch_function(
    function: Callable[[Any, dict[str, Any], Any], Any],
    name_map: NameMap | None = None,
    **options: Unpack[TorchOptions],
) -> TorchAdapter:
    """An implementation made of a function (config, parameters, images) -> logits of tensors.

    The parameters are a dictionary of tensors by the names of the name map. The rest is as in
    `from_torch`.
    """
    return TorchAdapter(
        lambda config, *_: Model(None, partial(function, config)), name_map, **options
    )


class TorchAdapter(Adapter):
    """See `from_torch` and `from_torch_function`, which make it."""

    def __init__(
        self,
        model: Callable[..., Model],
        name_map: NameMap | None,
        *,
        device: str = "cpu",
        **identity: Unpack[Identity],
    ) -> None:
        super().__init__(model, name_map, **identity)
        self.device, self.on_gpu = device, device.startswith("cuda")
        if "tf32" in self.dtype and not self.on_gpu:
            raise ValueError(f"dtype: tf32 is computed on GPUs only, and the device is {device!r}")

    def forward(self, config: Any, params: Mapping[str, Array], images: Array) -> Result:
        """The logits, and any taps, without gradients."""
        torch = framework("torch")
        with self._loaded(config, params, images) as (model, _, leaves), torch.no_grad():
            logits, taps = split_output(model.call(leaves, self._tensor(images, images)))
            return {"logits": _array(logits)} | {n: _array(value) for n, value in taps.items()}

    def vjp(
        self, config: Any, params: Mapping[str, Array], images: Array, cotangent: Array
    ) -> tuple[dict[str, Array], Array]:
        """The cotangents by autograd; zero where nothing depends on a parameter."""
        torch = framework("torch")
        with self._loaded(config, params, images) as (model, bound, leaves), torch.enable_grad():
            pixels = self._tensor(images, images).requires_grad_()
            logits, _ = split_output(model.call(leaves, pixels))
            inputs = [pixels, *leaves.values()]
            found: Any = [None] * len(inputs)
            if logits.requires_grad:
                seed = self._tensor(cotangent, images).to(logits.dtype)
                found = torch.autograd.grad(logits, inputs, seed, allow_unused=True)
            grads = [
                _array(torch.zeros_like(leaf) if grad is None else grad)
                for leaf, grad in zip(inputs, found, strict=True)
            ]
            return bound.to_our_gradients(dict(zip(leaves, grads[1:], strict=True))), grads[0]

    def _build(
        self, config: Any, image_shape: tuple[int, int, int], precision: str
    ) -> tuple[Model, BoundMap]:
        torch = framework("torch")
        model, bound = super()._build(config, image_shape, precision)
        if model.own is not None:
            model.own.to(self.device, _scalar_type(torch, precision)).requires_grad_(True)
            bound.check(dict(model.own.named_parameters()), f"the module of {self.name}")
        return model, bound

    @contextmanager
    def _loaded(
        self, config: Any, params: Mapping[str, Array], images: Array
    ) -> Iterator[tuple[Model, BoundMap, dict[str, Any]]]:
        """The model, its name map, and its parameters, which have the given values."""
        torch, precision = framework("torch"), self.precision(images)
        model, bound = self._built(config, images.shape[1:], precision)
        values = {n: self._tensor(a, images) for n, a in bound.to_theirs(params).items()}
        if model.own is None:
            leaves = {name: value.requires_grad_() for name, value in values.items()}
        else:
            leaves = dict(model.own.named_parameters())
            with torch.no_grad():
                for name, leaf in leaves.items():
                    leaf.copy_(values[name])
        products = tf32(torch, precision == "tf32") if self.on_gpu else nullcontext()
        with products:
            yield model, bound, leaves

    def _tensor(self, array: Array, images: Array) -> Any:
        torch = framework("torch")
        dtype = _scalar_type(torch, self.precision(images))
        return torch.tensor(array, dtype=dtype, device=self.device)


def _module_model(module: Any, training: bool, config: Any, taps: Mapping[str, str]) -> Model:
    module.train(training)
    found: dict[str, Any] = {}
    for ours, theirs in taps.items():
        for i in range(config.num_layers if "{i}" in ours else 1):
            submodule = module.get_submodule(theirs.replace("{i}", str(i)))
            submodule.register_forward_hook(_recorder(found, ours.replace("{i}", str(i))))

    def call(_: Any, images: Any) -> Any:
        found.clear()
        logits, more = split_output(module(images))
        return {"logits": logits} | found | more

    return Model(module, call)


def _recorder(found: dict[str, Any], name: str) -> Callable[..., None]:
    def record(module: Any, inputs: Any, output: Any) -> None:
        found[name] = output[0] if isinstance(output, tuple) else output

    return record


def _scalar_type(torch: Any, precision: str) -> Any:
    return getattr(torch, "float32" if precision == "tf32" else precision)


def _array(tensor: Any) -> Array:
    tensor = tensor.detach().cpu()
    if tensor.dtype.itemsize < 4:  # NumPy has no bfloat16; every such number is a float32
        tensor = tensor.float()
    return tensor.numpy()


@contextmanager
def tf32(torch: Any, allowed: bool) -> Iterator[None]:
    """Let GPUs round the factors of float32 products to tf32, or not; by default some do."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(cudnn, "conv"):  # PyTorch 2.9 and later
        switches, name = [matmul, cudnn.conv, cudnn.rnn], "fp32_precision"
        value: Any = "tf32" if allowed else "ieee"
    else:
        switches, name, value = [matmul, cudnn], "allow_tf32", allowed
    before = [getattr(switch, name) for switch in switches]
    try:
        for switch in switches:
            setattr(switch, name, value)
        yield
    finally:
        for switch, setting in zip(switches, before, strict=True):
            setattr(switch, name, setting)
