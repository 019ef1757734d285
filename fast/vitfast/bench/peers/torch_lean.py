"""Both functions in lean PyTorch: one product for q, k and v, fused attention, no hooks, no masks.

This is about the fastest that one gets out of PyTorch without writing kernels.
"""

from __future__ import annotations

from typing import Any

from vitfast.bench.cases import PRE_NORM_EPSILON, Case
from vitspec.scalars import EPSILON
from vitspec.testing.adapters.frameworks import framework

torch = framework("torch")
nn, functional = torch.nn, torch.nn.functional


class Layer(nn.Module):  # type: ignore[name-defined]
    """One encoder layer, pre-norm with GELU, or post-norm with ReLU and no attention biases."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        c, self.pre_norm = case.config, case.family == "pre-norm"
        D, epsilon = c.embed_dim, PRE_NORM_EPSILON if self.pre_norm else float(EPSILON)
        self.heads = (3, c.head_count, c.head_dim)
        self.qkv = nn.Linear(D, 3 * c.inner_dim, bias=self.pre_norm)
        self.out = nn.Linear(c.inner_dim, D, bias=self.pre_norm)
        self.norm1, self.norm2 = (nn.LayerNorm(D, eps=epsilon) for _ in range(2))
        self.linear1, self.linear2 = nn.Linear(D, c.hidden_dim), nn.Linear(c.hidden_dim, D)

    def forward(self, x: Any) -> Any:
        """(B, n, D) to (B, n, D)."""
        if self.pre_norm:
            x = x + self.attention(self.norm1(x))
            return x + self.linear2(functional.gelu(self.linear1(self.norm2(x))))
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.linear2(functional.relu(self.linear1(x))))

    def attention(self, x: Any) -> Any:
        """Attention of all heads and their projection."""
        B, n, _ = x.shape
        query, key, value = self.qkv(x).view(B, n, *self.heads).permute(2, 0, 3, 1, 4)
        heads = functional.scaled_dot_product_attention(query, key, value)
        return self.out(heads.transpose(1, 2).reshape(B, n, -1))


class LeanViT(nn.Module):  # type: ignore[name-defined]
    """The module, on images (B, C, H, W)."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        c, (channels, height, width) = case.config, case.image_shape
        D, patch = c.embed_dim, (c.patch_h, c.patch_w)
        tokens = (height // c.patch_h) * (width // c.patch_w)
        self.cls = case.cls
        self.patch_embed = nn.Conv2d(channels, D, patch, patch)
        if self.cls:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, D))
            self.norm = nn.LayerNorm(D, eps=PRE_NORM_EPSILON)
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens + self.cls, D))
        self.layers = nn.ModuleList(Layer(case) for _ in range(c.num_layers))
        self.head = nn.Linear(D, c.num_classes)

    def forward(self, images: Any) -> Any:
        """The logits (B, K)."""
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        if self.cls:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = x + self.pos_embed
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x[:, 0]) if self.cls else x.mean(dim=1))
