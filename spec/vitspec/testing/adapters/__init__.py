"""Implementations made of PyTorch modules, JAX functions and Flax NNX modules.

    from_torch, from_torch_function     PyTorch's autograd takes the derivatives
    from_jax, from_nnx                  `jax.vjp` does
    Identity, JaxOptions, TorchOptions  the keywords that they take
    NameMap, Rule, Constant             the parameters' names and layouts, as data
    NAME_MAPS, LAYOUTS                  those that ship

Importing this imports no framework.
"""

from vitspec.testing.adapters.adapter import Adapter, Identity
from vitspec.testing.adapters.bound_map import BoundMap
from vitspec.testing.adapters.jax_flax import JaxOptions, from_jax, from_nnx
from vitspec.testing.adapters.layouts import LAYOUTS
from vitspec.testing.adapters.maps import NAME_MAPS
from vitspec.testing.adapters.name_maps import Constant, NameMap, Rule, axis_sizes
from vitspec.testing.adapters.pytorch import TorchOptions, from_torch, from_torch_function

__all__ = [
    "LAYOUTS",
    "NAME_MAPS",
    "Adapter",
    "BoundMap",
    "Constant",
    "Identity",
    "JaxOptions",
    "NameMap",
    "Rule",
    "TorchOptions",
    "axis_sizes",
    "from_jax",
    "from_nnx",
    "from_torch",
    "from_torch_function",
]
