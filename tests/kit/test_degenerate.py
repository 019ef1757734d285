"""Degenerate points: correct code conforms there, and each kind shows what nothing else does."""

import math
from functools import cache

import numpy as np
import pytest

from vitspec import VisionTransformerConfig, ViTConfig
from vitspec.testing import Settings, SpecImplementation, check
from vitspec.testing.adapters import from_torch_function
from vitspec.testing.degenerate import KINDS
from vitspec.testing.layouts import OTHER_ORDER, laid_out
from vitspec.testing.suites import SUITES

torch = pytest.importorskip("torch")
F = torch.nn.functional


# ---- a ViT of PyTorch's functions, one of which a test replaces ----------------------------------


def layer_norm(x, gamma, beta, eps):
    return F.layer_norm(x, x.shape[-1:], gamma, beta, eps)


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


def tanh_gelu(x):
    return F.gelu(x, approximate="tanh")


def softmax(scores):
    return torch.softmax(scores, -1)


def attention(q, k, v, weights):
    return weights(q @ k.mT / math.sqrt(q.shape[-1])) @ v


RIGHT = {
    "norm": layer_norm, "last_norm": None, "softmax": softmax, "attention": attention,
    "relu": torch.relu, "gelu": F.gelu, "gelu_tanh": tanh_gelu, "quick_gelu": quick_gelu,
    "images": lambda images: images,
}  # fmt: skip


def vit_of(**replaced):
    """A function (config, parameters, images) -> logits."""
    part = RIGHT | replaced
    last_norm = part["last_norm"] or part["norm"]

    def vit(c, p, images):
        x = part["images"](images)
        rows, columns = c.grid
        x = x[:, :, : rows * c.patch_h, : columns * c.patch_w]
        x = F.conv2d(x, p["patch_embed.kernel"], p["patch_embed.bias"], (c.patch_h, c.patch_w))
        x, cls = x.flatten(2).transpose(1, 2), int(c.cls_token)
        if cls:
            x = torch.cat([p["cls_token"].expand(len(x), 1, -1), x], 1)
        x = x + p["pos_enc.pos"]
        for i in range(c.num_layers):
            layer = {
                n.split(".", 3)[3]: t for n, t in p.items() if n.startswith(f"encoder.layers.{i}.")
            }
            x = block(c, layer.get, x)
        x = last_norm(x, p["final_norm_gamma"], p["final_norm_beta"], c.layer_norm_eps)
        pooled = [x[:, 0]] if "cls" in c.pool else []
        pooled += [x[:, cls:].mean(1)] if "mean" in c.pool else []
        return torch.cat(pooled, -1) @ p["head.weights"].T + p["head.bias"]

    def block(c, g, x):
        y = part["norm"](x, g("norm1_gamma"), g("norm1_beta"), c.layer_norm_eps)
        heads = [y @ g(f"mha.w{n}") + g(f"mha.b{n}", 0) for n in "qkv"]
        q, k, v = (h.unflatten(-1, (c.head_count, -1)).transpose(1, 2) for h in heads)
        o = part["attention"](q, k, v, part["softmax"]).transpose(1, 2).flatten(2)
        x = x + (o @ g("mha.wo") + g("mha.bo", 0)) * g("layer_scale1", 1)
        y = part["norm"](x, g("norm2_gamma"), g("norm2_beta"), c.layer_norm_eps)
        hidden = part[c.activation](y @ g("ffn.w1") + g("ffn.b1"))
        return x + (hidden @ g("ffn.w2") + g("ffn.b2")) * g("layer_scale2", 1)

    return vit


def implementation(vit):
    return from_torch_function(
        vit, name="mine", version="1", spec="vision-transformer",
        supports=lambda c: (c.violations() or [None])[0],
    )  # fmt: skip


ONLY_POINTS = {"cases": 0, "laws": 0, "interpolations": 0, "ill_formed": False}


def departing(mine, **settings):
    """The kinds of points at which it does not conform."""
    report = check(mine, **ONLY_POINTS | settings)
    assert all(r.place.suite == "degenerate" for r in report.results)
    return {r.place.index for r in report.results if r.status in ("failed", "errored")}


# ---- mistakes ------------------------------------------------------------------------------------


def norm_by_square_root(x, gamma, beta, eps):
    """Its derivative where the variance is 0 is 0 * infinity."""
    centred = x - x.mean(-1, keepdim=True)
    deviation = centred.square().mean(-1, keepdim=True).sqrt()
    return centred / (deviation**2 + eps).sqrt() * gamma + beta


def softmax_without_maximum(scores):
    powers = scores.exp()
    return powers / powers.sum(-1, keepdim=True)


def softmax_by_one_maximum(scores):
    """The largest score of all queries: those far below it have only zeros left."""
    powers = (scores - scores.amax((-1, -2), keepdim=True).detach()).exp()
    return powers / powers.sum(-1, keepdim=True)


def attention_if_any(q, k, v, weights):
    """Without a query (all zero) nothing is attended to, it thinks."""
    return attention(q, k, v, weights) * (q != 0).any() * (k != 0).any()


def blank_to_zero(images):
    """Takes images without contrast for padding."""
    blank = images.amax((1, 2, 3), keepdim=True) == images.amin((1, 2, 3), keepdim=True)
    return torch.where(blank, 0.0, images)


def skipped_if_zero(images):
    return images if images.any() else images + 1


def tanh_by_exponentials(x):
    z = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return 0.5 * x * (1 + ((2 * z).exp() - 1) / ((2 * z).exp() + 1))


def sigmoid_by_exponential(x):
    return x * (1.702 * x).exp() / (1 + (1.702 * x).exp())


def clipped_gelu(x):
    """Taken for the identity over 6, which it is; and for zero under -3, which it is not quite."""
    return F.gelu(x.clamp(max=8))


MISTAKES = {
    "norm by a square root": ({"norm": norm_by_square_root}, {"constant-rows", "zero-branches"}),
    "last norm by a square root": ({"last_norm": norm_by_square_root}, {"zero-branches"}),
    "softmax without maximum": ({"softmax": softmax_without_maximum}, {"extreme-scores"}),
    "softmax by one maximum": ({"softmax": softmax_by_one_maximum}, {"extreme-scores"}),
    "attention if any": ({"attention": attention_if_any}, {"equal-scores"}),
    "blank images to zero": ({"images": blank_to_zero}, {"blank-images"}),
    "zero images skipped": ({"images": skipped_if_zero}, {"zero-images"}),
    "ReLU6": ({"relu": F.relu6}, {"large-relu"}),
    "clipped GELU": ({"gelu": clipped_gelu}, {"large-gelu"}),
    "tanh by exponentials": ({"gelu_tanh": tanh_by_exponentials}, {"large-gelu-tanh"}),
    "sigmoid by an exponential": ({"quick_gelu": sigmoid_by_exponential}, {"large-quick-gelu"}),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_shows_at_its_points_and_nowhere_else(name):
    replaced, kinds = MISTAKES[name]
    mine = implementation(vit_of(**replaced))
    assert departing(mine) == kinds
    others = check(mine, cases=4, laws=1, interpolations=0, degenerate=False, ill_formed=False)
    assert others.conforms, others


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pytorchs_own_functions_conform(dtype):
    assert departing(implementation(vit_of()), dtype=dtype, seed=1) == set()
