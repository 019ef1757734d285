"""The libraries that are measured: their functions, and the environments they are measured in.

`functions(library, dtype)` has each library's own functions under the names of
`primitives_truth.ONE_ARGUMENT`; each takes an array of float64 that dtype can hold and returns
float64, having computed in dtype.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

Function = Callable[[np.ndarray], np.ndarray]

_NO_AVX512 = {"NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR"}
_NO_AVX512 |= {"OPENBLAS_CORETYPE": "Haswell"}
_NO_AVX2 = {"NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR"}
_NO_AVX2 |= {"OPENBLAS_CORETYPE": "Nehalem"}


def _aten(isa: str) -> dict[str, str]:
    products = {"default": "SSE4_2", "avx2": "AVX2", "avx512": "AVX512"}[isa]
    return {"ATEN_CPU_CAPABILITY": isa, "MKL_ENABLE_INSTRUCTIONS": products}


def _xla(isa: str) -> dict[str, str]:
    return {"XLA_FLAGS": f"--xla_cpu_max_isa={isa}"}


ENVIRONMENTS: dict[str, tuple[str, dict[str, str]]] = {
    "numpy": ("numpy", {}),
    "numpy avx2": ("numpy", _NO_AVX512),
    "numpy sse4": ("numpy", _NO_AVX2),
    "torch default": ("torch", _aten("default")),
    "torch avx2": ("torch", _aten("avx2")),
    "torch avx512": ("torch", _aten("avx512")),
    "torch avx512, strided": ("torch-strided", _aten("avx512")),
    "torch, onednn sse41": ("torch-onednn", _aten("default") | {"ONEDNN_MAX_CPU_ISA": "SSE41"}),
    "torch, onednn avx2": ("torch-onednn", _aten("avx2") | {"ONEDNN_MAX_CPU_ISA": "AVX2"}),
    "torch, onednn": ("torch-onednn", {}),
    "torch, composed": ("torch-composed", {}),
    "jax sse4": ("jax", _xla("SSE4_2")),
    "jax avx2": ("jax", _xla("AVX2")),
    "jax avx512": ("jax", _xla("AVX512")),
    "jax unoptimised": ("jax", {"XLA_FLAGS": "--xla_backend_optimization_level=0"}),
    "vitfast": ("vitfast", {}),
    "onnxruntime": ("onnxruntime", {}),
}
"""By name: the library, and the variables of the environment that choose instructions."""


def functions(library: str, dtype: str) -> dict[str, Function]:
    """A library's functions in one type; empty where it has not got the type."""
    base, _, variant = library.partition("-")
    makers: dict[str, Any] = {
        "numpy": _numpy,
        "torch": _torch,
        "jax": _jax,
        "vitfast": _vitfast,
        "onnxruntime": _onnxruntime,
    }
    return makers[base](dtype, variant) if variant else makers[base](dtype)


def _numpy(dtype: str) -> dict[str, Function]:
    """NumPy's functions, and the specification's activations."""
    if dtype not in ("float32", "float64"):
        return {}
    from vitspec import special
    from vitspec.layers import gelu

    named = {
        "exp": np.exp,
        "log": np.log,
        "erfc": special.erfc,
        "tanh": np.tanh,
        "sqrt": np.sqrt,
        "rsqrt": lambda x: 1 / np.sqrt(x),
        "reciprocal": lambda x: 1 / x,
        "tanh_derivative": lambda x: 1 - np.tanh(x) ** 2,
        "sigmoid": gelu.logistic,
    }
    for name, pair in gelu.ACTIVATIONS.items():
        if name != "relu":
            named |= {name: pair.function, f"{name}_derivative": pair.deriv}

    def wrapped(function: Any) -> Function:
        return lambda x: function(x.astype(dtype)).astype(np.float64)

    return {name: wrapped(function) for name, function in named.items()}


