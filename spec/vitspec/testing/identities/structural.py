"""Identities between the gradients of a Vision Transformer's parameters, by role.

Each ties gradients together that any correct backward of the architecture must tie together at
every point; `docs/identities.md` derives them. Both sides of each are sums of products of weights
(`w`) and one gradient (`d`) each, written without subtractions. So the same expression, evaluated
at magnitudes, is what the sides sum; at the weights' magnitudes and the gradients' noise, it is
what rounding makes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vitspec.testing.identities.evaluation import Evaluation, Flat
from vitspec.testing.identities.naming import Model
from vitspec.testing.identities.results import Comparison, IdentityResult, judged, skipped
from vitspec.typing import Array

Sides = tuple[Array, Any]


@dataclass(frozen=True)
class Place:
    """One layer (or None: outside the layers) of a model, and numbers for its roles.

    Attributes:
        model: the roles.
        layer: which layer.
        heads: how many heads there are.
        geometry: the strides of the patches along both axes, and the padding.
        weights: parameters by name, and `images` and `cotangent`.
        gradients: by name, `image`, and what else identities are linear in: `logits`, `cotangent`.
    """

    model: Model
    layer: int | None
    heads: int | None
    geometry: tuple[tuple[int, ...], int]
    weights: Mapping[str, Array]
    gradients: Mapping[str, Array]

    def where(self, role: str) -> tuple[str, int | None] | None:
        """The key of a role here; `attn_norm`, `ffn_norm`, `last_norm` are what feeds those."""
        part, _, array = role.partition(".")
        post, last = self.model.naming.norm == "post", self.model.num_layers - 1
        inside = (role, self.layer) in self.model.roles
        key: tuple[str, int | None] = (role, self.layer if inside else None)
        if part == "last_norm":
            key = (f"norm2.{array}", last) if post else (f"final_norm.{array}", None)
        elif part == "attn_norm" and self.layer is not None:
            key = (f"norm2.{array}", self.layer - 1) if post else (f"norm1.{array}", self.layer)
        elif part == "ffn_norm":
            key = (f"norm1.{array}" if post else f"norm2.{array}", self.layer)
        return key if key in self.model.roles else None

    def has(self, *roles: str) -> bool:
        """Whether the model has all of these roles here."""
        return all(self.where(role) for role in roles)

    def name(self, role: str) -> str:
        """The parameter that holds a role."""
        key = self.where(role)
        assert key is not None, role
        return self.model.roles[key].name

    def w(self, role: str) -> Array:
        """The weights of a role."""
        return self._canonical(role, self.weights)

    def d(self, role: str) -> Array:
        """The gradient of a role."""
        return self._canonical(role, self.gradients)

    def _canonical(self, role: str, flat: Mapping[str, Array]) -> Array:
        key = self.where(role)
        assert key is not None, role
        located = self.model.roles[key]
        return located.stored.canonical(role, flat[located.name])

    def affine(self, part: str, of: Callable[[str], Array]) -> Array:
        """The matrix of a linear map with its bias, if it has one, as one more row."""
        rows = [of(f"{part}.weight")]
        if self.has(f"{part}.bias"):
            rows.append(of(f"{part}.bias")[None])
        return np.concatenate(rows)

    def by_head(self, matrix: Array) -> Array:
        """(n, H d) -> (H, n, d)."""
        assert self.heads is not None
        return matrix.reshape(len(matrix), self.heads, -1).swapaxes(0, 1)


@dataclass(frozen=True)
class Identity:
    """One identity.

    Attributes:
        name: permanent.
        formula: in one line.
        roles: what it needs.
        sides: its two sides at a place.
        norm: "pre" or "post" if it holds only there.
        relu: whether it holds only for ReLU.
        without: roles that must be absent.
        heads: whether it needs the number of heads.
        single: whether it holds for one image only (and needs the grid of patches).
        uses: whether the sides also have `image`, `logits`, `cotangent`.
        size: what the sides sum, if their terms do not show it.
    """

    name: str
    formula: str
    roles: tuple[str, ...]
    sides: Callable[[Place], Sides]
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


def _patch_positions(p: Place) -> Array:
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
    grid = _patch_positions(p).reshape(*patches.shape[1:3], -1)
    return p.d("patch.weight"), np.einsum("chwij,hwd->dcij", patches, grid)


def _image_from_positions(p: Place) -> Sides:
    found = np.zeros_like(_padded(p))
    windows = _windows(p, found)
    grid = _patch_positions(p).reshape(*windows.shape[1:3], -1)
    through = np.einsum("hwd,dcij->chwij", grid, p.w("patch.weight"))
    for row, column in np.ndindex(windows.shape[1:3]):
        windows[:, row, column] += through[:, row, column]
    inside = [slice(p.geometry[1], p.geometry[1] + n) for n in p.weights["images"].shape[2:]]
    return p.gradients["image"][0], found[:, *inside]


def _writer(role: str, axis: int, norm: str = "") -> Identity:
    """What is written into a residual stream that only normalisations read: shifts do nothing."""
    formula, needs = f"sum of d {role} over the output features = 0", (role, "last_norm.gamma")
    return Identity("residual writer", formula, needs, lambda p: (p.d(role).sum(axis), 0.0), norm)


def _key_bias_size(p: Place) -> Array:
    """Roughly the sum over tokens of |d k|: inputs of the keys are of order one."""
    return np.sqrt(np.mean(np.square(p.d("k.weight")), 0))


_QKV_BIASES = ("q.bias", "k.bias", "v.bias")
_ATTN_NORM = ("attn_norm.gamma", "attn_norm.beta")
_FFN_NORM = ("ffn_norm.gamma", "ffn_norm.beta")
_LAST_NORM = ("last_norm.gamma", "last_norm.beta")
_QKV = ("q.weight", "k.weight", "v.weight")

GLOBAL: tuple[Identity, ...] = (
    Identity(
        "head bias", "d head.b = sum_b g_b", ("head.bias",),
        lambda p: (p.d("head.bias"), p.gradients["cotangent"].sum(0)), uses=("cotangent",),
    ),
    Identity(
        "head and logits", "<head.W_k, d head.W_k> + head.b_k d head.b_k = sum_b g_bk logits_bk",
        ("head.weight",), _head_logits, uses=("logits",),
    ),
    Identity(
        "normalised rows into the head", "sum_i d head.W_ik / gamma_i = (sum_i beta_i / gamma_i) "
        "d head.b_k", ("head.weight", "head.bias", *_LAST_NORM), _zero_mean("head", "last_norm"),
    ),
    Identity(
        "norm's features into the head", "gamma_i d gamma_i + beta_i d beta_i = "
        "<head.W_i, d head.W_i>", ("head.weight", *_LAST_NORM), _features("last_norm", "head"),
    ),
    Identity(
        "norm's shift into the head", "d beta = head.W d head.b",
        ("head.weight", "head.bias", *_LAST_NORM), _shift("last_norm", "head"),
    ),
    Identity(
        "CLS token and its position", "d cls = d pos[0]", ("cls", "pos"),
        lambda p: (p.d("cls"), p.d("pos")[0]),
    ),
    Identity(
        "patch bias and positions", "d patch.b = sum over patch tokens of d pos",
        ("patch.bias", "pos"), lambda p: (p.d("patch.bias"), _patch_positions(p).sum(0)),
    ),
    Identity(
        "kernel and image", "<kernel_c, d kernel_c> = <image_c, d image_c> for each channel c",
        ("patch.weight",), _kernel_image, uses=("image",),
    ),
    Identity(
        "kernel from positions", "one image: d kernel = sum_t d pos_t (x) patch_t",
        ("patch.weight", "pos"), _kernel_from_positions, single=True,
    ),
    Identity(
        "image from positions", "one image: d image = sum_t kernel^T d pos_t, at patch t",
        ("patch.weight", "pos"), _image_from_positions, single=True, uses=("image",),
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
        ("q.weight", "k.weight"), _query_key, heads=True,
    ),
    Identity(
        "values and outputs", "per head: dWv^T Wv + dbv bv^T = Wo dWo^T",
        ("v.weight", "o.weight"), _value_output, heads=True,
    ),
    Identity(
        "key bias", "d bk = 0", ("k.weight", "k.bias"), lambda p: (p.d("k.bias"), 0.0),
        size=_key_bias_size,
    ),
    Identity(
        "value bias and output bias", "d bv = Wo d bo", ("v.bias", "o.weight", "o.bias"),
        lambda p: (p.d("v.bias"), p.w("o.weight") @ p.d("o.bias")),
    ),
    Identity(
        "normalised rows into the keys", "sum_i dWk_ij / gamma_i = 0", ("k.weight", *_ATTN_NORM),
        _zero_mean("k", "attn_norm", bias=False),
    ),
    Identity(
        "normalised rows into the queries", "sum_i dWq_ij / gamma_i = (sum_i beta_i / gamma_i) "
        "dbq_j", ("q.weight", "q.bias", *_ATTN_NORM), _zero_mean("q", "attn_norm"),
    ),
    Identity(
        "normalised rows into the values", "sum_i dWv_ij / gamma_i = (sum_i beta_i / gamma_i) "
        "dbv_j", ("v.weight", "v.bias", *_ATTN_NORM), _zero_mean("v", "attn_norm"),
    ),
    Identity(
        "normalised rows into fc1", "sum_i dW1_ij / gamma_i = (sum_i beta_i / gamma_i) db1_j",
        ("fc1.weight", "fc1.bias", *_FFN_NORM), _zero_mean("fc1", "ffn_norm"),
    ),
    Identity(
        "norm's features into attention", "gamma_i d gamma_i + beta_i d beta_i = <Wq_i, dWq_i> + "
        "<Wk_i, dWk_i> + <Wv_i, dWv_i>", (*_QKV, *_ATTN_NORM), _features("attn_norm", *"qkv"),
        norm="pre",
    ),
    Identity(
        "norm's features into fc1", "gamma_i d gamma_i + beta_i d beta_i = <W1_i, dW1_i>",
        ("fc1.weight", *_FFN_NORM), _features("ffn_norm", "fc1"), norm="pre",
    ),
    Identity(
        "norm's shift into attention", "d beta = Wq dbq + Wk dbk + Wv dbv",
        (*_QKV, *_QKV_BIASES, *_ATTN_NORM), _shift("attn_norm", *"qkv"), norm="pre",
    ),
    Identity(
        "norm's shift into attention", "d beta = dbo + Wq dbq + Wk dbk + Wv dbv",
        (*_QKV, *_QKV_BIASES, "o.bias", *_ATTN_NORM), _shift("attn_norm", *"qkv", residual="o"),
        norm="post",
    ),
    Identity(
        "norm's shift into attention", "s Wo d beta = cv + Wo (Wq cq + Wv cv), s = sum_i beta_i / "
        "gamma_i, cq_j = sum_i dWq_ij / gamma_i", (*_QKV, "o.weight", *_ATTN_NORM),
        _residual_without_biases, norm="post", without=(*_QKV_BIASES, "o.bias"),
    ),
    Identity(
        "norm's shift into fc1", "d beta = W1 db1", ("fc1.weight", "fc1.bias", *_FFN_NORM),
        _shift("ffn_norm", "fc1"), norm="pre",
    ),
    Identity(
        "norm's shift into fc1", "d beta = db2 + W1 db1",
        ("fc1.weight", "fc1.bias", "fc2.bias", *_FFN_NORM),
        _shift("ffn_norm", "fc1", residual="fc2"), norm="post",
    ),
    Identity(
        "hidden units", "each unit: <W1_j, dW1_j> + b1_j db1_j = <W2_j, dW2_j>",
        ("fc1.weight", "fc2.weight"), _relu_units, relu=True,
    ),
    _writer("o.weight", 1),
    _writer("o.bias", 0),
    _writer("fc2.weight", 1),
    _writer("fc2.bias", 0),
)  # fmt: skip
"""Those of every layer."""


def structural(e: Evaluation, model: Model, head_count: int | None) -> Iterator[IdentityResult]:
    """Every identity of the architecture, in every layer where it holds.

    One that holds nowhere gives one result, which says why.
    """
    points = _Points(e, model, head_count)
    for identities, layers in ((GLOBAL, [None]), (PER_LAYER, [*range(model.num_layers)])):
        for identity in identities:
            if identity.norm in ("", model.naming.norm):
                yield from _everywhere(identity, points, layers)


def _everywhere(
    identity: Identity, points: _Points, layers: Sequence[int | None]
) -> Iterator[IdentityResult]:
    reasons = []
    for layer in layers:
        exact, size, noise = points.places(layer, identity.single)
        if reason := _why_not(identity, exact):
            reasons.append(reason)
            continue
        left, right = identity.sides(exact)
        total = identity.size(size) if identity.size else sum(identity.sides(size))
        rounding = sum(identity.sides(noise)) + points.u * total
        names = tuple(dict.fromkeys([exact.name(role) for role in identity.roles]))
        comparison = Comparison(left - right, total, rounding)
        yield judged(identity.name, identity.formula, {(*names, *identity.uses): comparison})
    if reasons and len(reasons) == len(layers):
        yield skipped(identity.name, identity.roles, reasons[-1], identity.formula)


def _why_not(identity: Identity, p: Place) -> str:
    """Why an identity does not apply at a place; empty if it does."""
    missing = [role for role in identity.roles if not p.has(role)]
    if missing:
        return f"there is no {missing[0]} here"
    if present := [role for role in identity.without if p.has(role)]:
        return f"it is for models without {present[0]}"
    if identity.relu and not p.model.naming.relu:
        return "it holds only for ReLU"
    if identity.heads and (not p.heads or p.d("q.weight").shape[1] % p.heads):
        return "the number of heads is not known, or does not divide the queries' width"
    if any(not p.d(role).size for role in identity.roles):
        return "an array is empty"
    if any(role.endswith("gamma") and not p.w(role).all() for role in identity.roles):
        return "a gamma is 0"
    images, kernel = p.weights["images"], p.w("patch.weight")
    if "image" in identity.uses and (images.ndim != 4 or images.shape[1] != kernel.shape[1]):
        return "the images are not (batch, channels, height, width)"
    if identity.single and not _grid_fits(p, images):
        return "the positions do not fill the grid of patches"
    return ""


def _grid_fits(p: Place, images: Array) -> bool:
    (sh, sw), padding = p.geometry
    sizes = zip(images.shape[2:], p.w("patch.weight").shape[2:], (sh, sw), strict=True)
    counts = [
        (n + 2 * padding - k) // s + 1 if s and n + 2 * padding >= k else 0 for n, k, s in sizes
    ]
    return 0 < counts[0] * counts[1] == len(_patch_positions(p))


class _Points:
    """The three places at which sides are evaluated: exact, magnitudes, and noise."""

    def __init__(self, e: Evaluation, model: Model, head_count: int | None) -> None:
        self.e, self.model, self.heads, self.u = e, model, head_count, e.precision.u
        config, patch = e.config, e.params[model.roles["patch.weight", None].name].shape[2:]
        stride = getattr(config, "stride", None)
        self.geometry = (
            (patch if stride is None else (stride, stride)),
            getattr(config, "padding", 0),
        )
        self.batch = self._triple(e.values, e.noise, slice(None))
        self._single: Triple | None = None

    @property
    def single(self) -> Triple:
        """The same for the first image alone; the batch's noise is no smaller than its own."""
        if self._single is None:
            e, first = self.e, slice(0, 1)
            found = e.vjp(e.params, e.images[first], e.cotangent[first])
            values = {name: leaf.astype(np.float64) for name, leaf in found.items()}
            noise = e.noise | {"image": e.noise["image"][first]}
            self._single = self._triple(values, noise, first)
        return self._single

    def places(self, layer: int | None, single: bool) -> Triple:
        """The three places in a layer."""
        a, b, c = self.single if single else self.batch
        return replace(a, layer=layer), replace(b, layer=layer), replace(c, layer=layer)

    def _triple(self, values: Flat, noise: Flat, batch: slice) -> Triple:
        e = self.e
        given = {"images": e.images[batch], "cotangent": e.cotangent[batch]}
        weights = {n: x.astype(np.float64) for n, x in (e.params | given).items()}
        gradients = values | {"cotangent": weights["cotangent"]}
        rounding = noise | {"cotangent": np.zeros_like(weights["cotangent"])}

        def place(weights: Flat, gradients: Flat) -> Place:
            return Place(self.model, None, self.heads, self.geometry, weights, gradients)

        sizes = {name: np.abs(x) for name, x in weights.items()}
        return (
            place(weights, gradients),
            place(sizes, {name: np.abs(x) for name, x in gradients.items()}),
            place(sizes, rounding),
        )


Triple = tuple[Place, Place, Place]
