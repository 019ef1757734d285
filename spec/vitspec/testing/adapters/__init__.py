"""Implementations made of PyTorch modules, JAX functions and Flax NNX modules.

    from_torch, from_torch_function     PyTorch's autograd takes the derivatives
    from_jax, from_nnx                  `jax.vjp` does
    NameMap, Rule, Constant             the parameters' names and layouts, as data
    NAME_MAPS, LAYOUTS                  those that ship

Importing this imports no framework.
"""

from vitspec.testing.adapters.adapter import Adapter
from vitspec.testing.adapters.jax_flax import from_jax, from_nnx
from vitspec.testing.adapters.maps import NAME_MAPS
from vitspec.testing.adapters.name_maps import (
    LAYOUTS,
    BoundMap,
    Constant,
    NameMap,
    Rule,
    axis_sizes,
)
from vitspec.testing.adapters.pytorch import from_torch, from_torch_function

__all__ = [
    "LAYOUTS",
    "NAME_MAPS",
    "Adapter",
    "BoundMap",
    "Constant",
    "NameMap",
    "Rule",
    "axis_sizes",
    "from_jax",
    "from_nnx",
    "from_torch",
    "from_torch_function",
]
