"""The peers that are made of PyTorch modules: data only."""

from __future__ import annotations

from vitspec.testing.adapters.peers.peer import Peer

_HUGGING_FACE = "vitspec.testing.adapters.peers.hugging_face:"
_LIBRARIES = "vitspec.testing.adapters.peers.torch_libraries:"
_TRANSFORMERS = ("transformers", "torch")

TORCH_PEERS: tuple[Peer, ...] = (
    Peer("transformers", _HUGGING_FACE + "vit", _TRANSFORMERS, "ViTForImageClassification, sdpa"),
    Peer(
        "transformers-eager",
        _HUGGING_FACE + "vit_eager",
        _TRANSFORMERS,
        "ViTForImageClassification, eager",
    ),
    Peer("transformers-bare", _HUGGING_FACE + "vit_bare", _TRANSFORMERS, "ViTModel"),
    Peer("transformers-mim", _HUGGING_FACE + "vit_mim", _TRANSFORMERS, "ViTForMaskedImageModeling"),
    Peer("transformers-dinov2", _HUGGING_FACE + "dinov2", _TRANSFORMERS, "Dinov2"),
    Peer("timm", _LIBRARIES + "timm", ("timm", "torch", "torchvision"), "VisionTransformer"),
    Peer("torchvision", _LIBRARIES + "torchvision", ("torchvision", "torch"), "VisionTransformer"),
    Peer("vit-pytorch", _LIBRARIES + "vit_pytorch", ("vit-pytorch", "einops", "torch"), "ViT"),
    Peer(
        "vit-pytorch-plain",
        _LIBRARIES + "vit_pytorch_plain",
        ("vit-pytorch", "einops", "torch"),
        "ViT",
    ),
    Peer("torch-pre-norm", _LIBRARIES + "torch_pre_norm", ("torch",), "TransformerEncoder"),
)
