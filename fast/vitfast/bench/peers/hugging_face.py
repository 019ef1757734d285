"""The peer that is transformers' ViT."""

from __future__ import annotations

from functools import partial
from typing import Any

from vitfast.bench.cases import PRE_NORM_EPSILON, Case
from vitfast.bench.peers import torch_layouts
from vitfast.bench.peers.torch_model import TorchModel
from vitspec.testing.adapters.frameworks import framework

torch, transformers = framework("torch"), framework("transformers")
ViTForImageClassification = transformers.ViTForImageClassification  # which imports it


def model(case: Case, device: str) -> TorchModel:
    """`transformers.ViTForImageClassification` with sdpa attention."""
    c = case.config
    channels, height, width = case.image_shape
    config = transformers.ViTConfig(
        hidden_size=c.embed_dim,
        num_hidden_layers=c.num_layers,
        num_attention_heads=c.head_count,
        intermediate_size=c.hidden_dim,
        hidden_act="gelu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=PRE_NORM_EPSILON,
        image_size=(height, width),
        patch_size=(c.patch_h, c.patch_w),
        num_channels=channels,
        num_labels=c.num_classes,
        attn_implementation="sdpa",
    )
    module = Logits(ViTForImageClassification(config))
    to_theirs = partial(torch_layouts.hugging_face, case, frozenset(module.state_dict()))
    return TorchModel(case, device, module, to_theirs)


class Logits(torch.nn.Module):  # type: ignore[name-defined]
    """A model of transformers as a map from images to logits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Any) -> Any:
        """The logits (B, K)."""
        return self.model(images).logits
