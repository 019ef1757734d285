"""The peers that run on PyTorch: lean modules, and its own encoder."""

from __future__ import annotations

from functools import partial

from vitfast.bench.cases import Case
from vitfast.bench.peers import torch_layouts
from vitfast.bench.peers.torch_lean import LeanViT
from vitfast.bench.peers.torch_model import TorchModel
from vitspec.testing.adapters.maps import NAME_MAPS
from vitspec.testing.adapters.peers.torch_modules import torch_encoder_vit


def lean(case: Case, device: str, *, compiled: bool = False) -> TorchModel:
    """`nn.Linear`, `nn.LayerNorm` and `F.scaled_dot_product_attention`, and little else."""
    to_theirs = partial(torch_layouts.lean, case)
    return TorchModel(case, device, LeanViT(case), to_theirs, compiled=compiled)


def encoder(case: Case, device: str) -> TorchModel:
    """`nn.TransformerEncoder`."""
    bound = NAME_MAPS["torch"].bind(case.config, *case.image_shape, cls=False)
    module = torch_encoder_vit(case.config, *case.image_shape, cls=False)
    return TorchModel(case, device, module, bound.to_theirs)
