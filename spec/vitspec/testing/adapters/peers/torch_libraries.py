"""ViTs of timm, torchvision and vit-pytorch, and PyTorch's own encoder with its norms first."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from vitspec.testing.adapters.frameworks import framework
from vitspec.testing.adapters.name_maps import NameMap
from vitspec.testing.adapters.peers.abilities import Abilities, whole_patches_after
from vitspec.testing.adapters.peers.maps_torch import (
    TIMM,
    TORCH_PRE_NORM,
    TORCHVISION,
    VIT_PYTORCH,
    VIT_PYTORCH_PLAIN,
)
from vitspec.testing.adapters.peers.torchvision_operators import declare_missing_operators
from vitspec.testing.adapters.pytorch import TorchAdapter, from_torch
from vitspec.vision_transformer_config import VisionTransformerConfig


def _adapter(
    name: str, library: str, build: Any, name_map: NameMap, abilities: Abilities
) -> TorchAdapter:
    return from_torch(build, name_map, name=name, **abilities.identity(library))


def _norm(config: VisionTransformerConfig) -> Any:
    """PyTorch's layer normalisation with the configuration's epsilon."""
    return partial(framework("torch").nn.LayerNorm, eps=config.layer_norm_eps)


# ---- timm ----------------------------------------------------------------------------------------

_OF_TIMM = Abilities(
    {"output_bias": (True,), "pool": ("cls", "mean")}, supports_size=whole_patches_after
)
"""`proj_bias=False` leaves out the feed-forward's biases too."""


def timm() -> TorchAdapter:
    """`timm.models.vision_transformer.VisionTransformer`."""
    return _adapter("timm", "timm", _timm, TIMM, _OF_TIMM)


def _timm(config: VisionTransformerConfig, _: int, *size: int) -> Any:
    declare_missing_operators()
    module, layers, c = (
        framework("timm.models.vision_transformer"),
        framework("timm.layers"),
        config,
    )
    nn = framework("torch").nn
    activations = {
        "gelu": nn.GELU,
        "gelu_tanh": layers.GELUTanh,
        "quick_gelu": layers.get_act_layer("quick_gelu"),
        "relu": nn.ReLU,
    }
    return module.VisionTransformer(
        img_size=(c.image_h, c.image_w),
        patch_size=(c.patch_h, c.patch_w),
        in_chans=c.in_channels,
        num_classes=c.num_classes,
        global_pool={"cls": "token", "mean": "avg"}[c.pool],
        embed_dim=c.embed_dim,
        depth=c.num_layers,
        num_heads=c.head_count,
        mlp_ratio=(c.hidden_dim + 0.5) / c.embed_dim,  # it is multiplied and cut off
        qkv_bias=c.qkv_bias,
        init_values=1.0 if c.layer_scale else None,
        class_token=c.cls_token,
        dynamic_img_size=size != (c.image_h, c.image_w),
        fc_norm=False,  # else pooling by the mean is before the final norm
        norm_layer=_norm(c),
        act_layer=activations[c.activation],
    )


# ---- torchvision ---------------------------------------------------------------------------------

_OF_TORCHVISION = Abilities(
    {
        "activation": ("gelu",), "in_channels": (3,), "qkv_bias": (True,), "output_bias": (True,),
        "layer_scale": (False,), "cls_token": (True,), "pool": ("cls",),
    },
    square_patches=True,
    square_images=True,
    whole_patches=True,
)  # fmt: skip


def torchvision() -> TorchAdapter:
    """`torchvision.models.VisionTransformer`."""
    return _adapter("torchvision", "torchvision", _torchvision, TORCHVISION, _OF_TORCHVISION)


def _torchvision(config: VisionTransformerConfig, *_: int) -> Any:
    declare_missing_operators()
    module, c = framework("torchvision.models.vision_transformer"), config
    return module.VisionTransformer(
        image_size=c.image_h,
        patch_size=c.patch_h,
        num_layers=c.num_layers,
        num_heads=c.head_count,
        hidden_dim=c.embed_dim,
        mlp_dim=c.hidden_dim,
        num_classes=c.num_classes,
        norm_layer=_norm(c),
    )


# ---- vit-pytorch ---------------------------------------------------------------------------------


def _two_heads_or_more(config: VisionTransformerConfig) -> VisionTransformerConfig:
    """A single head as wide as the token goes without the attention's output product."""
    c = config
    if c.head_count == 1:
        c = replace(c, head_count=next(n for n in (2, 3, c.embed_dim) if c.embed_dim % n == 0))
    return replace(c, cls_token=c.pool == "cls")


