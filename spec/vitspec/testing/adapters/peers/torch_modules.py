"""Both models made of PyTorch's own modules."""

from __future__ import annotations

from typing import Any

from vitspec.config import ViTConfig
from vitspec.geometry import patch_count
from vitspec.models.parameters import check_model
from vitspec.testing.adapters.frameworks import framework


def heads_divide(config: ViTConfig) -> str | None:
    """PyTorch's attention wants heads that divide the width."""
    if config.embed_dim % config.head_count:
        return f"{config.head_count} heads do not divide embed_dim {config.embed_dim}"
    return None


def torch_encoder_vit(
    config: ViTConfig, in_channels: int, height: int, width: int, *, cls: bool
) -> Any:
    """The module, with parameters as PyTorch draws them.

    Raises:
        NotWellFormed: there is no such model.
    """
    check_model(config, in_channels, height, width, cls=cls)
    torch, c = framework("torch"), config
    nn, D = torch.nn, c.embed_dim
    patches = patch_count(c, height, width)

    class ViT(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            # PyTorch refuses a stride of 0, for which there are no patches.
            patch, stride = (c.patch_h, c.patch_w), max(c.stride, 1)
            self.patch_embed = nn.Conv2d(in_channels, D, patch, stride, c.padding)
            if cls:
                self.cls_token = nn.Parameter(torch.zeros(1, 1, D))
            self.pos_embed = nn.Parameter(torch.zeros(1, patches + cls, D))
            layer = nn.TransformerEncoderLayer(
                D, c.head_count, c.hidden_dim, dropout=0.0, activation="relu",
                layer_norm_eps=1e-6, batch_first=True, norm_first=False,
            )  # fmt: skip
            # PyTorch refuses an encoder without layers, and a convolution of too small an image.
            self.encoder = None
            if c.num_layers:
                self.encoder = nn.TransformerEncoder(
                    layer, c.num_layers, enable_nested_tensor=False
                )
            self.head = nn.Linear(D, c.num_classes)

        def forward(self, images: Any) -> Any:
            if patches:
                x = self.patch_embed(images).flatten(2).transpose(1, 2)
            else:
                x = images.new_zeros(len(images), 0, D)
            if cls:
                x = torch.cat([self.cls_token.expand(len(images), 1, D), x], dim=1)
            x = x + self.pos_embed
            if self.encoder is not None:
                x = self.encoder(x)
            return self.head(x[:, 0] if cls else x.mean(dim=1))

    return ViT()
