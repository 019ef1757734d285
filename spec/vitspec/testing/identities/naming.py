"""Which array of a model plays which role in a Vision Transformer, as data.

A *role* is a parameter of the architecture, under one name and in one layout, whatever a framework
calls it and however it stores it:

| role | canonical shape |
| --- | --- |
| `patch.weight`, `patch.bias` | (D, C, ph, pw), (D,) |
| `cls`, `pos` | (D,), (n, D): with `cls`, row 0 is its own |
| `q.weight`, `k.weight`, `v.weight`, `o.weight` | (in, out): (D, I), and (I, D) for `o` |
| `fc1.weight`, `fc2.weight` | (D, F), (F, D) |
| `q.bias`, ..., `fc2.bias` | (out,) |
| `norm1.gamma`, `norm1.beta`, `norm2.gamma`, `norm2.beta` | (D,); `norm1` is attention's |
| `final_norm.gamma`, `final_norm.beta` | (D,) |
| `head.weight`, `head.bias` | (D, K), (K,) |

Within a layer, column h d + e of `q.weight` belongs to entry e of head h.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from vitspec.typing import Array


@dataclass(frozen=True)
class Stored:
    """How a model stores the array of a role.

    Attributes:
        name: the parameter's; `{prefix}` is what the model puts before its names (perhaps
            nothing), `{i}` the layer's index.
        out_first: matrices are stored (out, in).
        part: (k, n): the array is the k-th of n equal parts along the output axis, as in a fused
            qkv.
    """

    name: str
    out_first: bool = False
    part: tuple[int, int] = (0, 1)

    def canonical(self, role: str, stored: Array) -> Array:
        """The role's array in its canonical layout, out of the stored one."""
        k, n = self.part
        axis = 0 if self.out_first or stored.ndim == 1 else -1
        array = np.split(stored, n, axis)[k] if n > 1 else stored
        if role == "patch.weight":
            return array
        if role == "pos":
            return array.reshape(-1, array.shape[-1])
        if not role.endswith("weight"):
            return array.reshape(-1)
        array = array.reshape(array.shape[-2:])
        return array.T if self.out_first else array


@dataclass(frozen=True)
class Naming:
    """A naming scheme, with what it says of the architecture.

    Attributes:
        name: of the scheme.
        norm: `post` if each residual sum is normalised (the original Transformer, TorchLean),
            `pre` if each branch normalises its input and a final norm follows the last layer.
        relu: whether the feed-forward's activation is the ReLU.
        roles: role -> how it is stored.
        ignored: names (patterns) of parameters that play no part in the logits.
    """

    name: str
    norm: Literal["pre", "post"]
    relu: bool
    roles: Mapping[str, Stored]
    ignored: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Located:
    """Where the arrays of a role are: the parameter's name, and how it is stored."""

    name: str
    stored: Stored


@dataclass(frozen=True)
class Model:
    """The roles of one model's parameters.

    Attributes:
        naming: the scheme.
        roles: (role, layer) -> where; layer is None outside the layers.
        num_layers: how many layers there are.
    """

    naming: Naming
    roles: Mapping[tuple[str, int | None], Located]
    num_layers: int


def recognise(params: Mapping[str, Any], namings: Sequence[Naming]) -> Model | str:
    """The model that has parameters of these names, or why there is none.

    Every parameter must have a role: one that has none, such as a LayerScale, may break any
    identity.
    """
    failures: list[tuple[int, str]] = []
    for naming in namings:
        patch = naming.roles["patch.weight"].name.replace("{prefix}", "")
        for anchor in [name for name in params if name.endswith(patch)]:
            prefix = anchor.removesuffix(patch)
            located = dict(_located(naming, prefix, params))
            taken = {place.name for place in located.values()}
            taken |= {name.replace("{prefix}", prefix) for name in naming.ignored}
            extra = sorted(params.keys() - taken)
            if not extra:
                return Model(naming, located, len({i for _, i in located if i is not None}))
            more = f" and {len(extra) - 3} more" if len(extra) > 3 else ""
            shown = ", ".join(extra[:3]) + more
            failures.append((len(extra), f"{naming.name} names, but no role is known for {shown}"))
    known = ", ".join(n.name for n in namings)
    unknown = f"the parameters' names follow none of the known schemes ({known})"
    return min(failures, default=(0, unknown))[1]


def _located(
    naming: Naming, prefix: str, params: Mapping[str, Any]
) -> Iterator[tuple[tuple[str, int | None], Located]]:
    for role, stored in naming.roles.items():
        pattern = stored.name.replace("{prefix}", prefix)
        layers = range(len(params)) if "{i}" in pattern else [None]
        for i in layers:
            name = pattern.replace("{i}", str(i))
            if name in params:
                yield (role, i), Located(name, stored)
            elif i is not None and not any(f".{i}." in other for other in params):
                break
