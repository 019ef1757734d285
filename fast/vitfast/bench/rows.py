"""Who takes part in a comparison, and what must be installed for it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from vitfast.bench.cases import FORWARD, TRAIN_STEP, Family

VITFAST = "vitfast"
OURS, PEERS_AT = "vitfast.bench.ours", "vitfast.bench.peers"
JAX, TORCH = f"{PEERS_AT}.jax_models", f"{PEERS_AT}.torch_models"


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        name: what the command line and the tables call it.
        what: what it is, in a few words.
        build: "module:function", called in a worker as function(case, device, **options); returns
            a `vitfast.bench.worker.Model`.
        options: for the function.
        packages: what it imports, by the names to install them with.
        families: the functions that it computes.
        passes: the passes that it has: "forward" stands for the gradient too.
        devices: where it takes part.
    """

    name: str
    what: str
    build: str
    options: dict[str, Any] = field(default_factory=dict)
    packages: tuple[str, ...] = ("jax",)
    families: tuple[Family, ...] = ("post-norm", "pre-norm")
    passes: tuple[str, ...] = (FORWARD,)
    devices: tuple[str, ...] = ("cpu", "gpu", "tpu")

    @property
    def ours(self) -> bool:
        """Whether it is vitfast, and no peer."""
        return self.name.startswith(VITFAST)

    def missing(self) -> tuple[str, ...]:
        """Those of the packages that are not installed."""
        return tuple(name for name in self.packages if find_spec(name) is None)


_TRAINED = (FORWARD, TRAIN_STEP)
ROWS: tuple[Row, ...] = (
    Row("vitfast-scan", "vitfast, layers stacked", f"{OURS}:vitfast_model", {"scan_layers": True},
        passes=_TRAINED),
    Row("vitfast-loop", "vitfast, layers listed", f"{OURS}:vitfast_model", {"scan_layers": False},
        passes=_TRAINED),
    Row("torch-sdpa", "PyTorch, lean, F.scaled_dot_product_attention", f"{TORCH}:lean",
        packages=("torch",), passes=_TRAINED),
    Row("torch-compile", "the same under torch.compile", f"{TORCH}:lean", {"compiled": True},
        packages=("torch",), passes=_TRAINED, devices=("gpu",)),
    Row("torch-encoder", "PyTorch, nn.TransformerEncoder", f"{TORCH}:encoder",
        packages=("torch",), families=("post-norm",)),
    Row("transformers", "ViTForImageClassification, sdpa", f"{PEERS_AT}.hugging_face:model",
        packages=("torch", "transformers"), families=("pre-norm",)),
    Row("timm", "VisionTransformer", f"{PEERS_AT}.timm_model:model",
        packages=("torch", "timm"), families=("pre-norm",)),
    Row("jax", "jax.numpy as in a textbook", f"{JAX}:textbook"),
    Row("nnx", "Flax NNX's own modules", f"{JAX}:flax_modules", packages=("jax", "flax")),
)  # fmt: skip
"""All rows, vitfast's first."""

CEILINGS: tuple[Row, ...] = (
    Row("ceiling-jax", "products by JAX", f"{PEERS_AT}.jax_products:ceiling", passes=_TRAINED),
    Row("ceiling-torch", "products by PyTorch", f"{PEERS_AT}.torch_products:ceiling",
        packages=("torch",), passes=_TRAINED),
)  # fmt: skip
"""Matrix products alone; the fastest of those that are installed is the ceiling."""

PEERS: tuple[str, ...] = tuple(row.name for row in ROWS if not row.ours)


def choose(
    family: Family, passes: Collection[str], device: str, peers: Collection[str] | None = None
) -> list[Row]:
    """The rows of a table, installed or not: vitfast's, and all peers or those named."""
    return [
        row
        for row in ROWS
        if family in row.families
        and device in row.devices
        and set(row.passes) & set(passes)
        and (row.ours or peers is None or row.name in peers)
    ]
