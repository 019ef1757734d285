"""The identities between the gradients of a Vision Transformer's parameters, by role.

Each ties gradients together that any correct backward of the architecture must tie together at
every point; `docs/identities.md` derives them. Both sides of each are sums of products of weights
(`w`) and one gradient (`d`) each, written without subtractions. So the same expression, evaluated
at magnitudes, is what the sides sum; at the weights' magnitudes and the gradients' noise, it is
what rounding makes of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vitspec.testing.identities.place import Place, Sides
from vitspec.typing import Array


@dataclass(frozen=True)
class Identity:
    """One identity.

    Attributes:
        name: permanent.
        formula: in one line.
        gradients: the roles whose gradients it ties together.
        sides: its two sides at a place.
        weights: roles that it needs beside those.
        optional: more roles whose gradients it has, where the model has the roles.
        norm: "pre" or "post" if it holds only there.
        relu: whether it holds only for ReLU.
        without: roles that must be absent.
        heads: whether it needs the number of heads.
        single: whether it holds for one image only (and needs the grid of patches).
        uses: which of `image`, `logits`, `cotangent` the sides have beside parameters' gradients.
        size: what the sides sum, if their terms do not show it.
    """

    name: str
    formula: str
    gradients: tuple[str, ...]
    sides: Callable[[Place], Sides]
    weights: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    norm: str = ""
    relu: bool = False
    without: tuple[str, ...] = ()
    heads: bool = False
    single: bool = False
    uses: tuple[str, ...] = ()
    size: Callable[[Place], Array] | None = None


def _zero_mean(linear: str, norm: str, bias: bool = True) -> Callable[[Place], Sides]:
    """A normalised row (x - beta) / gamma sums to 0, so a shift of W by 1 / gamma does nothing."""

    def sides(p: Place) -> Sides:
        inverse = 1 / p.w(f"{norm}.gamma")
        left = inverse @ p.d(f"{linear}.weight")
        if not bias:
            return left, 0.0
        return left, (p.w(f"{norm}.beta") @ inverse) * p.d(f"{linear}.bias")

    return sides


def _features(norm: str, *linears: str) -> Callable[[Place], Sides]:
    """Scaling a feature of the norm is scaling the row of each linear map that reads it."""

    def sides(p: Place) -> Sides:
        g, b = f"{norm}.gamma", f"{norm}.beta"
        left = p.w(g) * p.d(g) + p.w(b) * p.d(b)
        return left, sum(
            (p.w(f"{linear}.weight") * p.d(f"{linear}.weight")).sum(1) for linear in linears
        )

    return sides


def _shift(norm: str, *linears: str, residual: str = "") -> Callable[[Place], Sides]:
    """Shifting what the norm gives is shifting the biases of everything that reads it."""

    def sides(p: Place) -> Sides:
        right = sum(p.w(f"{linear}.weight") @ p.d(f"{linear}.bias") for linear in linears)
        return p.d(f"{norm}.beta"), right + p.d(f"{residual}.bias") if residual else right

    return sides


def _residual_without_biases(p: Place) -> Sides:
    inverse = 1 / p.w("attn_norm.gamma")
    s = p.w("attn_norm.beta") @ inverse
    q, v = inverse @ p.d("q.weight"), inverse @ p.d("v.weight")
    read = p.w("q.weight") @ q + p.w("v.weight") @ v
    return s * (p.d("attn_norm.beta") @ p.w("o.weight").T), v + read @ p.w("o.weight").T


def _query_key(p: Place) -> Sides:
    w = {part: p.by_head(p.affine(part, p.w)) for part in "qk"}
    d = {part: p.by_head(p.affine(part, p.d)) for part in "qk"}
    return d["q"].swapaxes(1, 2) @ w["q"], w["k"].swapaxes(1, 2) @ d["k"]


def _value_output(p: Place) -> Sides:
    w, d = (p.by_head(p.affine("v", of)) for of in (p.w, p.d))
    out_w, out_d = (p.by_head(of("o.weight").T) for of in (p.w, p.d))
    return d.swapaxes(1, 2) @ w, out_w.swapaxes(1, 2) @ out_d


def _relu_units(p: Place) -> Sides:
    left = (p.affine("fc1", p.w) * p.affine("fc1", p.d)).sum(0)
    return left, (p.w("fc2.weight") * p.d("fc2.weight")).sum(1)


def _head_logits(p: Place) -> Sides:
    left = (p.affine("head", p.w) * p.affine("head", p.d)).sum(0)
    return left, (p.weights["cotangent"] * p.gradients["logits"]).sum(0)


def patch_positions(p: Place) -> Array:
    """The gradients of the positions of patch tokens, without CLS's."""
    return p.d("pos")[int(p.has("cls")) :]