def _torch(dtype: str, variant: str = "") -> dict[str, Function]:
    """PyTorch's, its derivatives by autograd; with oneDNN only where the variant says so."""
    import torch
    from torch.nn.functional import gelu

    torch.set_num_threads(1)
    torch.backends.mkldnn.enabled = variant == "onednn"
    kind = getattr(torch, dtype)
    named = {
        "exp": torch.exp,
        "log": torch.log,
        "erf": torch.erf,
        "erfc": torch.erfc,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "sqrt": torch.sqrt,
        "rsqrt": torch.rsqrt,
        "reciprocal": torch.reciprocal,
        "gelu": gelu,
        "gelu_tanh": lambda x: gelu(x, approximate="tanh"),
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    }
    if variant == "composed":  # the activations as models write them out
        c, root = 0.044715, float(np.sqrt(2 / np.pi))
        named = {
            "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
            "gelu_tanh": lambda x: 0.5 * x * (1 + torch.tanh(root * (x + c * torch.pow(x, 3)))),
        }
    if variant == "onednn":
        named = {name: named[name] for name in ("gelu", "gelu_tanh")}

    def placed(x: np.ndarray) -> Any:
        if variant != "strided":
            return torch.from_numpy(x).to(kind)
        return torch.stack([torch.from_numpy(x).to(kind)] * 2, dim=-1)[..., 0]

    def value(function: Any) -> Function:
        def run(x: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return function(placed(x)).double().numpy()

        return run

    def derivative(function: Any) -> Function:
        def run(x: np.ndarray) -> np.ndarray:
            leaf = placed(x).detach().requires_grad_()
            y = function(leaf)
            (d_x,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
            return d_x.double().numpy()

        return run

    return _with_derivatives(named, value, derivative)


def _jax(dtype: str) -> dict[str, Function]:
    """JAX's, jitted, its derivatives by jax.vjp."""
    import jax
    from jax import lax
    from jax.nn import gelu

    named = {
        "exp": lax.exp,
        "log": lax.log,
        "erf": lax.erf,
        "erfc": lax.erfc,
        "tanh": lax.tanh,
        "sigmoid": jax.nn.sigmoid,
        "sqrt": lax.sqrt,
        "rsqrt": lax.rsqrt,
        "reciprocal": lambda x: 1 / x,
        "gelu": lambda x: gelu(x, approximate=False),
        "gelu_tanh": lambda x: gelu(x, approximate=True),
        "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    }
    return _jitted(named, dtype)


def _vitfast(dtype: str) -> dict[str, Function]:
    """vitfast's activations, with its derivatives by hand."""
    from vitfast.ops import BY_HAND

    return _jitted({n: getattr(BY_HAND, n) for n in ("gelu", "gelu_tanh", "quick_gelu")}, dtype)


def _jitted(named: dict[str, Any], dtype: str) -> dict[str, Function]:
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    kind = jnp.dtype(dtype)

    def value(function: Any) -> Function:
        program = jax.jit(function)
        return lambda x: np.asarray(program(x.astype(kind))).astype(np.float64)

    def derivative(function: Any) -> Function:
        def gradient(x: Any) -> Any:
            y, back = jax.vjp(function, x)
            return back(jnp.ones_like(y))[0]

        return value(gradient)

    return _with_derivatives(named, value, derivative)


def _with_derivatives(named: dict[str, Any], value: Any, derivative: Any) -> dict[str, Function]:
    """The functions, and the derivatives of those that a model differentiates."""
    found = {name: value(function) for name, function in named.items()}
    for name in ("tanh", "gelu", "gelu_tanh", "quick_gelu"):
        if name in named:
            found[f"{name}_derivative"] = derivative(named[name])
    return found


def _onnxruntime(dtype: str) -> dict[str, Function]:
    """onnxruntime's CPU kernels, one node a model."""
    if dtype != "float32":
        return {}
    import onnxruntime
    from onnx import TensorProto, helper

    def session(operator: str, **attributes: Any) -> Function:
        ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n"]) for n in "xy"]
        node = helper.make_node(operator, ["x"], ["y"], **attributes)
        graph = helper.make_graph([node], operator, ends[:1], ends[1:])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        run = onnxruntime.InferenceSession(model.SerializeToString(), options).run
        return lambda x: run(None, {"x": x.astype(np.float32)})[0].astype(np.float64)

    named = {"exp": "Exp", "log": "Log", "erf": "Erf", "tanh": "Tanh", "sigmoid": "Sigmoid"}
    named |= {"sqrt": "Sqrt", "reciprocal": "Reciprocal", "gelu": "Gelu"}
    found = {name: session(operator) for name, operator in named.items()}
    return found | {"gelu_tanh": session("Gelu", approximate="tanh")}


def installed(environment: str) -> bool:
    """Whether the library of an environment can be imported."""
    return find_spec(ENVIRONMENTS[environment][0].partition("-")[0]) is not None


def versions() -> dict[str, str]:
    """The versions of what was measured, and the processor."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("numpy", "torch", "jax", "jaxlib", "onnxruntime", "scipy", "python-flint"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {"processor": _processor()}


def _processor() -> str:
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return "unknown"
