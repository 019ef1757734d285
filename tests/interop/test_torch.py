"""PyTorch as an oracle: both models built from its own modules, and its masked attention.

Nothing of the specification's mathematics is used on PyTorch's side. Its convolution makes the
patches, its post-norm encoder layers do the rest, and its autograd takes every derivative.
"""

from dataclasses import replace

import numpy as np
import pytest

from support.compare import assert_flat_close
from vitspec import ViTConfig
from vitspec.geometry import patch_count
from vitspec.layers.attention import (
    causal_mask,
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
)
from vitspec.testing.families import FAMILIES, MODELS
from vitspec.testing.photograph import load_photograph

torch = pytest.importorskip("torch")
functional = torch.nn.functional

TOLERANCE = 1e-11
VECTORS = {
    "ffn.b1": "linear1.bias",
    "ffn.b2": "linear2.bias",
    "norm1_gamma": "norm1.weight",
    "norm1_beta": "norm1.bias",
    "norm2_gamma": "norm2.weight",
    "norm2_beta": "norm2.bias",
}
MATRICES = {
    "mha.wo": "self_attn.out_proj.weight",
    "ffn.w1": "linear1.weight",
    "ffn.w2": "linear2.weight",
}
PROJECTIONS = ("mha.wq", "mha.wk", "mha.wv")


def tensor(array):
    return torch.tensor(array, dtype=torch.float64)


def torch_layer(config, flat):
    """PyTorch's encoder layer with these weights: (out, in), and without biases in attention."""
    layer = torch.nn.TransformerEncoderLayer(
        config.embed_dim, config.head_count, config.hidden_dim, dropout=0.0, activation="relu",
        layer_norm_eps=1e-6, batch_first=True, norm_first=False, dtype=torch.float64,
    )  # fmt: skip
    state = {theirs: tensor(flat[ours]) for ours, theirs in VECTORS.items()}
    state |= {theirs: tensor(flat[ours].T) for ours, theirs in MATRICES.items()}
    state["self_attn.in_proj_weight"] = tensor(np.concatenate([flat[n].T for n in PROJECTIONS]))
    state["self_attn.in_proj_bias"] = torch.zeros(3 * config.embed_dim, dtype=torch.float64)
    state["self_attn.out_proj.bias"] = torch.zeros(config.embed_dim, dtype=torch.float64)
    layer.load_state_dict(state, strict=True)
    return layer


def torch_layer_gradients(layer):
    """The gradients by the specification's names, (in, out)."""
    theirs = {name: parameter.grad.numpy() for name, parameter in layer.named_parameters()}
    grads = {ours: theirs[name] for ours, name in VECTORS.items()}
    grads |= {ours: theirs[name].T for ours, name in MATRICES.items()}
    projections = np.split(theirs["self_attn.in_proj_weight"], 3)
    return grads | {ours: g.T for ours, g in zip(PROJECTIONS, projections, strict=True)}


def torch_evaluate(spec, config, flat, image, d_logits):
    """Logits and all gradients, by PyTorch."""
    own = {name: tensor(a).requires_grad_() for name, a in flat.items() if "encoder." not in name}
    pixels = tensor(image).requires_grad_()
    prefixes = [f"encoder.layers.{i}." for i in range(config.num_layers)]
    layers = [
        torch_layer(config, {n.removeprefix(p): a for n, a in flat.items() if n.startswith(p)})
        for p in prefixes
    ]
    grid = functional.conv2d(
        pixels[None], own["patch_embed.kernel"], own["patch_embed.bias"], config.stride,
        config.padding,
    )  # fmt: skip
    x = grid.flatten(2).transpose(1, 2)
    if spec == "vit-cls":
        x = torch.cat([own["cls_token"].expand(1, 1, -1), x], dim=1)
    x = x + own["pos_enc.pos"]
    for layer in layers:
        assert layer.training  # the fused inference kernel is another implementation
        x = layer(x)
    pooled = x[0, 0] if spec == "vit-cls" else x[0].mean(dim=0)
    logits = functional.linear(pooled, own["head.weights"], own["head.bias"])
    logits.backward(tensor(d_logits))
    found = {"logits": logits.detach().numpy(), "image": pixels.grad.numpy()}
    found |= {name: leaf.grad.numpy() for name, leaf in own.items()}
    for prefix, layer in zip(prefixes, layers, strict=True):
        found |= {prefix + name: g for name, g in torch_layer_gradients(layer).items()}
    return found


