"""The Lean mirror's ViT and the practical family's in PyTorch, with mistakes.

Written from their definitions: a post-norm encoder with ReLU, without biases in the attention, and
the pre-norm ViT of Dosovitskiy et al. with the options that pretrained models have. The parameters
have the names of the specification; weights in the layers are stored (in, out).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from mistaken.torch_attention import Note, Params, attention
from mistaken.torch_ops import Mistakes, feed_forward, layer_norm
from mistaken.torch_tokens import patches, pool, prepared, sequence, whole_patches


def model(spec: str, config: Any, params: Params, images: Tensor, m: Mistakes) -> dict[str, Tensor]:
    """Logits, and intermediate values by the specification's names."""
    taps: dict[str, Tensor] = {}
    function = practical if spec == "vision-transformer" else lean
    logits = function(config, params, images, m, taps.__setitem__)
    return {"logits": logits} | taps


def encoder(layer: Any, c: Any, params: Params, x: Tensor, m: Mistakes, note: Note) -> Tensor:
    """The layers, one after the other."""
    order = list(range(c.num_layers))
    if "layers-in-reverse" in m:
        order.reverse()
    if "layers-shared" in m:
        order = [0] * len(order)
    if "last-layer-skipped" in m:
        order = order[:-1]
    for i, which in enumerate(order):
        start = f"encoder.layers.{which}."
        own = {n.removeprefix(start): w for n, w in params.items() if n.startswith(start)}
        here = partial(_note_below, note, f"encoder.layers.{i}.")
        x = layer(x, own, c, m, here, i == c.num_layers - 1)
    return x


def _note_below(note: Note, start: str, name: str, value: Tensor) -> None:
    note(start + name, value)


def head(pooled: Tensor, p: Params, m: Mistakes) -> Tensor:
    """The classifier."""
    if "backbone-gradient-stopped" in m:
        pooled = pooled.detach()
    if "pooled-tanh" in m:
        pooled = pooled.tanh()
    weight = p["head.weights"]
    if "head-weight-transposed" in m:
        weight = weight.mT.reshape(weight.shape)
    bias = None if "head-bias-missing" in m else p["head.bias"]
    logits = torch.nn.functional.linear(pooled, weight, bias)
    if "classes-reversed" in m:
        return logits.flip(-1)
    return logits.softmax(-1) if "logits-softmaxed" in m else logits


# ---- the Lean mirror -----------------------------------------------------------------------------

LEAN_EPS = 1e-6


def lean(c: Any, p: Params, images: Tensor, m: Mistakes, note: Note) -> Tensor:
    """`vit`, or `vit-cls` if there is a CLS token."""
    has_cls = "cls_token" in p
    tokens, grid = patches(prepared(images, m), p, (c.stride, c.stride), c.padding, m)
    x = sequence(tokens, p, grid, None, m)
    note("embedded", x)
    x = encoder(post_norm_layer, c, p, x, m, note)
    note("encoded", x)
    pooled = pool(x, "cls" if has_cls else "mean", int(has_cls), m)
    note("pooled", pooled)
    return head(pooled, p, m)


def post_norm_layer(x: Tensor, p: Params, c: Any, m: Mistakes, note: Note, last: bool) -> Tensor:
    """Attention and feed-forward, each normalised after its residual's addition."""
    if "pre-norm" in m:
        return pre_norm_instead(x, p, c, m, note)
    later = None
    if "layer-backward-at-its-output" in m:
        with torch.no_grad():
            right = m - {"layer-backward-at-its-output"}
            later = post_norm_layer(x, p, c, right, lambda name, value: None, last)
    attended = attention(x, p, c.head_count, m, note, later)
    past = x.detach() if "attention-residual-gradient-dropped" in m else x
    residual1 = attended if "attention-residual-missing" in m else past + attended
    first, second = norm_names(m)
    normed1 = layer_norm(residual1, p[f"{first}_gamma"], p[f"{first}_beta"], LEAN_EPS, m)
    fed = feed_forward(normed1, p, "relu", m, note)
    past = normed1
    if "feed-forward-residual-before-norm" in m:
        past = residual1
    if "feed-forward-residual-of-the-input" in m:
        past = x
    if "feed-forward-residual-gradient-dropped" in m:
        past = past.detach()
    residual2 = fed if "feed-forward-residual-missing" in m else past + fed
    output = layer_norm(residual2, p[f"{second}_gamma"], p[f"{second}_beta"], LEAN_EPS, m)
    if last and "last-norm-missing" in m:
        output = residual2
    for name, value in {"residual1": residual1, "normed1": normed1,
                        "residual2": residual2, "output": output}.items():  # fmt: skip
        note(name, value)
    return output


def norm_names(m: Mistakes) -> tuple[str, str]:
    """Whose parameters the two normalisations of a layer have."""
    if "layer-norms-swapped" in m:
        return "norm2", "norm1"
    return "norm1", "norm1" if "layer-norm-shared" in m else "norm2"