def _kernel_image(p: Place) -> Sides:
    left = (p.w("patch.weight") * p.d("patch.weight")).sum((0, 2, 3))
    return left, (p.weights["images"] * p.gradients["image"]).sum((0, 2, 3))


def _windows(p: Place, padded: Array) -> Array:
    """A view of the patches of a padded image: (C, rows, columns, ph, pw)."""
    (down, across), size = p.geometry[0], p.w("patch.weight").shape[2:]
    views = np.lib.stride_tricks.sliding_window_view(padded, size, (1, 2), writeable=True)
    return views[:, ::down, ::across]


def _padded(p: Place) -> Array:
    around = (p.geometry[1],) * 2
    return np.pad(p.weights["images"][0], ((0, 0), around, around))


def _kernel_from_positions(p: Place) -> Sides:
    patches = _windows(p, _padded(p))
    grid = patch_positions(p).reshape(*patches.shape[1:3], -1)
    return p.d("patch.weight"), np.einsum("chwij,hwd->dcij", patches, grid)


def _image_from_positions(p: Place) -> Sides:
    found = np.zeros_like(_padded(p))
    windows = _windows(p, found)
    grid = patch_positions(p).reshape(*windows.shape[1:3], -1)
    through = np.einsum("hwd,dcij->chwij", grid, p.w("patch.weight"))
    for row, column in np.ndindex(windows.shape[1:3]):
        windows[:, row, column] += through[:, row, column]
    inside = [slice(p.geometry[1], p.geometry[1] + n) for n in p.weights["images"].shape[2:]]
    return p.gradients["image"][0], found[:, *inside]


def _writer(role: str, axis: int, norm: str = "") -> Identity:
    """What is written into a residual stream that only normalisations read: shifts do nothing."""
    formula = f"sum of d {role} over the output features = 0"

    def sides(p: Place) -> Sides:
        return p.d(role).sum(axis), 0.0

    return Identity("residual writer", formula, (role,), sides, ("last_norm.gamma",), norm=norm)


def _key_bias_size(p: Place) -> Array:
    """Roughly the sum over tokens of |d k|: inputs of the keys are of order one."""
    return np.sqrt(np.mean(np.square(p.d("k.weight")), 0))


def _norm(name: str) -> tuple[str, str]:
    return f"{name}.gamma", f"{name}.beta"


def _rows_into(name: str, linear: str, norm: str, letter: str) -> Identity:
    return Identity(
        f"normalised rows into {name}",
        f"sum_i d{letter}_ij / gamma_i = (sum_i beta_i / gamma_i) d bias_j",
        (f"{linear}.weight", f"{linear}.bias"), _zero_mean(linear, norm), _norm(norm),
    )  # fmt: skip


_QKV = ("q.weight", "k.weight", "v.weight")
_QKV_BIASES = ("q.bias", "k.bias", "v.bias")

GLOBAL: tuple[Identity, ...] = (
    Identity(
        "head bias", "d head.b = sum_b g_b", ("head.bias",),
        lambda p: (p.d("head.bias"), p.gradients["cotangent"].sum(0)), uses=("cotangent",),
    ),
    Identity(
        "head and logits", "<W_k, dW_k> + b_k db_k = sum over the batch of g_k logits_k",
        ("head.weight",), _head_logits, optional=("head.bias",), uses=("logits",),
    ),
    _rows_into("the head", "head", "last_norm", "W"),
    Identity(
        "norm's features into the head", "gamma_i dgamma_i + beta_i dbeta_i = <W_i, dW_i>",
        ("head.weight", *_norm("last_norm")), _features("last_norm", "head"),
    ),
    Identity(
        "norm's shift into the head", "dbeta = W db",
        ("last_norm.beta", "head.bias"), _shift("last_norm", "head"), ("head.weight",),
    ),
    Identity(
        "CLS token and its position", "d cls = d pos[0]", ("cls", "pos"),
        lambda p: (p.d("cls"), p.d("pos")[0]),
    ),
    Identity(
        "patch bias and positions", "d patch.b = sum over patch tokens of d pos",
        ("patch.bias", "pos"), lambda p: (p.d("patch.bias"), patch_positions(p).sum(0)),
    ),
    Identity(
        "kernel and image", "per channel: <kernel, d kernel> = <image, d image>",
        ("patch.weight",), _kernel_image, uses=("image",),
    ),
    Identity(
        "kernel from positions", "one image: d kernel = sum_t d pos_t (x) patch_t",
        ("patch.weight", "pos"), _kernel_from_positions, single=True,
    ),
    Identity(
        "image from positions", "one image: d image = sum_t kernel^T d pos_t, at patch t",
        ("pos",), _image_from_positions, ("patch.weight",), single=True, uses=("image",),
    ),
    _writer("patch.weight", 0, "pre"),
    _writer("patch.bias", 0, "pre"),
    _writer("cls", 0, "pre"),
    _writer("pos", 1, "pre"),
)  # fmt: skip
"""Those outside the layers."""

