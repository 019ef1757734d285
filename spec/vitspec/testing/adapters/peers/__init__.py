"""ViTs made of other people's parts, ready to be checked.

    vitspec check vitspec.testing.adapters.peers:torch_vit

- `torch_vit`, `torch_vit_cls`: PyTorch's `Conv2d`, `TransformerEncoder` and `Linear`.
- `torch_vit_training`, `torch_vit_cls_training`: the same in training mode, where the encoder does
  not run its fused kernel.
- `jax_vit`, `jax_vit_cls`: `jax.numpy` only, every layer an einsum.
- `nnx_vit`, `nnx_vit_cls`: Flax's `MultiHeadAttention`, `LayerNorm` and `Linear`.

These are of the Lean mirror's two models. Other libraries' own classes, of the practical family,
are in `registry`, by short names: `vitspec check transformers`.

Nothing of the specification's mathematics is in them, nor of `vitfast`'s. A framework is imported
when one of them first computes.
"""

from functools import partial

from vitspec.testing.adapters.frameworks import installed_version
from vitspec.testing.adapters.jax_flax import from_jax, from_nnx
from vitspec.testing.adapters.maps import NAME_MAPS, TORCH_ENCODER
from vitspec.testing.adapters.peers.flax_modules import flax_vit, heads_have_width
from vitspec.testing.adapters.peers.plain_jax import plain_jax_vit
from vitspec.testing.adapters.peers.torch_modules import heads_divide, torch_encoder_vit
from vitspec.testing.adapters.pytorch import TorchAdapter, from_torch

__all__ = [
    "jax_vit",
    "jax_vit_cls",
    "nnx_vit",
    "nnx_vit_cls",
    "torch_vit",
    "torch_vit_cls",
    "torch_vit_cls_training",
    "torch_vit_training",
]


def _torch_peer(spec: str, training: bool) -> TorchAdapter:
    return from_torch(
        partial(torch_encoder_vit, cls=spec == "vit-cls"),
        TORCH_ENCODER,
        name=f"torch-{spec}" + ("-training" if training else ""),
        version=installed_version("torch"),
        spec=spec,
        training=training,
        taps={"encoder.layers.{i}.output": "encoder.layers.{i}"} if training else None,
        supports=heads_divide,
    )


torch_vit, torch_vit_cls = _torch_peer("vit", False), _torch_peer("vit-cls", False)
torch_vit_training, torch_vit_cls_training = _torch_peer("vit", True), _torch_peer("vit-cls", True)

jax_vit, jax_vit_cls = (
    from_jax(
        partial(plain_jax_vit, cls=spec == "vit-cls"),
        name=f"jax-{spec}",
        version=installed_version("jax"),
        spec=spec,
    )
    for spec in ("vit", "vit-cls")
)

nnx_vit, nnx_vit_cls = (
    from_nnx(
        partial(flax_vit, cls=spec == "vit-cls"),
        NAME_MAPS["flax-patches"],
        name=f"nnx-{spec}",
        version=installed_version("flax"),
        spec=spec,
        dtype="float32",  # `jax.nn.dot_product_attention` takes its softmax in float32 always
        channels_last=True,
        supports=heads_have_width,
    )
    for spec in ("vit", "vit-cls")
)