def pre_norm_instead(x: Tensor, p: Params, c: Any, m: Mistakes, note: Note) -> Tensor:
    """The ViT paper's layer, where the Lean mirror's is meant."""
    normed = layer_norm(x, p["norm1_gamma"], p["norm1_beta"], LEAN_EPS, m)
    x = x + attention(normed, p, c.head_count, m, note)
    normed = layer_norm(x, p["norm2_gamma"], p["norm2_beta"], LEAN_EPS, m)
    x = x + feed_forward(normed, p, "relu", m, note)
    note("output", x)
    return x


# ---- the practical family ------------------------------------------------------------------------


def practical(c: Any, p: Params, images: Tensor, m: Mistakes, note: Note) -> Tensor:
    """`vision-transformer`."""
    patch = c.patch_h, c.patch_w
    images = whole_patches(prepared(images, m), patch, m)
    tokens, grid = patches(images, p, patch, 0, m)
    own_grid = c.image_h // c.patch_h, c.image_w // c.patch_w
    x = sequence(tokens, p, grid, own_grid, m)
    if "norm-before-the-blocks" in m:
        x = torch.nn.functional.layer_norm(x, x.shape[-1:], eps=c.layer_norm_eps)
    note("embedded", x)
    x = encoder(block, c, p, x, m, note)
    eps = 1e-6 if "final-norm-eps-1e-6" in m else c.layer_norm_eps

    def final_norm(h: Tensor) -> Tensor:
        if "final-norm-missing" in m:
            return h
        gamma, beta = p["final_norm_gamma"], p["final_norm_beta"]
        if m & {"final-norm-shift-missing", "final-norm-gain-and-shift-missing"}:
            beta = torch.zeros_like(beta)
        if "final-norm-gain-and-shift-missing" in m:
            gamma = torch.ones_like(gamma)
        return layer_norm(h, gamma, beta, eps, m)

    last = final_norm(x)
    note("last_hidden_state", last)
    if "final-norm-after-pooling" in m:
        pooled = pool(x, c.pool, int(c.cls_token), m)
        pooled = final_norm(pooled.unflatten(-1, (-1, c.embed_dim))).flatten(1)
    else:
        pooled = pool(last, c.pool, int(c.cls_token), m)
    note("pooled", pooled)
    return head(pooled, p, m)


def block(x: Tensor, p: Params, c: Any, m: Mistakes, note: Note, last: bool) -> Tensor:
    """Attention and feed-forward, each of its normalised input, scaled, and added."""
    eps = 1e-6 if "block-norm-eps-1e-6" in m else c.layer_norm_eps
    post = "post-norm" in m
    first, second = norm_names(m)
    later = None
    if "layer-backward-at-its-output" in m:
        with torch.no_grad():
            right = m - {"layer-backward-at-its-output"}
            later = block(x, p, c, right, lambda name, value: None, last)

    def norm1(h: Tensor) -> Tensor:
        return layer_norm(h, p[f"{first}_gamma"], p[f"{first}_beta"], eps, m, later)

    def norm2(h: Tensor) -> Tensor:
        return layer_norm(h, p[f"{second}_gamma"], p[f"{second}_beta"], eps, m)

    normed1 = x if post else norm1(x)
    unnormed = x if "keys-and-values-not-normalised" in m else None
    attended = attention(normed1, p, c.head_count, m, note, unnormed=unnormed)
    past = normed1 if "residual-of-the-normalised" in m else x
    if "attention-residual-gradient-dropped" in m:
        past = past.detach()
    if "layer-scales-on-the-sum" in m and "layer_scale1" in p:
        residual = (past + attended) * p["layer_scale1"]
    else:
        branch = scaled(attended, p, 1, m)
        residual = branch if "attention-residual-missing" in m else past + branch
    residual = norm1(residual) if post else residual
    normed2 = residual if post else norm2(x if "branches-parallel" in m else residual)
    branch = scaled(feed_forward(normed2, p, c.activation, m, note), p, 2, m)
    past = residual
    if "feed-forward-residual-of-the-input" in m:
        past = x
    if "feed-forward-residual-of-the-normalised" in m:
        past = normed2
    if "feed-forward-residual-gradient-dropped" in m:
        past = past.detach()
    output = branch if "feed-forward-residual-missing" in m else past + branch
    output = norm2(output) if post else output
    for name, value in {"normed1": normed1, "residual": residual,
                        "normed2": normed2, "output": output}.items():  # fmt: skip
        note(name, value)
    return output


def scaled(branch: Tensor, p: Params, which: int, m: Mistakes) -> Tensor:
    """A branch times its layer scale, if it has one."""
    if "layer-scales-swapped" in m:
        which = 3 - which
    scale = p.get(f"layer_scale{which}")
    if scale is None or "layer-scales-missing" in m:
        return branch
    if "layer-scales-twice" in m:
        scale = scale * scale
    if "layer-scale-gradient-stopped" in m:
        scale = scale.detach()
    if "layer-scale-gradient-not-scaled" in m:
        # The value of one product, the gradients of two: the branch's as it arrives, the scale's.
        return branch + (branch.detach() * (scale - 1))
    if "layer-scales-before-the-bias" in m:  # folded into the weight, and not into the bias
        bias = p.get("mha.bo" if which == 1 else "ffn.b2")
        return branch * scale if bias is None else (branch - bias) * scale + bias
    return branch * scale
