"""The arrays of a training state by name, and where each of them is to lie.

    state.model.encoder.layers.mha.wq    is    "model.encoder.layers.mha.wq"
    its first moment in Adam             is    "opt_state.0.mu.encoder.layers.mha.wq"

Names are paths, so that a checkpoint can be read without the code that wrote it, and the same
arrays are found on another mesh, or with another number of processes.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from vitfast.training.run_checkpoints.seal import Arrays


def named_leaves(state: Any) -> dict[str, Any]:
    """The arrays of a state by name, in its order; or the shapes that stand for them."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {_name(path): leaf for path, leaf in leaves}


def with_leaves(like: Any, arrays: dict[str, Any]) -> Any:
    """A state like the given one with the named arrays, and those that are empty."""

    def take(path: tuple[Any, ...], leaf: Any) -> Any:
        return arrays[_name(path)] if leaf.size else jnp.zeros(leaf.shape, leaf.dtype)

    return jax.tree_util.tree_map_with_path(take, like)


def described(leaves: dict[str, Any]) -> Arrays:
    """Type and shape of each."""
    return {name: [str(leaf.dtype), list(leaf.shape)] for name, leaf in leaves.items()}


def difference(found: Arrays, expected: Arrays) -> str | None:
    """What a checkpoint has that a state has not, or has otherwise: one clause, or None."""
    if missing := [name for name in expected if name not in found]:
        return f"it has no {_some(missing)}"
    if unexpected := [name for name in found if name not in expected]:
        return f"it has {_some(unexpected)}, which the run has not"
    unlike = [name for name in expected if found[name] != expected[name]]
    if not unlike:
        return None
    name = unlike[0]
    there, here = (f"{dtype}{shape}" for dtype, shape in (found[name], expected[name]))
    return f"its {_some(unlike)} is {there}, and the run's {here}"


def to_save(leaves: dict[str, Any]) -> dict[str, Any]:
    """The arrays as Orbax can write them, which are not empty.

    With several processes, those that only one of them has are put on the mesh.
    """
    leaves = {name: leaf for name, leaf in leaves.items() if leaf.size}
    mesh = _mesh(leaves)
    if mesh is None or jax.process_count() == 1:
        return leaves
    return {
        name: leaf if isinstance(leaf.sharding, NamedSharding) else _replicated(leaf, mesh)
        for name, leaf in leaves.items()
    }


def to_restore(leaves: dict[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Where each array goes: where it says, or else on the mesh of the others, whole on each."""
    mesh = _mesh(leaves)

    def place(sharding: Any) -> Any:
        if mesh is not None and not isinstance(sharding, NamedSharding):
            return NamedSharding(mesh, PartitionSpec())
        return sharding or SingleDeviceSharding(jax.local_devices()[0])

    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place(leaf.sharding))
        for name, leaf in leaves.items()
        if leaf.size
    }


def _mesh(leaves: dict[str, Any]) -> Mesh | None:
    for leaf in leaves.values():
        if isinstance(leaf.sharding, NamedSharding):
            return leaf.sharding.mesh
    return None


def _replicated(leaf: Any, mesh: Mesh) -> Any:
    whole = NamedSharding(mesh, PartitionSpec())
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _replicated(jax.random.key_data(leaf), mesh)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    value = np.asarray(leaf)
    return jax.make_array_from_callback(value.shape, whole, lambda part: value[part])


def _name(path: tuple[Any, ...]) -> str:
    """The path of a leaf; the last step, into a Variable of NNX, has no name."""
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def _some(names: list[str]) -> str:
    return names[0] + (f" (and {len(names) - 1} more)" if names[1:] else "")