def assert_models_agree(model, spec, image, d_logits):
    grads, d_image = model.backward(image, d_logits)
    ours = {"logits": model.forward(image), "image": d_image, **grads.to_flat()}
    truth = torch_evaluate(spec, model.config, model.to_flat(), image, d_logits)
    assert_flat_close(ours, truth, TOLERANCE)


def shared_case(spec, seed):
    """A random case of at least two tokens, whose heads divide the width as PyTorch's must."""
    rng = np.random.default_rng([seed, 60, spec == "vit-cls"])
    while True:
        case = FAMILIES[spec].random_case(rng)
        c = case.config
        # The gradients of Wq and Wk are zero for one token: only rounding could be compared.
        if patch_count(c, case.height, case.width) > 1:
            head_dim = -(-c.embed_dim // c.head_count)
            return replace(case, config=replace(c, embed_dim=c.head_count * head_dim))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("spec", MODELS)
def test_small_models_agree_in_logits_and_every_gradient(spec, seed):
    case = shared_case(spec, seed)
    assert_models_agree(case.model(), spec, case.image(), case.d_logits())


@pytest.mark.parametrize("spec", MODELS)
def test_two_layers_of_vit_base_agree_on_the_photograph(spec):
    config = ViTConfig(
        patch_h=16, patch_w=16, stride=16, padding=0, embed_dim=768, hidden_dim=3072,
        head_count=12, num_layers=2, num_classes=1000,
    )  # fmt: skip
    rng = np.random.default_rng(61)
    model = MODELS[spec].init(config, in_channels=3, height=224, width=224, rng=rng)
    assert_models_agree(model, spec, load_photograph(), rng.standard_normal(1000))


# ---- masked attention ----------------------------------------------------------------------------


def attention_case(seed, heads=3, n_q=5, n_k=7, d=4, e=6):
    """(q, k, v) and a cotangent; as many queries as keys, or not, and values of another width."""
    rng = np.random.default_rng([seed, 62])
    shapes = (heads, n_q, d), (heads, n_k, d), (heads, n_k, e), (heads, n_q, e)
    *qkv, d_out = (2 * rng.standard_normal(shape) for shape in shapes)
    return qkv, d_out, rng


def assert_attention_agrees(qkv, d_out, mask, **torch_mask):
    """The output and the gradients of q, k and v; PyTorch's are returned."""
    leaves = [tensor(a).requires_grad_() for a in qkv]
    theirs = functional.scaled_dot_product_attention(*leaves, **torch_mask)
    theirs.backward(tensor(d_out))
    truths = {"out": theirs.detach().numpy()}
    truths |= {name: leaf.grad.numpy() for name, leaf in zip("qkv", leaves, strict=True)}
    gradients = scaled_dot_product_attention_backward(*qkv, d_out, mask)
    ours = dict(zip("qkv", gradients, strict=True))
    ours["out"] = scaled_dot_product_attention(*qkv, mask)
    assert_flat_close(ours, truths, 1e-13)
    return truths


@pytest.mark.parametrize("seed", range(5))
def test_attention_under_random_masks_agrees(seed):
    qkv, d_out, rng = attention_case(seed)
    mask = rng.random((5, 7)) < 0.4
    mask[np.arange(5), rng.integers(7, size=5)] = True
    assert_attention_agrees(qkv, d_out, mask, attn_mask=torch.tensor(mask))


def test_causal_mask_is_the_one_that_pytorch_means():
    qkv, d_out, _ = attention_case(5, n_q=6, n_k=6)
    assert_attention_agrees(qkv, d_out, causal_mask(6), is_causal=True)


def test_fully_blocked_rows_are_zero_in_both():
    """PyTorch gives a query without keys the output 0 and no gradient; so do we."""
    qkv, d_out, rng = attention_case(6)
    mask = rng.random((5, 7)) < 0.5
    mask[[0, 3]], mask[[1, 2, 4], [0, 3, 6]] = False, True
    truths = assert_attention_agrees(qkv, d_out, mask, attn_mask=torch.tensor(mask))
    for name in ("out", "q"):
        assert not truths[name][:, [0, 3]].any()
    nothing = np.zeros((5, 7), bool)
    truths = assert_attention_agrees(qkv, d_out, nothing, attn_mask=torch.tensor(nothing))
    assert not any(a.any() for a in truths.values())
