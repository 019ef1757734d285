"""The peer that is timm's `VisionTransformer`."""

from __future__ import annotations

from functools import partial

from vitfast.bench.cases import PRE_NORM_EPSILON, Case
from vitfast.bench.peers import torch_layouts
from vitfast.bench.peers.torch_model import TorchModel
from vitspec.testing.adapters.frameworks import framework

torch, vision_transformer = framework("torch"), framework("timm.models.vision_transformer")


def model(case: Case, device: str) -> TorchModel:
    """timm's `VisionTransformer`."""
    c, (channels, height, width) = case.config, case.image_shape
    module = vision_transformer.VisionTransformer(
        img_size=(height, width),
        patch_size=(c.patch_h, c.patch_w),
        in_chans=channels,
        num_classes=c.num_classes,
        embed_dim=c.embed_dim,
        depth=c.num_layers,
        num_heads=c.head_count,
        mlp_ratio=c.hidden_dim / c.embed_dim,
        norm_layer=partial(torch.nn.LayerNorm, eps=PRE_NORM_EPSILON),
    )
    return TorchModel(case, device, module, partial(torch_layouts.timm, case))