_OF_VIT_PYTORCH = Abilities(
    {
        "activation": ("gelu",), "layer_norm_eps": (1e-5,), "qkv_bias": (False,),
        "output_bias": (True,), "layer_scale": (False,), "pool": ("cls", "mean"),
    },
    whole_patches=True,
    also=_two_heads_or_more,
)  # fmt: skip


def vit_pytorch() -> TorchAdapter:
    """`vit_pytorch.ViT`."""
    return _adapter("vit-pytorch", "vit-pytorch", _vit_pytorch, VIT_PYTORCH, _OF_VIT_PYTORCH)


def vit_pytorch_plain() -> TorchAdapter:
    """The same, its two normalisations of patches taken out."""
    return _adapter(
        "vit-pytorch-plain", "vit-pytorch", _vit_pytorch_plain, VIT_PYTORCH_PLAIN, _OF_VIT_PYTORCH
    )


def _vit_pytorch(config: VisionTransformerConfig, *_: int) -> Any:
    declare_missing_operators()
    c = config
    model = framework("vit_pytorch.vit").ViT(
        image_size=(c.image_h, c.image_w),
        patch_size=(c.patch_h, c.patch_w),
        num_classes=c.num_classes,
        dim=c.embed_dim,
        depth=c.num_layers,
        heads=c.head_count,
        mlp_dim=c.hidden_dim,
        pool=c.pool,
        channels=c.in_channels,
        dim_head=c.head_dim,
    )
    if c.pool == "mean":  # it has a parameter of no CLS tokens, (0, D)
        nothing = model.cls_token.detach()
        del model.cls_token
        model.register_buffer("cls_token", nothing)
    return model


def _vit_pytorch_plain(config: VisionTransformerConfig, *_: int) -> Any:
    model, nothing = _vit_pytorch(config), framework("torch").nn.Identity()
    model.to_patch_embedding[1] = model.to_patch_embedding[3] = nothing
    return model


# ---- PyTorch itself ------------------------------------------------------------------------------

_OF_TORCH = Abilities(
    {
        "activation": ("gelu", "gelu_tanh", "relu"), "qkv_bias": (True,), "output_bias": (True,),
        "layer_scale": (False,),
    },
)  # fmt: skip


def torch_pre_norm() -> TorchAdapter:
    """`Conv2d`, `TransformerEncoder` with `norm_first=True`, and `Linear`."""
    return _adapter("torch-pre-norm", "torch", _torch_pre_norm, TORCH_PRE_NORM, _OF_TORCH)


def _torch_pre_norm(config: VisionTransformerConfig, *_: int) -> Any:
    torch, c = framework("torch"), config
    nn, functional, D = torch.nn, torch.nn.functional, c.embed_dim
    if not c.cls_token and "cls" in c.pool:
        raise ValueError(f"pool {c.pool!r} needs cls_token")  # pooling is done here, not by PyTorch
    activations: dict[str, Any] = {
        "gelu": "gelu", "relu": "relu", "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    }  # fmt: skip
    layer = nn.TransformerEncoderLayer(
        D, c.head_count, c.hidden_dim, dropout=0.0, activation=activations[c.activation],
        layer_norm_eps=c.layer_norm_eps, batch_first=True, norm_first=True,
    )  # fmt: skip

    class ViT(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            patch = (c.patch_h, c.patch_w)
            self.patch_embed = nn.Conv2d(c.in_channels, D, patch, patch)
            if c.cls_token:
                self.cls_token = nn.Parameter(torch.zeros(1, 1, D))
            self.pos_embed = nn.Parameter(torch.zeros(1, c.token_count, D))
            norm = _norm(c)(D)
            self.encoder = nn.TransformerEncoder(
                layer, c.num_layers, norm=norm, enable_nested_tensor=False
            )
            self.head = nn.Linear(c.pooled_dim, c.num_classes)

        def forward(self, images: Any) -> Any:
            x = self.patch_embed(images).flatten(2).transpose(1, 2)
            if c.cls_token:
                x = torch.cat([self.cls_token.expand(len(images), 1, D), x], dim=1)
            x = self.encoder(x + self.pos_embed)
            parts = {"cls": x[:, 0], "mean": x[:, int(c.cls_token) :].mean(dim=1)}
            return self.head(torch.cat([parts[name] for name in c.pool.split("_")], dim=1))

    return ViT()