PER_LAYER: tuple[Identity, ...] = (
    Identity(
        "queries and keys", "per head: dWq^T Wq + dbq bq^T = Wk^T dWk + bk dbk^T",
        ("q.weight", "k.weight"), _query_key, optional=("q.bias", "k.bias"), heads=True,
    ),
    Identity(
        "values and outputs", "per head: dWv^T Wv + dbv bv^T = Wo dWo^T",
        ("v.weight", "o.weight"), _value_output, optional=("v.bias",), heads=True,
    ),
    Identity(
        "key bias", "dbk = 0", ("k.bias",), lambda p: (p.d("k.bias"), 0.0), ("k.weight",),
        size=_key_bias_size,
    ),
    Identity(
        "value bias and output bias", "dbv = Wo dbo", ("v.bias", "o.bias"),
        lambda p: (p.d("v.bias"), p.w("o.weight") @ p.d("o.bias")), ("o.weight",),
    ),
    Identity(
        "normalised rows into the keys", "sum_i dWk_ij / gamma_i = 0", ("k.weight",),
        _zero_mean("k", "attn_norm", bias=False), _norm("attn_norm"),
    ),
    _rows_into("the queries", "q", "attn_norm", "Wq"),
    _rows_into("the values", "v", "attn_norm", "Wv"),
    _rows_into("fc1", "fc1", "ffn_norm", "W1"),
    Identity(
        "norm's features into attention", "gamma_i dgamma_i + beta_i dbeta_i = "
        "<Wq_i, dWq_i> + <Wk_i, dWk_i> + <Wv_i, dWv_i>", (*_QKV, *_norm("attn_norm")),
        _features("attn_norm", *"qkv"), norm="pre",
    ),
    Identity(
        "norm's features into fc1", "gamma_i dgamma_i + beta_i dbeta_i = <W1_i, dW1_i>",
        ("fc1.weight", *_norm("ffn_norm")), _features("ffn_norm", "fc1"), norm="pre",
    ),
    Identity(
        "norm's shift into attention", "dbeta = Wq dbq + Wk dbk + Wv dbv",
        (*_QKV_BIASES, "attn_norm.beta"), _shift("attn_norm", *"qkv"), _QKV, norm="pre",
    ),
    Identity(
        "norm's shift into attention", "dbeta = dbo + Wq dbq + Wk dbk + Wv dbv",
        (*_QKV_BIASES, "o.bias", "attn_norm.beta"), _shift("attn_norm", *"qkv", residual="o"),
        _QKV, norm="post",
    ),
    Identity(
        "norm's shift into attention without biases", "s Wo dbeta = cv + Wo (Wq cq + Wv cv), "
        "s = sum_i beta_i / gamma_i, c_j = sum_i dW_ij / gamma_i",
        ("q.weight", "v.weight", "attn_norm.beta"), _residual_without_biases,
        ("o.weight", "attn_norm.gamma"), norm="post", without=(*_QKV_BIASES, "o.bias"),
    ),
    Identity(
        "norm's shift into fc1", "dbeta = W1 db1", ("fc1.bias", "ffn_norm.beta"),
        _shift("ffn_norm", "fc1"), ("fc1.weight",), norm="pre",
    ),
    Identity(
        "norm's shift into fc1", "dbeta = db2 + W1 db1", ("fc1.bias", "fc2.bias", "ffn_norm.beta"),
        _shift("ffn_norm", "fc1", residual="fc2"), ("fc1.weight",), norm="post",
    ),
    Identity(
        "hidden units", "each unit: <W1_j, dW1_j> + b1_j db1_j = <W2_j, dW2_j>",
        ("fc1.weight", "fc2.weight"), _relu_units, optional=("fc1.bias",), relu=True,
    ),
    _writer("o.weight", 1),
    _writer("o.bias", 0),
    _writer("fc2.weight", 1),
    _writer("fc2.bias", 0),
)  # fmt: skip
"""Those of every layer."""
